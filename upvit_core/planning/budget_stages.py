"""The best equal shares of a model of stages under a budget: one ratio a component, the same in every stage and block.

Parameters and MACs of a staged model are not separable over all widths (a reduction multiplies the residual, stages
multiply their neighbours). With one ratio a component they are: at a given share of the residual, the cost of attention
with its reductions adds to the cost of the FFN. So every whole percent of residual, attention and reduction is tried,
and the FFN is the widest that fits. Exact over whole percents. The time of a pass is such a sum too, half-block by
half-block.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike

from upvit_core.errors import PlanError
from upvit_core.planning.budget import BestPlan
from upvit_core.planning.cost_model import COUNTS, CostModel, Timed, costs_of, out_of_reach
from upvit_core.planning.curves import predicted_loss
from upvit_core.planning.ratios import plan_uniform, uniform_widths
from upvit_core.records.plan import PruningPlan
from upvit_core.records.ratios import Ratios
from upvit_core.records.scores import ImportanceScores
from upvit_core.records.shape import BlockShape, Component

Limits = Mapping[str, float]
PERCENTS = np.arange(96)  # removed


class StagedLatency(Timed, Protocol):
    """Milliseconds of a forward pass at one batch size, as a sum over its parts; widths broadcast."""

    def fixed(self, embed_dims: Sequence[ArrayLike]) -> np.ndarray:
        """All but the blocks, for residual widths by stage."""

    def attention(
        self, stage: int, embed_dim: ArrayLike, heads: int, attention: ArrayLike, reduction: ArrayLike
    ) -> np.ndarray:
        """The attention half of a block of a stage; reduction: 0 where there is none."""

    def ffn(self, stage: int, embed_dim: ArrayLike, widths: ArrayLike) -> np.ndarray:
        """The FFN half of a block of a stage."""


def best_shares(
    scores: ImportanceScores,
    limits: Limits,
    *,
    stock: bool = False,
    tables: Tables | None = None,
    latency: StagedLatency | None = None,
) -> BestPlan:
    """The plan of equal shares that loses least score within limits on `params`, `macs` and `latency_ms` of one batch.

    `stock`: reductions and attention go with the residual, as stock timm builds. `tables` of the same scores and the
    same latency, where several budgets are asked for, are made once.

    Raises PlanError where a limit is none of these, latency has no estimate, or no plan meets them.
    """
    if unknown := sorted(set(limits) - {*COUNTS, "latency_ms"}):
        raise PlanError(f"There is no budget of {', '.join(unknown)}; give params, macs or latency_ms.")
    if "latency_ms" in limits and latency is None:
        raise PlanError("A latency budget needs this device's calibration; run `calibrate` first.")
    tables = Tables(scores, latency) if tables is None else tables
    choices = [tables.best_at(residual, limits, stock) for residual in PERCENTS.tolist()]
    reachable = [choice for choice in choices if choice is not None]
    if not reachable:
        narrowest = _ratios(dict.fromkeys(scores.shape.components, int(PERCENTS[-1])))
        widths, _ = uniform_widths(scores.shape, narrowest, snap=True)
        raise out_of_reach(scores.shape.with_widths(widths), limits, latency)
    _, percents = min(reachable, key=lambda choice: choice[0])
    plan = plan_uniform(scores, _ratios(percents), snap=True)
    requested = {"budget": limits, "allocation": "stock" if stock else "uniform"}
    plan = plan.model_copy(update={"requested": {**plan.requested, **requested}})
    predicted, costs = predicted_loss(scores, plan), costs_of(plan.shape_after, latency)
    return BestPlan(plan, predicted, predicted, int(costs["params"]), int(costs["macs"]), costs.get("latency_ms"))


def _ratios(percents: Mapping[Component, int]) -> Ratios:
    """Percents as ratios; a reduction of the residual's percent goes with it, as stock timm builds."""
    shared = percents["residual"]
    return Ratios(
        **{key: percent / 100 for key, percent in percents.items() if key != "reduction" or percent != shared}
    )


def percents_of(plan: PruningPlan) -> dict[str, int]:
    """The whole percents that a plan of equal shares removes, by component."""
    ratios = Ratios.requested(plan.requested)
    assert ratios is not None
    return {key: round(100 * ratios.named.get(key, ratios.residual)) for key in plan.shape_before.components}


