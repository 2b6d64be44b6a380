"""The interface of criteria, and their common parts: progress, sums over images, forward passes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from upvit_core.files import Json
from upvit_core.models.adapter import Adapter
from upvit_core.models.device import exact_float32
from upvit_core.records.scores import ImportanceScores
from upvit_core.records.shape import ModelShape

NATS = "nats, summed over images"


class Proxy(Protocol):
    """The images on which channels are scored."""

    @property
    def name(self) -> str: ...

    @property
    def digest(self) -> str: ...

    @property
    def seed(self) -> int: ...

    def __len__(self) -> int: ...

    def batches(self, batch_size: int, device: torch.device | str = "cpu") -> Iterator[tuple[Tensor, Tensor]]:
        """Normalised images (B, C, H, W) and labels (B,), always in the same order."""

    def part(self, start: int, end: int) -> Proxy:
        """Images [start, end) in that order."""


@dataclass(frozen=True)
class Progress:
    """State of a long computation: `done` of `total` in `unit`, and the seconds left (None before they are known)."""

    done: float
    total: float
    unit: str
    what: str
    seconds_left: float | None = None

    @property
    def share(self) -> float:
        return self.done / self.total if self.total else 1.0


Report = Callable[[Progress], None]
"""A callback that receives progress; it may raise `Cancelled` to stop the computation."""


def silent(_: Progress) -> None:
    """The default report."""


class Clock:
    """Turns work done into progress with time left; skipped work does not count towards the speed.

    With `totals`, the work of each kind, the speed of each kind is measured separately.
    """

    def __init__(
        self,
        total: float,
        unit: str,
        report: Report,
        *,
        totals: Mapping[str, float] | None = None,
        now: Callable[[], float] = time.perf_counter,
    ):
        self.total, self.unit, self.report, self.done = total, unit, report, 0.0
        self._left = dict(totals) if totals is not None else {"": total}
        self._work, self._spent = dict.fromkeys(self._left, 0.0), dict.fromkeys(self._left, 0.0)
        self._now = now
        self._start = self._last = now()

    @property
    def seconds(self) -> float:
        return self._now() - self._start

    def skip(self, work: float, kind: str = "") -> None:
        """Count work that an earlier run has done."""
        self.done += work
        self._left[kind] -= work
        self._last = self._now()

    def expect(self, total: float, kind: str = "") -> None:
        """Correct the total."""
        self._left[kind] += total - self.total
        self.total = total

    def advance(self, work: float, what: str, kind: str = "") -> None:
        now = self._now()
        self.done += work
        self._left[kind] -= work
        self._work[kind] += work
        self._spent[kind] += now - self._last
        self._last = now
        self.report(Progress(self.done, self.total, self.unit, what, self._seconds_left()))

    def _seconds_left(self) -> float | None:
        fresh = sum(self._work.values())
        if not fresh:
            return None
        overall = sum(self._spent.values()) / fresh
        return sum(
            max(left, 0.0) * (self._spent[kind] / self._work[kind] if self._work[kind] else overall)
            for kind, left in self._left.items()
        )


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Eval mode without parameter gradients inside; both are restored on the way out, also after an error."""
    was_training = model.training
    wanted = [p for p in model.parameters() if p.requires_grad]
    model.eval()
    for p in wanted:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in wanted:
            p.requires_grad_(True)
        model.train(was_training)


def autocast(device: torch.device, precision: str) -> AbstractContextManager[None]:
    """Run forward passes inside in this precision: float32 (also where a GPU would take TF32), bf16 or fp16."""
    if precision == "float32":
        return exact_float32() if device.type == "cuda" else nullcontext()
    return torch.autocast(device.type, {"bf16": torch.bfloat16, "fp16": torch.float16}[precision])


class ImageSums:
    """Sum and standard error, over images, of a score that each image contributes to; kept in float64."""

    def __init__(self) -> None:
        self.total: dict[str, np.ndarray] = {}
        self.squares: dict[str, np.ndarray] = {}

    def add(self, key: str, per_image: Tensor) -> None:
        """per_image: (B, channels)."""
        per_image = per_image.double()
        self.add_sums(key, per_image.sum(0).cpu().numpy(), per_image.square().sum(0).cpu().numpy())

    def add_sums(self, key: str, total: np.ndarray, squares: np.ndarray) -> None:
        self.total[key] = self.total.get(key, 0.0) + total
        self.squares[key] = self.squares.get(key, 0.0) + squares

    def standard_errors(self, images: int) -> dict[str, np.ndarray]:
        """Standard error of each sum over `images` independent images; empty for a single one."""
        if images < 2:
            return {}
        return {key: standard_error(total, self.squares[key], images) for key, total in self.total.items()}


def standard_error(total: np.ndarray, squares: np.ndarray, images: int) -> np.ndarray:
    """Standard error of a sum over independent images, from the sum of their values and that of the squares."""
    return np.sqrt(np.maximum(squares - total**2 / images, 0) * images / max(images - 1, 1))


def scored_on(
    proxy: Proxy, clock: Clock, values: Mapping[str, np.ndarray], criterion: str, shape: ModelShape, unit: str = NATS
) -> ImportanceScores:
    """A record of scores of these images, which took as long as the clock has run."""
    return ImportanceScores(values, criterion, unit, shape, **origin_of(proxy), seconds=clock.seconds)


def origin_of(proxy: Proxy) -> Json:
    """The fields by which a record names the images that it was made on."""
    return {"data": proxy.name, "data_digest": proxy.digest, "images": len(proxy), "seed": proxy.seed}


@dataclass(frozen=True)
class Request:
    """Everything that a criterion may need to be made with its default settings.

    seed: of whatever it draws. precision: of the forward passes. journal: file that keeps the finished part of an exact
    score.
    """

    shape: ModelShape
    seed: int = 0
    precision: str = "float32"
    journal: Path | None = None


class Criterion(Protocol):
    """A way to score channels; `records/criteria.py` lists all by `name`."""

    @property
    def name(self) -> str: ...

    def attribute(self, adapter: Adapter, proxy: Proxy, report: Report = silent) -> ImportanceScores:
        """One score a channel, float64 (channels,), for every key of `adapter.shape.groups`; higher is more important.

        `report` is called between pieces of seconds, and stops the work by raising `Cancelled`.
        """


class WeightCriterion(Protocol):
    """A criterion that needs no images."""

    def attribute(self, adapter: Adapter, proxy: Proxy | None = None, report: Report = silent) -> ImportanceScores: ...
