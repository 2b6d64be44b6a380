"""Cuts as points: what a plan keeps and loses, and the features from which its outcome is estimated.

Features say how much goes: the share of each component's channels that is removed (with blocks that are gone), how far
heads are merged, and the logarithms of the share of all scores that is lost, in all and by component. They read a plan
of equal shares and one whose blocks differ alike. No torch and no model, so a page has them at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache

import numpy as np

from upvit_core.records.basis import Basis
from upvit_core.records.map import CutPoint
from upvit_core.records.plan import PruningPlan
from upvit_core.records.scores import ImportanceScores
from upvit_core.records.shape import Component, ModelShape

LEAST_LOST = 1e-4
"""A share of the scores below which logarithms flatten."""


class Worth:
    """The share of all scores that each channel holds; scores below zero, which are noise, count as zero.

    Where plans keep leading directions and the scores are of channels, those of one residual or head count alike.
    """

    def __init__(self, scores: ImportanceScores, basis: Basis = Basis.CHANNELS):
        self.shape = scores.shape
        worth = {key: np.maximum(values, 0) for key, values in scores.values.items()}
        if basis == Basis.DIRECTIONS != scores.basis:
            worth |= {key: np.full(len(v), v.mean()) for key, v in worth.items() if not key.startswith("ffn")}
        total = sum(float(values.sum()) for values in worth.values()) or 1.0
        self._worth = {key: values / total for key, values in worth.items()}
        self._lost = cache(self._cumulative)

    def of(self, plan: PruningPlan) -> CutPoint:
        """The widths that a plan keeps and the scores that it loses, by group."""
        widths, lost = {}, {}
        for key, worth in self._worth.items():
            kept = list(plan.kept(key))
            lost[key] = max(float(worth.sum() - worth[kept].sum()), 0.0)
            if kept:
                widths[key] = len(kept)
        heads = {block.source: block.attention.heads for block in plan.blocks}
        return CutPoint(widths=widths, heads=heads, lost=lost)

    def at(self, widths: Mapping[str, int], heads: Mapping[int, int]) -> CutPoint:
        """The point of the plan that keeps the best channels at these widths and heads, without making that plan."""
        lost = {}
        for group in self.shape.groups:
            into = heads[group.place] if group.component == "attention" else 1
            lost[group.key] = float(self._lost(group.key, into)[(group.width - widths[group.key]) // into])
        return CutPoint.model_construct(widths=dict(widths), heads=dict(heads), lost=lost)

    def _cumulative(self, key: str, heads: int) -> np.ndarray:
        ascending = np.sort(self._worth[key].reshape(heads, -1), axis=1).sum(0)
        return np.concatenate([[0.0], np.cumsum(ascending)])


def removed(widths: Mapping[str, int], shape: ModelShape) -> dict[Component, float]:
    """The share of each component's channels that is gone at these widths, by key of the groups; 0 to 1."""
    shares: dict[Component, float] = {}
    for component in shape.components:
        own = shape.groups_of(component)
        shares[component] = 1 - sum(widths.get(group.key, 0) for group in own) / sum(group.width for group in own)
    return shares


def features(points: Sequence[CutPoint], shape: ModelShape) -> np.ndarray:
    """Features (n, 2 · components + 2): shares removed, head merging, log of what is lost in all and by component."""
    groups = [shape.groups_of(component) for component in shape.components]
    rows = []
    for point in points:
        lost = [sum(point.lost[group.key] for group in own) for own in groups]
        merged = [np.log2(shape.blocks[b].num_heads / count) for b, count in point.heads.items()]
        gone = removed(point.widths, shape).values()
        rows.append([*gone, np.mean(merged), *np.log(LEAST_LOST + np.array([sum(lost), *lost]))])
    return np.array(rows, float)
