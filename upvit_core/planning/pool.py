"""Blocks taken together: the least score lost at every total width, and which widths lose it.

Parameters and MACs are, at a fixed residual width, linear in the total of the attention channels and in the total of
the FFN channels. So all that a budget needs from the blocks is one curve for each of the two.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from upvit_core.planning.curves import Curve


@dataclass(frozen=True)
class WidthPool:
    """totals (n,): channels over all blocks, ascending; lost (n,): the least score lost; split(i): widths by block."""

    totals: np.ndarray
    lost: np.ndarray
    split: Callable[[int], tuple[int, ...]]


def pool_per_block(curves: Sequence[Curve]) -> WidthPool:
    """Every block may have its own width: exact minimum at every total.

    Where all widths move in steps of one size, the losses being convex, the largest gains come first. Otherwise (heads
    that differ between blocks) a dynamic programme over the blocks.
    """
    steps = {int(step) for curve in curves for step in np.diff(curve.widths)}
    return _by_gain(curves, steps.pop() if steps else 1) if len(steps) <= 1 else _by_programme(curves)


def _by_gain(curves: Sequence[Curve], step: int) -> WidthPool:
    gains = np.concatenate([-np.diff(curve.lost) for curve in curves])
    owner = np.repeat(np.arange(len(curves)), [len(curve.widths) - 1 for curve in curves])
    order = np.argsort(-gains, kind="stable")
    base = np.array([curve.widths[0] for curve in curves])
    start = sum(curve.lost[0] for curve in curves)
    lost = start - np.concatenate([[0.0], np.cumsum(gains[order])])
    ranked = owner[order]

    def split(i: int) -> tuple[int, ...]:
        counts = np.bincount(ranked[:i], minlength=len(curves))
        return tuple((base + step * counts).tolist())

    return WidthPool(base.sum() + step * np.arange(len(gains) + 1), np.maximum(lost, 0), split)


def _by_programme(curves: Sequence[Curve]) -> WidthPool:
    unit = math.gcd(*(int(width) for curve in curves for width in curve.widths))
    best = np.zeros(1)
    choices = []
    for curve in curves:
        widths = curve.widths // unit
        reach = np.full(len(best) + widths[-1], np.inf)
        chosen = np.zeros(len(reach), int)
        for option, (width, lost) in enumerate(zip(widths, curve.lost, strict=True)):
            part = slice(width, width + len(best))
            better = best + lost < reach[part]
            reach[part][better] = (best + lost)[better]
            chosen[part][better] = option
        best = reach
        choices.append(chosen)
    reachable = np.flatnonzero(np.isfinite(best))

    def split(i: int) -> tuple[int, ...]:
        left, widths = int(reachable[i]), []
        for curve, chosen in zip(reversed(curves), reversed(choices), strict=True):
            widths.append(int(curve.widths[chosen[left]]))
            left -= widths[-1] // unit
        return tuple(reversed(widths))

    return WidthPool(reachable * unit, best[reachable], split)


def pool_uniform(curves: Sequence[Curve]) -> WidthPool:
    """The same share in every block: the widths of the widest block, each other block at its nearest legal width."""
    widest = max(curves, key=lambda curve: curve.widths[-1])
    full = widest.widths[-1]
    rows = sorted({tuple(c.nearest(c.widths[-1] * width / full) for c in curves) for width in widest.widths})
    totals = np.array([sum(row) for row in rows])
    lost = np.sum([curve.at(column) for curve, column in zip(curves, np.array(rows).T, strict=True)], axis=0)
    return WidthPool(totals, lost, lambda i: rows[i])
