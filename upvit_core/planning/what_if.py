"""The what-if: how much of each component to remove, and the plan that follows from it.

Pure: the same settings and the same records give the same plan, on a page, on the command line or in a script. The
shares are spread over the blocks equally, by one ranking (`ALLOCATIONS`), or block by block, as widths in a short text.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, Literal, cast

from upvit_core.planning.allocate import Allocation as RatioAllocation
from upvit_core.planning.allocate import Per, plan_allocated
from upvit_core.planning.curves import Widths
from upvit_core.planning.depth import ORDERS, Order, plan_depth
from upvit_core.planning.depth_records import DepthRecords
from upvit_core.planning.ratios import PRESETS, plan_uniform, presets_for
from upvit_core.planning.widths import parse_widths, plan_from_widths, write_widths
from upvit_core.records.basis import Basis
from upvit_core.records.plan import PruningPlan
from upvit_core.records.ratios import NAMES, Ratios
from upvit_core.records.scores import ImportanceScores
from upvit_core.records.shape import ModelShape, common_head_counts

Allocation = Literal["uniform", "isomorphic", "global", "widths"]
ALLOCATIONS: dict[Allocation, str] = {
    "uniform": "Equal",
    "isomorphic": "By kind",
    "global": "One threshold",
    "widths": "Block by block",
}
SLIDERS = ("residual", "attention", "heads", "ffn", "reduction")
SliderValues = tuple[float | None, ...]
ROUNDINGS = (1, 8, 16)
MAX_REMOVED_PERCENT = 95
MAX_CACHED_PLANS = 40  # a plan of DeiT-B takes 2 MB


@dataclass(frozen=True)
class WhatIf:
    """Percent removed of each component, and the heads that stay (None: as they are, in every block).

    `basis`: channels or directions of a rotated basis; `repair`: least squares after the cut. `allocation` spreads the
    ratios over the blocks; with `widths`, a text as `planning.widths` writes it, the plan has those widths and the
    percents are only near. Widths are multiples of `round_to`. `reduction`: percent of spatial reductions, None where
    the model has none or they go with the residual. `depth`: blocks that stay, None for all; a record of block removals
    names them, and `order` says which record was scored first.
    """

    residual: float
    attention: float
    heads: int | None
    ffn: float
    basis: Basis = Basis.CHANNELS
    repair: bool = False
    allocation: Allocation = "uniform"
    round_to: int = 1
    widths: str = ""
    reduction: float | None = None
    depth: int | None = None
    order: Order = "together"

    @classmethod
    def from_request(cls, requested: Mapping[str, Any], *, basis: Basis, repair: bool) -> WhatIf | None:
        """The settings of a plan by its `requested`; None where it came from widths, a preset or a budget."""
        if (ratios := Ratios.requested(requested)) is None:
            return None
        heads = requested.get("heads")
        if isinstance(heads, list) and heads.count(heads[0]) == len(heads):
            heads = heads[0]
        allocation: Allocation = next((name for name in ALLOCATIONS if name == requested.get("allocation")), "uniform")
        order: Order = next((name for name in ORDERS if name == requested.get("order")), "together")
        wholes = (heads, requested.get("round_to"), requested.get("depth"))
        heads, round_to, depth = (number if type(number) is int else None for number in wholes)
        asked = cls(0, 0, heads, 0, basis, repair, allocation, round_to or 1, depth=depth, order=order)
        return asked.with_percents({name: round(percent) for name, percent in ratios.percents.items()})

    def with_percents(self, percents: Mapping[str, float], **settings: Any) -> WhatIf:
        """The same with these percents removed, by component, and with other `settings`."""
        changes: dict[str, Any] = {**percents, **settings}
        return replace(self, **changes)

    @property
    def slider_values(self) -> SliderValues:
        """The numbers at which the sliders stand, in the order of `SLIDERS`; a reduction only where it has one."""
        return tuple(getattr(self, name) for name in SLIDERS if name in self.percents or name == "heads")

    @property
    def percents(self) -> dict[str, float]:
        """Percent removed by component, without a reduction that goes with the residual or that the model lacks."""
        return {name: percent for name in NAMES if (percent := getattr(self, name)) is not None or name != "reduction"}

    @property
    def words(self) -> str:
        parts = ["/".join(f"{percent:g}" for percent in self.percents.values()) + " %"]
        if self.heads:
            parts.append(f"{self.heads} head{'s' if self.heads != 1 else ''}")
        if self.allocation != "uniform":
            parts.append("block by block" if self.allocation == "widths" else self.allocation)
        if self.round_to > 1:
            parts.append(f"multiples of {self.round_to}")
        parts += ["directions"] * (self.basis == Basis.DIRECTIONS) + ["repaired"] * self.repair
        if self.depth:
            parts.append(f"{self.depth} block{'s' if self.depth != 1 else ''}")
            parts += [self.order] * (self.order != "together")
        return ", ".join(parts)

    def plan(self, scores: ImportanceScores, records: DepthRecords | None = None) -> PruningPlan:
        """The plan of these settings as far as the model and its scores allow them, at the nearest legal widths.

        records: block removals for a lesser depth; without them, or where none of them leads to that depth, all blocks
        stay. Until the record that `order` needs has been scored, both cuts are taken on the whole model.
        """
        plan = self._cached_widths(scores)
        if records is None or self.depth is None or self.depth >= plan.shape_before.depth:
            return plan
        removals = records.of_model(plan.model_digest)
        if removals is None or removals.least_depth > self.depth or removals.shape.blocks != plan.shape_before.blocks:
            return plan
        if self.order == "depth first" and plan.basis == Basis.CHANNELS:
            shallow = records.at_depth(removals, self.depth)
            if shallow is not None:
                return plan_depth(self._cached_widths(shallow), removals, self.depth)
        if self.order == "width first" and plan.basis == Basis.CHANNELS:
            removals = records.after_widths(plan) or removals
        return plan_depth(plan, removals, self.depth)

    def _cached_widths(self, scores: ImportanceScores) -> PruningPlan:
        names = (scores.digest, scores.model, scores.model_digest, scores.basis)
        return _plan_widths(self.adapted_to(scores), _Scores(names, scores.shape, scores))

    def adapted_to(self, scores: ImportanceScores) -> WhatIf:
        """These settings without what the model or its scores rule out."""
        if scores.shape.one_share:
            reduction = None if self.reduction == self.residual else self.reduction
            return replace(self, basis=Basis.CHANNELS, allocation="uniform", round_to=1, widths="", reduction=reduction)
        follows = scores.shape.has_directions and scores.basis == Basis.CHANNELS
        basis = self.basis if follows else scores.basis
        equal = self.allocation == "widths" or scores.criterion == "none"
        return replace(self, basis=basis, allocation="uniform" if equal else self.allocation, reduction=None)

    def plan_widths(self, scores: ImportanceScores, *, snap: bool = True, per: Per = "channel") -> PruningPlan:
        """All blocks at the widths of exactly these settings.

        `snap`: equal ratios are taken to the nearest widths that the heads divide; else such widths are an error.
        `per`: see `plan_allocated`. Raises PlanError where the model or its scores do not allow the settings.
        """
        if self.widths:
            return plan_from_widths(scores, self.widths, basis=self.basis)
        ratios = Ratios(**{name: percent / 100 for name, percent in self.percents.items()})
        if self.allocation == "uniform" and self.round_to == 1:
            return plan_uniform(scores, ratios, heads=self.heads, snap=snap, basis=self.basis)
        spread, round_to = cast(RatioAllocation, self.allocation), self.round_to
        return plan_allocated(
            scores, ratios, heads=self.heads, allocation=spread, per=per, round_to=round_to, basis=self.basis
        )


@dataclass(frozen=True)
class _Scores:
    """Scores by what a plan takes from them, so that equal ones are one."""

    names: tuple[str, ...]
    shape: ModelShape
    scores: ImportanceScores = field(compare=False)


@lru_cache(MAX_CACHED_PLANS)
def _plan_widths(what_if: WhatIf, scores: _Scores) -> PruningPlan:
    return what_if.plan_widths(scores.scores)


def head_options(shape: ModelShape) -> tuple[int, ...]:
    """Legal head counts, ascending; empty where the blocks have different numbers of heads."""
    return tuple(sorted(common_head_counts(shape.blocks))) if shape.num_heads else ()


def default_what_if(shape: ModelShape, *, weights: bool = False, images: bool = False) -> WhatIf:
    """Half of everything, and half of the heads where that divides.

    Where directions can be cut, a model with weights keeps its heads, and with images too it is rotated and repaired.
    """
    options = head_options(shape)
    if weights and shape.has_directions:
        basis = Basis.DIRECTIONS if images else Basis.CHANNELS
        return WhatIf(50, 50, shape.num_heads if options else None, 50, basis, repair=images)
    half = (shape.num_heads or 0) // 2
    heads = half if half in options and shape.num_heads == 2 * half else shape.num_heads
    return WhatIf(50, 50, heads if options else None, 50, reduction=50 if "reduction" in shape.components else None)


def preset_what_ifs(shape: ModelShape, start: WhatIf | None = None) -> dict[str, WhatIf]:
    """Named what-ifs that this model allows; those without a model's name keep the heads of `start`."""
    reduces = "reduction" in shape.components
    presets: dict[str, WhatIf] = {}
    for name in presets_for(shape):
        target = PRESETS[name]
        small, full = target.blocks[0], shape.blocks[0]
        label = {"deit_small": "DeiT-S", "deit_tiny": "DeiT-T"}.get(name, name.replace("pvt_v2_b", "PVTv2-B"))
        residual = _percent_removed(target.embed_dim, shape.embed_dim)
        attention, ffn = _percent_removed(small.attention, full.attention), _percent_removed(small.ffn, full.ffn)
        presets[label] = WhatIf(residual, attention, target.num_heads, ffn, reduction=residual if reduces else None)
    heads = (start or default_what_if(shape)).heads
    for percent in (25, 50, 75):
        candidate = WhatIf(percent, percent, heads, percent, reduction=percent if reduces else None)
        if candidate not in presets.values():
            presets[f"{percent} %"] = candidate
    return presets


