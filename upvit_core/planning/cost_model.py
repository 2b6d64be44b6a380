"""Cost of a model at any widths: parameters and MACs as polynomials of the widths, and the milliseconds of an estimate.

Both counts are multilinear in the widths: a constant, a slope for every group of channels, and a cross term for every
two groups whose channels meet in one layer. All are read exactly off shapes that are one or two channels wide. Time is
no polynomial; a `Timed` estimate gives it, of a whole shape or as a sum over its parts.
"""

from collections.abc import Callable, Mapping
from functools import cache
from itertools import combinations, pairwise
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike

from upvit_core.errors import PlanError
from upvit_core.profiling.macs import count_macs, count_parameters
from upvit_core.records.shape import Group, ModelShape

COUNTS: Mapping[str, Callable[[ModelShape], int]] = {"params": count_parameters, "macs": count_macs}


class Timed(Protocol):
    """An estimate of the milliseconds of a forward pass."""

    def of(self, shape: ModelShape) -> float: ...


class CostModel:
    """A count of models like `shape`, at any widths by key of their group: they broadcast, and one not given is 0."""

    def __init__(self, count: Callable[[ModelShape], int], shape: ModelShape):
        ones = {group.key: 1 for group in shape.groups}
        alike = {group.key: _first_like(group, shape) for group in shape.groups}
        residuals = [group.key for group in shape.groups_of("residual")]
        pairs = list(pairwise(residuals))
        for b in range(shape.depth):
            inside = [key for key in ones if key.endswith(f".{b}") and key not in residuals]
            pairs += combinations([residuals[shape.stage_of(b)], *inside], 2)

        @cache
        def at(*two_wide: str) -> int:
            return count(shape.with_widths(ones | dict.fromkeys(two_wide, 2)))

        self._base = at()
        self._slopes = {key: at(alike[key]) - at() for key in ones}
        crosses = {(a, b): at(alike[a], alike[b]) - at(alike[a]) - at(alike[b]) + at() for a, b in pairs}
        self._crosses = {pair: cross for pair, cross in crosses.items() if cross}

    def terms(self) -> tuple[float, dict[str, float], list[tuple[str, str, float]]]:
        """The polynomial: its value where every group has one channel, slopes by key, and cross terms by two keys.

        A count is base + Σ slope·(w - 1) + Σ cross·(w - 1)·(v - 1).
        """
        return self._base, dict(self._slopes), [(a, b, cross) for (a, b), cross in self._crosses.items()]

    def at(self, widths: Mapping[str, ArrayLike]) -> np.ndarray:
        """The count at these widths."""
        above = {key: np.asarray(widths.get(key, 0)) - 1 for key in self._slopes}
        terms = [slope * above[key] for key, slope in self._slopes.items()]
        terms += [cross * above[a] * above[b] for (a, b), cross in self._crosses.items()]
        return np.asarray(self._base + sum(sorted(terms, key=np.shape)))  # small arrays first, as they broadcast

    def slope(self, key: str, widths: Mapping[str, ArrayLike]) -> np.ndarray:
        """The count of one channel more of the group `key` at these widths."""
        slope = np.asarray(self._slopes[key])
        for pair, cross in self._crosses.items():
            if key in pair:
                (other,) = set(pair) - {key}
                slope = slope + cross * (np.asarray(widths.get(other, 0)) - 1)
        return slope


def _first_like(group: Group, shape: ModelShape) -> str:
    """Key of the group that stands for this one: all blocks of a stage cost alike."""
    place = group.place if group.component == "residual" else shape.first_block(shape.stage_of(group.place))
    return shape.key_of(group.component, place)


def costs_of(shape: ModelShape, latency: Timed | None) -> dict[str, float]:
    """Parameters, MACs and, where there is an estimate, milliseconds of a shape."""
    costs: dict[str, float] = {name: count(shape) for name, count in COUNTS.items()}
    return costs if latency is None else costs | {"latency_ms": latency.of(shape)}


def out_of_reach(narrowest: ModelShape, limits: Mapping[str, float], latency: Timed | None) -> PlanError:
    """The error for limits that even the narrowest plan exceeds."""
    costs = costs_of(narrowest, latency)
    asked = " and ".join(f"{name} {format_budget(limit)}" for name, limit in limits.items())
    least = ", ".join(f"{format_budget(costs[name])} {name}" for name in limits)
    return PlanError(f"No plan of this kind of {narrowest.name} is within {asked}; the narrowest has {least}.")


def format_budget(value: float) -> str:
    """`4,590` or `0.123`: a limit as errors state it."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"
