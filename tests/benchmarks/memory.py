"""Estimated against allocated memory of a forward pass: random plans of the demo, DeiT-T, -S and -B, and a small GPT-2.

python -m tests.benchmarks.memory

Every plan at two batch sizes. Weights are counted exactly; the peak of activations is what torch's profiler sees
allocated on the CPU in one pass.
"""

import argparse
from pathlib import Path

import numpy as np
import torch

from tests.benchmarks.report import publish
from tests.support.allocated import peak
from upvit_core.models.gpt2 import language_shape, random_inputs
from upvit_core.profiling.bench import DEMO, random_model
from upvit_core.profiling.held_out import random_shape
from upvit_core.profiling.memory import estimate_memory
from upvit_core.records.known_shapes import deit_shape
from upvit_core.records.shape import BlockShape, ModelShape

TEXT = language_shape("gpt2, 4 blocks", vocabulary=512, context=64, embed_dim=96, blocks=(BlockShape(4, 96, 384),) * 4)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--plans", type=int, nargs=5, default=[8, 6, 4, 3, 8], help="of the demo, DeiT-T, -S, -B, GPT-2"
    )
    parser.add_argument("--seed", type=int, default=2)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rng = np.random.default_rng(arguments.seed)
    batches = {"demo": (8, 32), "tiny": (1, 8), "small": (1, 8), "base": (1, 4), "text": (1, 8)}
    shapes: list[ModelShape] = [DEMO, *(deit_shape(v) for v in ("tiny", "small", "base")), TEXT]  # type: ignore[arg-type]
    rows, errors = [], []
    for shape, sizes, count in zip(shapes, batches.values(), arguments.plans, strict=True):
        for one in [shape, *(random_shape(shape, rng) for _ in range(count))]:
            model = random_model(one, torch.device("cpu"))
            weights = sum(p.numel() * p.element_size() for p in model.parameters())
            for batch in sizes:
                known = estimate_memory(one, batch)
                held = peak(model, random_inputs(one, batch)) + weights
                errors.append(known.total / held - 1)
                rows.append(
                    {
                        "model": shape.name.replace("_patch16_224", ""),
                        "batch": batch,
                        "whole": one is shape,
                        "weights MiB": weights / 2**20,
                        "measured MiB": held / 2**20,
                        "estimated MiB": known.total / 2**20,
                        "error": f"{errors[-1]:+.1%}",
                    }
                )
    publish(
        "weights and peak activations",
        rows,
        arguments.out,
        cases=len(rows),
        median_error=f"{np.median(np.abs(errors)):.1%}",
        worst_error=f"{np.max(np.abs(errors)):.1%}",
    )


if __name__ == "__main__":
    main()