def _percent_removed(kept: int, full: int) -> int:
    return round(100 * (1 - kept / full))


def is_legal(what_if: WhatIf, shape: ModelShape) -> bool:
    """True where the sliders of this model can show a what-if from a file. Raises PlanError for illegal widths."""

    def whole(value: object, low: int, high: int) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high

    choices: tuple[tuple[object, tuple[object, ...]], ...] = (
        (what_if.heads, (None, *head_options(shape))),
        (what_if.basis, tuple(Basis)),
        (what_if.repair, (True, False)),
        (what_if.allocation, tuple(ALLOCATIONS)),
        (what_if.round_to, ROUNDINGS),
        (what_if.order, ORDERS),
    )
    legal = all(whole(percent, 0, MAX_REMOVED_PERCENT) for percent in what_if.percents.values())
    legal = legal and all(type(value) in map(type, options) and value in options for value, options in choices)
    legal = legal and (what_if.depth is None or whole(what_if.depth, len(shape.depths), shape.depth - 1))
    if legal and what_if.widths:
        parse_widths(what_if.widths, shape)
    return legal and isinstance(what_if.widths, str)


def what_if_from_widths(widths: Widths, shape: ModelShape, now: WhatIf) -> WhatIf:
    """These widths as a what-if: the sliders stand at the shares they remove on the whole."""

    def percent(kept: int, full: int) -> int:
        return min(_percent_removed(kept, full), MAX_REMOVED_PERCENT)

    heads = {h for h, _, _ in widths.blocks}
    common = heads.pop() if len(heads) == 1 else None
    return replace(
        now,
        residual=percent(widths.embed_dim, shape.embed_dim),
        attention=percent(sum(a for _, a, _ in widths.blocks), sum(b.attention for b in shape.blocks)),
        ffn=percent(sum(f for _, _, f in widths.blocks), sum(b.ffn for b in shape.blocks)),
        heads=common if common in head_options(shape) else now.heads,
        allocation="widths",
        widths=write_widths(widths),
    )
