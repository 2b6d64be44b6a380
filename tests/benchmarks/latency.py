"""Calibrate this device, then compare estimated with measured speed-ups on random plans that it has not seen.

python -m tests.benchmarks.latency --seconds 60 --threads 1 --clock cpu --save calibration.json
python -m tests.benchmarks.latency --model pvt_v2_b1 --batches 1 8 --plans 12 --threads 1 --clock cpu

`--clock cpu` counts the calling thread's own time: for machines that others use at the same time.
"""

import argparse
import time
from pathlib import Path

import torch

from tests.benchmarks.report import publish
from upvit_core.models.checkpoint import load_model
from upvit_core.profiling.bench import DEMO
from upvit_core.profiling.calibrate import calibrate
from upvit_core.profiling.calibration import Calibration
from upvit_core.profiling.held_out import held_out
from upvit_core.records.known_shapes import deit_shape


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--plans", type=int, nargs="+", default=[10, 8, 6, 4], help="of the demo, DeiT-T, -S, -B")
    parser.add_argument("--model", help="a model to take plans of instead, such as a PVTv2 or a GPT-2")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8], help="with --model")
    parser.add_argument("--calibration", type=Path, help="use this one instead of making one")
    parser.add_argument("--save", type=Path, help="where to keep the calibration with its error")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    shape = load_model(arguments.model, pretrained=False).shape if arguments.model else None
    start = time.perf_counter()
    known = (
        Calibration.load(arguments.calibration)
        if arguments.calibration
        else calibrate(
            device=arguments.device,
            dtype=arguments.dtype,
            seconds=arguments.seconds,
            clock=arguments.clock,
            shape=shape,
        )
    )
    seconds = time.perf_counter() - start
    batches = {"demo": (8, 32), "tiny": (1, 8), "small": (1, 8), "base": (1, 4)}
    shapes = [DEMO, *(deit_shape(v) for v in ("tiny", "small", "base"))]  # type: ignore[arg-type]
    models = (
        [(shape, tuple(arguments.batches), arguments.plans[0])]
        if shape is not None
        else list(zip(shapes, batches.values(), arguments.plans, strict=True))
    )
    cases, error = held_out(known, models, device=arguments.device, rounds=arguments.rounds)
    if arguments.save:
        known.with_error(error).save(arguments.save)
    rows = [
        {
            "model": case.model.replace("_patch16_224", ""),
            "batch": case.batch,
            "fewer MACs": case.macs_ratio,
            "measured ms": case.measured_ms,
            "estimated ms": case.estimated_ms,
            "measured speed-up": case.measured_speed_up,
            "estimated": case.estimated_speed_up,
            "error": f"{case.error:.1%}",
        }
        for case in cases
    ]
    publish(
        "estimated against measured speed-up",
        rows,
        arguments.out,
        calibration_seconds=round(seconds, 1),
        clock=known.clock,
        dtype=known.dtype,
        rounds=arguments.rounds,
        median_error=f"{error.median_error:.1%}",
        worst_error=f"{error.worst_error:.1%}",
        rank_correlation=round(error.correlation, 4),
        plans=error.plans,
    )


if __name__ == "__main__":
    main()
