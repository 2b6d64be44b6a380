"""The what-if: how much of each component to remove, and the plan that follows from it.

Pure: the same settings and the same records give the same plan, on a page, on the command line or in a script. The
shares are spread over the blocks equally, by one ranking (`ALLOCATIONS`), or block by block, as widths in a short text.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Literal, get_args

from upvit_core.planning.allocate import plan_allocated
from upvit_core.planning.curves import Widths
from upvit_core.planning.depth import plan_depth
from upvit_core.planning.depth_records import DepthRecords
from upvit_core.planning.ratios import PRESETS, plan_uniform, presets_for
from upvit_core.planning.widths import parse_widths, plan_from_widths, write_widths
from upvit_core.records.plan import PruningPlan
from upvit_core.records.scores import ImportanceScores
from upvit_core.records.shape import ModelShape, common_head_counts

Basis = Literal["channels", "directions"]
Order = Literal["together", "depth first", "width first"]
Allocation = Literal["uniform", "isomorphic", "global", "widths"]
ALLOCATIONS: dict[Allocation, str] = {
    "uniform": "Equal", "isomorphic": "By kind", "global": "One threshold", "widths": "Block by block",
}  # fmt: skip
ROUNDINGS = (1, 8, 16)
MOST = 95
MOST_PLANS = 40  # a plan of DeiT-B takes 2 MB


@dataclass(frozen=True)
class WhatIf:
    """Percent removed of each component, and the heads that stay (None: as they are, in every block).

    `basis` says what is removed: channels, or directions of a rotated basis; `repair`, whether least squares mend it.
    `allocation` spreads the ratios over the blocks; with `widths` it is the text of `planning.widths` that decides, and
    the percents are only near. Widths are multiples of `round_to`. `reduction`: percent of spatial reductions, None
    where the model has none. `depth`: blocks that stay, None for all; a record of block removals says which, and
    `order` what was scored first.
    """

    residual: int
    attention: int
    heads: int | None
    ffn: int
    basis: Basis = "channels"
    repair: bool = False
    allocation: Allocation = "uniform"
    round_to: int = 1
    widths: str = ""
    reduction: int | None = None
    depth: int | None = None
    order: Order = "together"

    @property
    def words(self) -> str:
        heads = f", {self.heads} head{'s' if self.heads != 1 else ''}" if self.heads else ""
        spread = {"uniform": "", "widths": ", block by block"}.get(self.allocation, f", {self.allocation}")
        multiple = f", multiples of {self.round_to}" if self.round_to > 1 else ""
        way = (", directions" if self.basis == "directions" else "") + (", repaired" if self.repair else "")
        last = "" if self.reduction is None else f"/{self.reduction}"
        blocks = f", {self.depth} block{'s' if self.depth != 1 else ''}" if self.depth else ""
        blocks += f", {self.order}" if self.depth and self.order != "together" else ""
        return f"{self.residual}/{self.attention}/{self.ffn}{last} %{heads}{spread}{multiple}{way}{blocks}"

    @property
    def percents(self) -> tuple[int, int, int | None, int]:
        """The four that sliders set."""
        return self.residual, self.attention, self.heads, self.ffn

    def plan(self, scores: ImportanceScores, records: DepthRecords | None = None) -> PruningPlan:
        """The plan of these settings, at the nearest widths that the heads divide.

        records: where block removals are looked up for a lesser depth; without them, or where none of them leads to
        that depth, all blocks stay. Until what `order` needs has been scored, both cuts are taken on the whole model.
        """
        plan = self._cached_widths(scores)
        if records is None or self.depth is None or self.depth >= plan.shape_before.depth:
            return plan
        found = records.of_model(plan.model_digest)
        if found is None or found.least_depth > self.depth or found.shape.blocks != plan.shape_before.blocks:
            return plan
        if self.order == "depth first" and plan.basis == "channels":
            shallow = records.at_depth(found, self.depth)
            if shallow is not None:
                return plan_depth(self._cached_widths(shallow), found, self.depth)
        if self.order == "width first" and plan.basis == "channels":
            thin = records.after_widths(plan)
            if thin is not None:
                return plan_depth(plan, thin, self.depth)
        return plan_depth(plan, found, self.depth)

    def _cached_widths(self, scores: ImportanceScores) -> PruningPlan:
        """`widths_of`, made once for all that ask for the same."""
        names = (scores.digest, scores.model, scores.model_digest, scores.basis)
        return _made(self, _Scores(names, scores.shape, scores))

    def widths_of(self, scores: ImportanceScores) -> PruningPlan:
        """All blocks, at the nearest legal widths."""
        if scores.shape.one_share:
            reduction = None if self.reduction in (None, self.residual) else self.reduction / 100
            return plan_uniform(
                scores, residual=self.residual / 100, attention=self.attention / 100, ffn=self.ffn / 100,
                reduction=reduction, heads=self.heads, snap=True,
            )  # fmt: skip
        basis = self.basis if scores.shape.has_directions and scores.basis == "channels" else scores.basis
        if self.widths:
            return plan_from_widths(scores, self.widths, basis=basis)
        ratios = {"residual": self.residual / 100, "attention": self.attention / 100, "ffn": self.ffn / 100}
        allocation = "uniform" if self.allocation == "widths" or scores.criterion == "none" else self.allocation
        if allocation == "uniform" and self.round_to == 1:
            return plan_uniform(scores, **ratios, heads=self.heads, snap=True, basis=basis)
        return plan_allocated(
            scores, **ratios, heads=self.heads, allocation=allocation, round_to=self.round_to, basis=basis
        )


@dataclass(frozen=True)
class _Scores:
    """Scores by what a plan takes from them, so that equal ones are one."""

    names: tuple[str, ...]
    shape: ModelShape
    scores: ImportanceScores = field(compare=False)


@lru_cache(MOST_PLANS)
def _made(what_if: WhatIf, known: _Scores) -> PruningPlan:
    return what_if.widths_of(known.scores)


def head_options(shape: ModelShape) -> tuple[int, ...]:
    """Legal head counts, ascending; empty where the blocks have different numbers of heads."""
    return tuple(sorted(common_head_counts(shape.blocks))) if shape.num_heads else ()


def default_what_if(shape: ModelShape) -> WhatIf:
    """Half of everything, and half of the heads where that divides."""
    options = head_options(shape)
    half = (shape.num_heads or 0) // 2
    heads = half if half in options and shape.num_heads == 2 * half else shape.num_heads
    return WhatIf(50, 50, heads if options else None, 50, reduction=50 if "reduction" in shape.components else None)


def preset_what_ifs(shape: ModelShape) -> dict[str, WhatIf]:
    """Named what-ifs that this model allows."""
    found: dict[str, WhatIf] = {}
    for name in presets_for(shape):
        target = PRESETS[name]
        block, own = target.blocks[0], shape.blocks[0]
        label = {"deit_small": "DeiT-S", "deit_tiny": "DeiT-T"}.get(name, name.replace("pvt_v2_b", "PVTv2-B"))
        residual = round(100 * (1 - target.embed_dim / shape.embed_dim))
        found[label] = WhatIf(
            residual,
            round(100 * (1 - block.attention / own.attention)),
            target.num_heads,
            round(100 * (1 - block.ffn / own.ffn)),
            reduction=residual if "reduction" in shape.components else None,
        )
    heads = shape.num_heads
    start = default_what_if(shape)
    for share in (25, 50, 75):
        kept = heads if share == 25 else start.heads
        candidate = WhatIf(share, share, kept, share, reduction=share if "reduction" in shape.components else None)
        if candidate not in found.values():
            found[f"{share} %"] = candidate
    return found


def is_legal(what_if: WhatIf, shape: ModelShape) -> bool:
    """Whether controls of this model can stand so, for what-ifs from files. Raises PlanError for widths of another."""

    def whole(value: object, low: int, high: int) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high

    shares = [what_if.residual, what_if.attention, what_if.ffn]
    shares += [what_if.reduction] if what_if.reduction is not None else []  # fmt: skip
    choices = (
        (what_if.heads, (None, *head_options(shape))), (what_if.basis, get_args(Basis)),
        (what_if.repair, (True, False)), (what_if.allocation, tuple(ALLOCATIONS)), (what_if.round_to, ROUNDINGS),
        (what_if.order, get_args(Order)),
    )  # fmt: skip
    legal = all(whole(share, 0, MOST) for share in shares)
    legal = legal and all(type(value) in map(type, known) and value in known for value, known in choices)
    legal = legal and (what_if.depth is None or whole(what_if.depth, len(shape.depths), shape.depth - 1))
    if legal and what_if.widths:
        parse_widths(what_if.widths, shape)
    return legal and isinstance(what_if.widths, str)


def what_if_from_widths(widths: Widths, shape: ModelShape, now: WhatIf, allocation: Allocation = "widths") -> WhatIf:
    """These widths as a what-if: the sliders stand at the shares they remove on the whole."""

    def percent(kept: int, full: int) -> int:
        return min(round(100 * (1 - kept / full)), MOST)

    heads = {h for h, _, _ in widths.blocks}
    common = heads.pop() if len(heads) == 1 else None
    return replace(
        now,
        residual=percent(widths.embed_dim, shape.embed_dim),
        attention=percent(sum(a for _, a, _ in widths.blocks), sum(b.attention for b in shape.blocks)),
        ffn=percent(sum(f for _, _, f in widths.blocks), sum(b.ffn for b in shape.blocks)),
        heads=common if common in head_options(shape) else now.heads,
        allocation=allocation,
        widths=write_widths(widths),
    )