class Tables:
    """Widths by percent removed, the score lost at each, and the costs at every percent of the residual."""

    def __init__(self, scores: ImportanceScores, latency: StagedLatency | None = None):
        self._scores, self._shape, self._latency = scores, scores.shape, latency
        self._components = scores.shape.components
        self._models = {name: CostModel(count, scores.shape) for name, count in COUNTS.items()}
        self._widths: dict[str, np.ndarray] = {}
        for component in self._components:
            self._widths |= self._by_percent(component, component)
        self._shared = self._by_percent("reduction", "residual")
        self._lost = {component: self._score_lost(component, self._widths) for component in self._components}
        self._lost_shared = self._score_lost("reduction", self._shared)
        self._costs: dict[tuple[str, int, bool], tuple[np.ndarray, np.ndarray]] = {}

    def _by_percent(self, component: Component, cut: Component) -> dict[str, np.ndarray]:
        """Widths (percents,) of the groups of a component where each percent of `cut` is removed."""
        every: list[dict[str, int]] = []
        for percent in PERCENTS.tolist():
            every.append(uniform_widths(self._shape, Ratios(**{cut: percent / 100}), snap=True)[0])
        keys = [group.key for group in self._shape.groups_of(component)]
        return {key: np.array([widths[key] for widths in every]) for key in keys}

    def _score_lost(self, component: Component, widths: Mapping[str, np.ndarray]) -> np.ndarray:
        """Mean score lost at each percent, (percents,)."""
        total = np.zeros(len(PERCENTS))
        for group in self._shape.groups_of(component):
            heads = group.heads if component == "attention" else 1
            values = np.maximum(self._scores.values[group.key], 0).reshape(heads, -1)
            ascending = np.sort(values, axis=1).sum(0)
            running = np.concatenate([[0.0], np.cumsum(ascending)])
            total += running[(group.width - widths[group.key]) // heads]
        return total / self._scores.samples

    def best_at(self, residual: int, limits: Limits, stock: bool) -> tuple[float, dict[Component, int]] | None:
        """The least loss at a percent of the residual, and the percents that have it; None where nothing fits."""
        attention, reduction = self._tried(residual, stock)
        fits = np.full((len(attention), len(reduction)), -1)  # the least percent of the FFN that meets every limit
        for name, limit in limits.items():
            others, ffn = self._costs_at(name, residual, stock)
            fits = np.maximum(fits, np.searchsorted(-ffn, others - limit, side="left"))
        lost = self._lost["residual"][residual] + self._lost["attention"][attention][:, None]
        if "reduction" in self._components:
            by_reduction = self._lost["reduction"].copy()
            by_reduction[residual] = self._lost_shared[residual]
            lost = lost + by_reduction[reduction]
        total = np.where(fits < len(PERCENTS), lost + self._lost["ffn"][np.minimum(fits, len(PERCENTS) - 1)], np.inf)
        if not np.isfinite(total).any():
            return None
        a, r = (int(n) for n in np.unravel_index(np.argmin(total), total.shape))
        chosen = (residual, int(attention[a]), int(fits[a, r]), int(reduction[r]))
        return float(total[a, r]), dict(zip(self._components, chosen, strict=False))

    def _tried(self, residual: int, stock: bool) -> tuple[np.ndarray, np.ndarray]:
        """The percents of attention (a,) and of reductions (r,) that are tried at a percent of the residual."""
        only = np.array([residual])
        return only if stock else PERCENTS, PERCENTS if "reduction" in self._components and not stock else only

    def _costs_at(self, name: str, residual: int, stock: bool) -> tuple[np.ndarray, np.ndarray]:
        """The cost (a, r) of all but the FFNs, and that of the FFNs (percents,), falling; once for all budgets."""
        key = (name, residual, stock)
        if key not in self._costs:
            a, r = self._tried(residual, stock)
            whole = np.arange(len(PERCENTS))
            places = {"residual": np.array(residual), "attention": a[:, None], "reduction": r, "ffn": whole}
            widths: dict[str, np.ndarray] = {}
            for group in self._shape.groups:
                by_percent = self._widths[group.key]
                if group.component == "reduction":  # at the residual's percent as wide as stock timm builds
                    by_percent = by_percent.copy()
                    by_percent[residual] = self._shared[group.key][residual]
                widths[group.key] = by_percent[places[group.component]]
            self._costs[key] = self._counted(self._models[name], widths) if name in COUNTS else self._timed(widths)
        return self._costs[key]

    def _counted(self, model: CostModel, widths: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        residual = {key: width for key, width in widths.items() if key.startswith("residual")}
        ffn = {key: width for key, width in widths.items() if key.startswith("ffn")}
        without = {key: width for key, width in widths.items() if key not in ffn}
        return model.at(without), model.at(residual | ffn) - model.at(residual)

    def _timed(self, widths: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        assert self._latency is not None
        shape, halves = self._shape, dict[tuple[int, BlockShape], tuple[np.ndarray, np.ndarray]]()
        dims = [int(widths[group.key]) for group in shape.groups_of("residual")]
        others, ffn = self._latency.fixed(dims), np.zeros(len(PERCENTS))
        for b, block in enumerate(shape.blocks):
            stage = shape.stage_of(b)
            if (kind := (stage, block)) not in halves:
                A, R, H = widths[f"attention.{b}"], widths.get(f"reduction.{b}", 0), widths[f"ffn.{b}"]
                halves[kind] = (
                    self._latency.attention(stage, dims[stage], block.num_heads, A, R),
                    self._latency.ffn(stage, dims[stage], H),
                )
            others, ffn = others + halves[kind][0], ffn + halves[kind][1]
        return others, np.minimum.accumulate(ffn)  # an odd width may take longer than a larger one
