"""Calibrate a device: time the operations that a block is made of over a grid of sizes, then whole blocks.

`bench.py` and its neighbours say what is timed. Factors of each kind are then fitted on real blocks (least squares of
relative errors, drawn towards 1).
"""

import platform
import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import timm
import torch

from upvit_core.errors import CalibrationError
from upvit_core.profiling.bench import Bench, Point, Progress, Run, TimedBlock, ladders
from upvit_core.profiling.calibration import Calibration, scope
from upvit_core.profiling.latency import latency_of
from upvit_core.profiling.throughput import CLOCKS, DTYPES, device_name
from upvit_core.records.family import load
from upvit_core.records.shape import ModelShape


def calibrate(
    *,
    device: torch.device | str = "cpu",
    dtype: str = "float32",
    seconds: float = 60.0,
    shape: ModelShape | None = None,
    clock: str = "wall",
    progress: Progress = lambda done, total: None,
) -> Calibration:
    """Time this device for about `seconds`, with the threads that torch has now, for models like `shape`.

    Without a shape, for plain ViTs: the embeddings of the demo, of DeiT and of `shape` are timed, others are estimated
    from their linear layer. clock: `cpu` counts the time of the calling thread only, which other programs disturb less,
    and needs a single thread. `progress` receives seconds done and seconds in all; raise `Cancelled` in it to stop.

    Raises CalibrationError for an unknown dtype or clock, `cpu` with several threads, or a shape that is not timed.
    """
    device = torch.device(device)
    if dtype not in DTYPES:
        raise CalibrationError(f"A calibration is for one of {', '.join(DTYPES)}, not {dtype!r}.")
    if clock not in CLOCKS or (clock == "cpu" and (device.type != "cpu" or torch.get_num_threads() > 1)):
        raise CalibrationError(f"The clock is wall, or cpu on a CPU with one thread, not {clock!r} here.")
    models = "" if shape is None else scope(shape)
    bench = _bench(shape)(device, dtype, CLOCKS[clock], shape)
    begun = time.perf_counter()
    with bench.running():
        points: dict[Point, Run] = {}
        for name, run in bench.operations():
            progress(0.0, seconds)
            points[name] = run
        blocks = []
        for n, block in enumerate(bench.blocks()):
            progress(0.0, seconds)
            blocks.append(block)
            points["block", n] = block.run
        taken = bench.take_turns(points, seconds, progress)
    grids = bench.grids(taken)
    raw = Calibration(
        device=device_name(device), dtype=dtype, threads=torch.get_num_threads(), grids=grids,
        ladders=ladders(bench, taken, grids), embeddings=bench.embeddings(taken),
        weights=dict.fromkeys(bench.kinds, 1.0) | {"block": 0.0}, scope=models,
        clock=clock, date=time.strftime("%Y-%m-%d"),
        versions={"torch": str(torch.__version__), "timm": timm.__version__, "python": platform.python_version()},
    )  # fmt: skip
    measured = np.array([taken["block", n] for n in range(len(blocks))])
    weights = fitted(raw, blocks, measured)
    return replace(raw, weights=weights, seconds=time.perf_counter() - begun)


def _bench(shape: ModelShape | None) -> type[Bench]:
    bench: type[Bench] = Bench if shape is None else load(shape.architecture.bench)
    return bench


def fitted(raw: Calibration, blocks: Sequence[TimedBlock], measured: np.ndarray) -> dict[str, float]:
    """Factors of every kind, and seconds a block besides, from measured seconds of blocks."""
    names = tuple(raw.weights)  # the last is `block`
    seconds = np.zeros((len(blocks), len(names)))
    for column, name in enumerate(names):
        alone = replace(raw, weights=dict.fromkeys(names, 0.0) | {name: 1.0})
        for row, block in enumerate(blocks):
            ms = latency_of(block.shape, block.batch, alone).of_block(block.shape, block.number)
            seconds[row, column] = ms / 1e3
    relative = seconds / measured[:, None]
    unit = float(np.median(measured)) * 0.1
    relative[:, -1] *= unit
    kinds = len(names) - 1
    prior = np.array([1.0] * kinds + [0.0])
    pull = 0.1 * np.eye(len(names))
    targets = np.concatenate([np.ones(len(measured)), pull @ prior])
    solution = np.linalg.lstsq(np.vstack([relative, pull]), targets, rcond=None)[0]
    solution = np.maximum(solution, [0.2] * kinds + [0.0])
    solution[-1] *= unit
    return dict(zip(names, solution.tolist(), strict=True))
