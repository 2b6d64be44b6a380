"""The best equal shares of a model of stages under a budget: one ratio a component, the same in every stage and block.

Parameters and MACs of a staged model are not separable over all widths (a reduction multiplies the residual, stages
multiply their neighbours). With one ratio a component they are: at a given share of the residual, what attention with
its reductions costs adds to what the FFN costs. So every whole percent of residual, attention and reduction is tried,
and the FFN is the widest that fits. Exact over whole percents; counts are read off the closed forms of `profiling`.
The time of a pass is such a sum too, half-block by half-block.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from upvit_core.errors import PlanError
from upvit_core.planning.budget import format_budget
from upvit_core.planning.curves import predicted_loss
from upvit_core.planning.ratios import plan_uniform, uniform_widths
from upvit_core.profiling.macs import count_macs, count_parameters
from upvit_core.records.plan import PruningPlan
from upvit_core.records.scores import ImportanceScores
from upvit_core.records.shape import Component, ModelShape

PERCENTS = np.arange(96)  # removed
COUNTS: dict[str, Callable[[ModelShape], int]] = {"params": count_parameters, "macs": count_macs}


@dataclass(frozen=True)
class StagedBest:
    """The plan that loses least score within the limits; percents removed by component; counts of its shape.

    latency_ms: of one batch, where there is an estimate.
    """

    plan: PruningPlan
    percents: dict[str, int]
    predicted: float
    params: int
    macs: int
    latency_ms: float | None = None


class StagedLatency(Protocol):
    """Milliseconds of a forward pass at one batch size, as a sum over its parts; widths broadcast."""

    def fixed(self, embed_dims: Sequence[Any]) -> np.ndarray:
        """All but the blocks, for residual widths by stage."""

    def attention(self, stage: int, embed_dim: Any, heads: int, attention: Any, reduction: Any) -> np.ndarray:
        """The attention half of a block of a stage; reduction: 0 where there is none."""

    def ffn(self, stage: int, embed_dim: Any, widths: Any) -> np.ndarray:
        """The FFN half of a block of a stage."""

    def of(self, shape: ModelShape) -> float:
        """A whole shape."""


def best_shares(
    scores: ImportanceScores, limits: dict[str, float], *, stock: bool = False, tables: Tables | None = None,
    latency: StagedLatency | None = None,
) -> StagedBest:  # fmt: skip
    """limits: most `params`, `macs` and `latency_ms`, of one batch, whose size the latency estimate knows.

    `stock`: reductions and attention go with the residual, as stock timm builds. `tables` of the same scores and the
    same latency, where several budgets are asked for, are made once.

    Raises PlanError where a limit is none of these, latency has no estimate, or no plan meets them.
    """
    if unknown := sorted(set(limits) - {*COUNTS, "latency_ms"}):
        raise PlanError(f"There is no budget of {', '.join(unknown)}; give params, macs or latency_ms.")
    if "latency_ms" in limits and latency is None:
        raise PlanError("A latency budget needs this device's calibration; run `calibrate` first.")
    tables = Tables(scores, latency) if tables is None else tables
    best: tuple[float, dict[Component, int]] | None = None
    for residual in PERCENTS.tolist():
        found = tables.at(residual, limits, stock)
        if found is not None and (best is None or found[0] < best[0]):
            best = found
    if best is None:
        least_of_all = dict.fromkeys(scores.shape.components, int(PERCENTS[-1]))
        narrow = scores.shape.with_widths(uniform_widths(scores.shape, **_ratios(least_of_all), snap=True)[0])
        costs: dict[str, float] = {name: count(narrow) for name, count in COUNTS.items()}
        if latency is not None:
            costs["latency_ms"] = latency.of(narrow)
        least = ", ".join(f"{format_budget(costs[name])} {name}" for name in limits)
        asked = " and ".join(f"{name} {format_budget(limit)}" for name, limit in limits.items())
        raise PlanError(f"No plan of this kind of {scores.shape.name} is within {asked}; the narrowest has {least}.")
    plan = plan_uniform(scores, **_ratios(best[1]), snap=True)
    requested = {"budget": limits, "allocation": "stock" if stock else "uniform"}
    plan = plan.model_copy(update={"requested": {**plan.requested, **requested}})
    after = plan.shape_after
    percents = {str(component): percent for component, percent in best[1].items()}
    ms = None if latency is None else latency.of(after)
    return StagedBest(plan, percents, predicted_loss(scores, plan), count_parameters(after), count_macs(after), ms)


def _ratios(percents: dict[Component, int]) -> dict[str, Any]:
    """A reduction of the residual's percent is left out: it is as wide as the residual then, as stock timm builds."""
    own = percents["residual"]
    return {key: percent / 100 for key, percent in percents.items() if key != "reduction" or percent != own}


