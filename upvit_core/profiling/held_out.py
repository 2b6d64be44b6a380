"""The error of estimated speed-ups, measured on random plans of whole models that no calibration saw."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from upvit_core.models.gpt2 import random_inputs
from upvit_core.profiling.bench import DEMO, Progress, random_model
from upvit_core.profiling.calibrate import calibrate
from upvit_core.profiling.calibration import Calibration, HeldOutError, scope
from upvit_core.profiling.latency import estimate_latency, estimate_speed_up
from upvit_core.profiling.macs import count_macs
from upvit_core.profiling.throughput import CLOCKS, autocast, seconds_of
from upvit_core.records.known_shapes import deit_shape
from upvit_core.records.shape import ModelShape, legal_head_counts

SLOW = 4e9  # multiply-accumulates of a pass


@dataclass(frozen=True)
class Case:
    """One plan of one model at one batch size; times in ms, speed-ups against the unpruned model."""

    model: str
    batch: int
    shape: ModelShape
    macs_ratio: float
    measured_ms: float
    estimated_ms: float
    measured_speed_up: float
    estimated_speed_up: float

    @property
    def error(self) -> float:
        return abs(self.estimated_speed_up / self.measured_speed_up - 1)


def random_shape(shape: ModelShape, rng: np.random.Generator, most: float = 0.8) -> ModelShape:
    """A legal narrower shape, its heads merged alike within a stage; every other one has blocks of different widths."""
    first = [shape.blocks[shape.first_block(stage)].num_heads for stage in range(len(shape.depths))]
    merged = [int(rng.choice(legal_head_counts(heads)[::-1])) for heads in first]
    heads = {b: merged[shape.stage_of(b)] for b in range(shape.depth)}
    even = rng.random() < 0.5
    shared = {component: rng.uniform(0, most) for component in shape.components}
    widths = {}
    for group in shape.groups:
        removed = shared[group.component] if even else rng.uniform(0, most)
        parts = heads[group.place] if group.component == "attention" else 1
        widths[group.key] = max(round(group.width * (1 - removed) / parts), 1) * parts
    return shape.with_widths(widths, heads)


def held_out(
    calibration: Calibration,
    models: Sequence[tuple[ModelShape, Sequence[int], int]],
    *,
    device: torch.device | str = "cpu",
    rounds: int = 5,
    progress: Callable[[float], None] = lambda share: None,
) -> tuple[list[Case], HeldOutError]:
    """Measure random plans in turns with their unpruned model, and compare speed-ups with the estimates.

    models: (shape, batch sizes, number of plans) each; every plan is timed at every batch size, with the calibration's
    clock, number type and torch's threads. `progress` receives the share done; raise `Cancelled` in it to stop.
    """
    rng, cases = np.random.default_rng(1), []
    passes = sum(len(batches) * (plans + 1) for _, batches, plans in models) * (rounds + 1)
    done = 0

    def tick() -> None:
        nonlocal done
        done += 1
        progress(done / passes)

    for shape, batches, plans in models:
        shapes = [shape] + [random_shape(shape, rng) for _ in range(plans)]
        networks = [random_model(one, torch.device(device)) for one in shapes]
        for batch in batches:
            images = random_inputs(shape, batch).to(device)
            seconds = _in_turns(networks, images, rounds, calibration, tick)
            for thin, taken in zip(shapes[1:], seconds[1:], strict=True):
                case = Case(
                    model=shape.name,
                    batch=batch,
                    shape=thin,
                    macs_ratio=count_macs(shape) / count_macs(thin),
                    measured_ms=1e3 * float(np.median(taken)),
                    estimated_ms=estimate_latency(thin, batch, calibration),
                    measured_speed_up=float(np.median(seconds[0] / taken)),
                    estimated_speed_up=estimate_speed_up(shape, thin, batch, calibration),
                )
                cases.append(case)
    errors = np.array([case.error for case in cases])
    return cases, HeldOutError(
        median_error=float(np.median(errors)), worst_error=float(errors.max()), correlation=_rank_correlation(cases),
        plans=len(cases), models=tuple(shape.name for shape, _, _ in models),
        batch_sizes=tuple(sorted({batch for _, batches, _ in models for batch in batches})),
        date=time.strftime("%Y-%m-%d"),
    )  # fmt: skip


def calibrate_and_check(
    *,
    device: torch.device | str = "cpu",
    dtype: str = "float32",
    seconds: float = 45.0,
    shape: ModelShape | None = None,
    progress: Progress = lambda done, total: None,
) -> Calibration:
    """A calibration that knows its error: what the button and the verb make, in about 1.4 times `seconds`.

    The error is that of 12 random plans, each at two batch sizes: of the demo's and of DeiT-T's shape for plain ViTs,
    else of `shape`'s own (fewer where a pass takes seconds). `progress` receives seconds done and in all, as estimated
    from `seconds`; raise `Cancelled` in it to stop.
    """
    total = 1.4 * seconds
    known = calibrate(
        device=device, dtype=dtype, seconds=seconds, shape=shape, progress=lambda done, _: progress(done, total)
    )
    models, rounds = _checked_on(shape)
    _, error = held_out(
        known, models, device=device, rounds=rounds,
        progress=lambda share: progress(seconds + share * (total - seconds), total),
    )  # fmt: skip
    return known.with_error(error)


def _checked_on(shape: ModelShape | None) -> tuple[list[tuple[ModelShape, Sequence[int], int]], int]:
    """Models, batch sizes and numbers of plans that tell the error of a calibration, and rounds of measurements."""
    if shape is None or not scope(shape):
        return [(DEMO, (8, 32), 6), (deit_shape("tiny"), (1, 4), 6)], 5
    macs = count_macs(shape)
    if macs > SLOW:
        return [(shape, (1,), 4)], 2
    return [(shape, (1, int(np.clip(SLOW // macs, 2, 32))), 12)], 5


def _in_turns(
    networks: Sequence[torch.nn.Module],
    images: torch.Tensor,
    rounds: int,
    calibration: Calibration,
    tick: Callable[[], None],
) -> np.ndarray:
    """Seconds (networks, rounds) of a forward pass, after one to warm up."""
    taken = np.zeros((len(networks), rounds + 1))
    with torch.inference_mode(), autocast(images.device, calibration.dtype):
        for turn in range(rounds + 1):
            for n, network in enumerate(networks):
                seconds = seconds_of(partial(network, images), images.device, CLOCKS[calibration.clock])
                taken[n, turn] = max(seconds, 1e-9)
                tick()
    return taken[:, 1:]


def _rank_correlation(cases: Sequence[Case]) -> float:
    """Spearman's, of estimated and measured milliseconds."""
    if len(cases) < 2:
        return 1.0
    measured, estimated = (
        np.argsort(np.argsort([getattr(c, name) for c in cases])) for name in ("measured_ms", "estimated_ms")
    )
    return float(np.corrcoef(measured, estimated)[0, 1])
