"""`l1`, `l2`: the size of a channel's weights, the criterion of Li et al. (ICLR 2017). Needs no images.

A channel's weights are those of the table of components: its rows of the layer that writes it and its columns of the
layer that reads it, over all tensors that carry it.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from upvit_core.importance.criterion import Proxy, Report, Request, silent
from upvit_core.models.adapter import Adapter, carriers
from upvit_core.records.scores import ImportanceScores, expected_widths


@dataclass(frozen=True)
class Magnitude:
    """Sum of absolute weights (order 1) or root of the sum of squares (order 2) per channel."""

    order: Literal[1, 2] = 1

    @property
    def name(self) -> str:
        return f"l{self.order}"

    def attribute(self, adapter: Adapter, proxy: Proxy | None = None, report: Report = silent) -> ImportanceScores:
        """Scores of all channels; the unit is that of the weights."""
        start = time.perf_counter()
        power: Callable[[Tensor], Tensor] = torch.abs if self.order == 1 else torch.square
        values = {}
        with torch.no_grad():
            for key in expected_widths(adapter.shape):
                tensors = carriers(adapter.model, adapter.shape, key).values()
                total = torch.stack([power(t.detach().double()).sum(1) for t in tensors]).sum(0)
                values[key] = (total if self.order == 1 else total.sqrt()).cpu().numpy()
        seconds = time.perf_counter() - start
        return ImportanceScores(values, self.name, "weight magnitude", adapter.shape, seconds=seconds)


@dataclass(frozen=True)
class Random:
    """Uniform random scores, a lower bound for every criterion."""

    seed: int = 0
    name: str = "random"

    def attribute(self, adapter: Adapter, proxy: Proxy | None = None, report: Report = silent) -> ImportanceScores:
        """Scores in [0, 1), by seed."""
        generator = torch.Generator().manual_seed(self.seed)
        values = {
            key: torch.rand(width, generator=generator, dtype=torch.float64).numpy()
            for key, width in expected_widths(adapter.shape).items()
        }
        return ImportanceScores(values=values, criterion=self.name, unit="none", shape=adapter.shape, seed=self.seed)


def make_l1(request: Request) -> Magnitude:
    return Magnitude(1)


def make_l2(request: Request) -> Magnitude:
    return Magnitude(2)


def make_random(request: Request) -> Random:
    return Random(request.seed)