def percents_of(plan: PruningPlan) -> dict[str, int]:
    """The whole percents that a plan of equal shares removes, by component."""
    asked = plan.requested
    found = {key: round(100 * asked[key]) for key in ("residual", "attention", "ffn")}
    if "reduction" in plan.shape_before.components:
        found["reduction"] = round(100 * asked.get("reduction", asked["residual"]))
    return found


class Tables:
    """Widths by percent, the score lost at each, and costs built up from single components."""

    def __init__(self, scores: ImportanceScores, latency: StagedLatency | None = None):
        self.scores, self.shape, self.latency = scores, scores.shape, latency
        self.components = scores.shape.components
        empty: dict[str, Any] = dict.fromkeys(self.components, 0.0)
        self.widths: dict[str, np.ndarray] = {}
        for component in self.components:
            for percent in PERCENTS.tolist():
                found, _ = uniform_widths(self.shape, **{**empty, component: percent / 100}, snap=True)
                for group in self.shape.groups_of(component):
                    self.widths.setdefault(group.key, np.zeros(len(PERCENTS), int))[percent] = found[group.key]
        self.shared = {key: self.widths[key].copy() for key in self.widths if key.startswith("reduction")}
        for percent in PERCENTS.tolist() if self.shared else ():
            found, _ = uniform_widths(self.shape, residual=percent / 100, snap=True)
            for key in self.shared:
                self.shared[key][percent] = found[key]
        self.lost = {component: self._lost(component, self.widths) for component in self.components}
        self.lost_shared = self._lost("reduction", self.shared)
        self.known: dict[tuple[str, int, bool], tuple[float, np.ndarray]] = {}
        self.known_ffn: dict[tuple[str, int], np.ndarray] = {}

    def _lost(self, component: Component, widths: dict[str, np.ndarray]) -> np.ndarray:
        """Mean score lost at each percent, (percents,)."""
        total = np.zeros(len(PERCENTS))
        for group in self.shape.groups_of(component):
            heads = group.heads if component == "attention" else 1
            values = np.maximum(self.scores.values[group.key], 0).reshape(heads, -1)
            ascending = np.sort(values, axis=1).sum(0)
            running = np.concatenate([[0.0], np.cumsum(ascending)])
            total += running[(group.width - widths[group.key]) // heads]
        return total / self.scores.samples

    def _shape(self, residual: int, other: int) -> ModelShape:
        """Widths at these percents: of the residual, and of all else."""
        percents = {**dict.fromkeys(self.components, other), "residual": residual}
        return self.shape.with_widths(
            {g.key: int(self.widths[g.key][percents[g.component]]) for g in self.shape.groups}
        )

    def _reductions(self, key: str, residual: int) -> np.ndarray:
        """Widths by percent, at the residual's own percent the shared ones."""
        widths = self.widths[key].copy()
        widths[residual] = self.shared[key][residual]
        return widths

    def at(
        self, residual: int, limits: dict[str, float], stock: bool
    ) -> tuple[float, dict[Component, int]] | None:  # fmt: skip
        """The least loss at a share of the residual, and the percents that have it."""
        reduces = "reduction" in self.components
        attention = np.array([residual]) if stock else PERCENTS
        reduction = np.array([residual]) if stock or not reduces else PERCENTS
        fits = np.full((len(attention), len(reduction)), -1)  # the least percent of the FFN that meets every limit
        for name, limit in limits.items():
            whole, side = self._counted(name, residual, stock, attention, reduction)
            ffn = self._ffn_counted(name, residual)  # falls with the percent
            room = limit - whole - side
            fits = np.maximum(fits, np.searchsorted(-ffn, -room, side="left"))
        lost = self.lost["residual"][residual] + self.lost["attention"][attention][:, None]
        if reduces:
            least = self.lost["reduction"].copy()
            least[residual] = self.lost_shared[residual]
            lost = lost + least[reduction][None, :]
        else:
            lost = lost + np.zeros((1, len(reduction)))
        total = np.where(fits < len(PERCENTS), lost + self.lost["ffn"][np.minimum(fits, len(PERCENTS) - 1)], np.inf)
        if not np.isfinite(total).any():
            return None
        a, r = (int(n) for n in np.unravel_index(np.argmin(total), total.shape))
        chosen: dict[Component, int] = {
            "residual": residual, "attention": int(attention[a]), "ffn": int(fits[a, r]),
        }  # fmt: skip
        if reduces:
            chosen["reduction"] = int(reduction[r])
        return float(total[a, r]), chosen

    def _counted(
        self, name: str, residual: int, stock: bool, attention: np.ndarray, reduction: np.ndarray
    ) -> tuple[float, np.ndarray]:
        """`_attention_counts` or `_attention_time`, once for all budgets."""
        key = (name, residual, stock)
        if key not in self.known:
            self.known[key] = (
                self._attention_counts(COUNTS[name], residual, attention, reduction) if name in COUNTS
                else self._attention_time(residual, attention, reduction)
            )  # fmt: skip
        return self.known[key]

    def _ffn_counted(self, name: str, residual: int) -> np.ndarray:
        """`_ffn_counts` or `_ffn_time`, once for all budgets."""
        if (name, residual) not in self.known_ffn:
            self.known_ffn[name, residual] = (
                self._ffn_counts(COUNTS[name], residual) if name in COUNTS else self._ffn_time(residual)
            )
        return self.known_ffn[name, residual]

    def _ffn_time(self, residual: int) -> np.ndarray:
        """Milliseconds of the FFNs at each percent; (percents,), at most those at any smaller percent."""
        assert self.latency is not None
        dims, alike, total = self._shape(residual, 0).embed_dims, dict[Any, np.ndarray](), np.zeros(len(PERCENTS))
        for group in self.shape.groups_of("ffn"):
            stage, widths = self.shape.stage_of(group.place), self.widths[group.key]
            kind = (stage, group.width)
            if kind not in alike:
                alike[kind] = self.latency.ffn(stage, dims[stage], widths)
            total += alike[kind]
        return np.minimum.accumulate(total)  # an odd width may take longer than a larger one

    def _attention_time(
        self, residual: int, attention: np.ndarray, reduction: np.ndarray
    ) -> tuple[float, np.ndarray]:  # fmt: skip
        """Milliseconds of all but the blocks, and of the attention halves (a, r)."""
        assert self.latency is not None
        dims, alike = self._shape(residual, 0).embed_dims, dict[Any, np.ndarray]()
        total = np.zeros((len(attention), len(reduction)))
        for group in self.shape.groups_of("attention"):
            stage, block = self.shape.stage_of(group.place), self.shape.blocks[group.place]
            kind = (stage, block.num_heads, block.attention, block.reduction)
            if kind not in alike:
                R: Any = self._reductions(f"reduction.{group.place}", residual)[reduction] if block.reduction else 0
                A = self.widths[group.key][attention][:, None]
                alike[kind] = self.latency.attention(stage, dims[stage], block.num_heads, A, R)
            total += alike[kind]
        return float(self.latency.fixed(dims)), total

    def _ffn_counts(self, count: Callable[[ModelShape], int], residual: int) -> np.ndarray:
        """What the FFNs cost at each percent beyond what they cost at the last one; (percents,), falling."""
        # Linear in every width: two shapes tell the cost of a hidden channel of each block.
        slopes, alike = [], {}
        base = self._shape(residual, 0)
        whole = count(base)
        for group in self.shape.groups_of("ffn"):
            kind = base.stage_of(group.place), base.blocks[group.place]
            if kind not in alike:
                alike[kind] = whole - count(base.with_widths({group.key: base.blocks[group.place].ffn - 1}))
            slopes.append(alike[kind])
        keys = [group.key for group in self.shape.groups_of("ffn")]
        costs = sum(slope * self.widths[key] for slope, key in zip(slopes, keys, strict=True))
        return np.asarray(costs) - np.asarray(costs)[-1]

    def _attention_counts(
        self, count: Callable[[ModelShape], int], residual: int, attention: np.ndarray, reduction: np.ndarray
    ) -> tuple[int, np.ndarray]:
        """The count with the narrowest attention and FFN at this residual, and what wider attention adds (a, r)."""
        last = int(PERCENTS[-1])
        least = self._shape(residual, last)
        whole = count(least)
        side = np.zeros((len(attention), len(reduction)))
        alike: dict[Any, tuple[int, int, int]] = {}
        for group in self.shape.groups_of("attention"):
            b = group.place
            A = self.widths[group.key]
            has = bool(self.shape.blocks[b].reduction)
            R = self._reductions(f"reduction.{b}", residual) if has else np.zeros(len(PERCENTS), int)
            # Bilinear in attention and reduction width: four shapes tell it.
            kind = least.stage_of(b), least.blocks[b]
            if kind not in alike:
                at = [[count(self._one(least, b, a, r, has)) for r in (1, 2)] for a in (1, 2)]
                bent = at[1][1] - at[1][0] - at[0][1] + at[0][0]
                alike[kind] = at[1][0] - at[0][0] - bent, at[0][1] - at[0][0] - bent, bent
            per_a, per_r, cross = alike[kind]
            a, r = A[attention][:, None], R[reduction][None, :]
            a0, r0 = A[last], least.blocks[b].reduction
            side += per_a * (a - a0) + per_r * (r - r0) + cross * (a * r - a0 * r0)
        return whole, side

    @staticmethod
    def _one(shape: ModelShape, block: int, attention: int, reduction: int, has: bool) -> ModelShape:
        widths = {f"attention.{block}": attention}
        return shape.with_widths(widths | ({f"reduction.{block}": reduction} if has else {}))
