"""The what-if: four numbers that say how much to remove, the same on every page and carried by the link.

How they are spread over the blocks is part of it: equally, by one ranking (`ALLOCATIONS`), or block by block, as widths
in a short text that a budget or the table of blocks gave.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, Literal, get_args

import streamlit as st

from pages.shared import block_records
from upvit_core.errors import PlanError
from upvit_core.importance.scores import ImportanceScores
from upvit_core.models.shape import ModelShape
from upvit_core.planning.allocate import plan_allocated
from upvit_core.planning.curves import Widths
from upvit_core.planning.heads import common_head_counts
from upvit_core.planning.plan import PruningPlan
from upvit_core.planning.select import PRESETS, plan_uniform, presets_for
from upvit_core.planning.widths import parse_widths, plan_from_widths, write_widths

Basis = Literal["channels", "directions"]
Allocation = Literal["uniform", "isomorphic", "global", "widths"]
ALLOCATIONS: dict[Allocation, str] = {
    "uniform": "Equal", "isomorphic": "By kind", "global": "One threshold", "widths": "Block by block",
}  # fmt: skip
ROUNDINGS = (1, 8, 16)
CHANNELS, DIRECTIONS = "Channels", "Directions"
MOST = 95
KEYS = ("residual", "attention", "heads", "ffn")
SAVED = "what_if"
WIDTHS = "widths-now"
SPREAD = {"allocation": "allocation", "round-to": "round_to", "widths": "widths"}
NAMED = {name: key for key, name in ALLOCATIONS.items()}
ALL_BLOCKS = 1_000_000  # more than any model has: the slider of the depth then goes to its end
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
    order: block_records.Order = "together"

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

    def plan(self, scores: ImportanceScores) -> PruningPlan:
        """Widths are taken to the nearest that the heads divide."""
        return block_records.shallower(self._widths(scores), self.depth, self.order, self._widths)

    def _widths(self, scores: ImportanceScores) -> PruningPlan:
        """Made once for all pages and sessions that ask for the same."""
        return _made(
            self, _Scores((scores.digest, scores.model, scores.model_digest, scores.basis), scores.shape, scores)
        )

    def widths_of(self, scores: ImportanceScores) -> PruningPlan:
        """All blocks, at the nearest legal widths."""
        if scores.shape.one_share:
            reduction = None if self.reduction in (None, self.residual) else self.reduction / 100  # type: ignore[operator]
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


def default(shape: ModelShape) -> WhatIf:
    """Half of everything, and half of the heads where that divides."""
    options = head_options(shape)
    half = (shape.num_heads or 0) // 2
    heads = half if half in options and shape.num_heads == 2 * half else shape.num_heads
    return WhatIf(50, 50, heads if options else None, 50, reduction=50 if "reduction" in shape.components else None)


def keys_of(shape: ModelShape) -> tuple[str, ...]:
    """The sliders that this model has."""
    return KEYS + (("reduction",) if "reduction" in shape.components else ())


def presets(shape: ModelShape) -> dict[str, WhatIf]:
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
    start = default(shape)
    for share in (25, 50, 75):
        kept = heads if share == 25 else start.heads
        candidate = WhatIf(share, share, kept, share, reduction=share if "reduction" in shape.components else None)
        if candidate not in found.values():
            found[f"{share} %"] = candidate
    return found


def current(shape: ModelShape) -> WhatIf:
    """The what-if as it stands: the sliders', else the one left on another page, else the link's, else the default."""
    start = default(shape)
    saved: WhatIf | None = st.session_state.get(SAVED)
    values = {}
    for key in keys_of(shape):
        value = st.session_state.get(key)
        if value is None and saved is not None:
            value = getattr(saved, key)
        if value is None:
            value = st.query_params.get(key)
        values[key] = _legal(key, value, shape, getattr(start, key))
    way = st.session_state.get("basis") or (saved.basis if saved else None) or st.query_params.get("basis")
    basis: Basis = "directions" if way in ("directions", DIRECTIONS) else "channels"
    repair = st.session_state.get("repair")
    if repair is None:
        repair = saved.repair if saved else st.query_params.get("repair") == "true"
    depth = st.session_state.get("depth")
    if depth is None:
        depth = saved.depth if saved is not None else st.query_params.get("depth")
    spread = _spread(shape, tuple(values[key] for key in KEYS))
    return WhatIf(**values, basis=basis, repair=bool(repair), **spread, depth=_depth(depth, shape), order=_order(saved))


def _order(saved: WhatIf | None) -> block_records.Order:
    value = st.session_state.get("order-of-cuts") or (saved.order if saved else st.query_params.get("order-of-cuts"))
    return next((order for order in get_args(block_records.Order) if value == order), "together")


def _depth(value: object, shape: ModelShape) -> int | None:
    """A number of blocks less than the model's; None for all of them, and for nonsense."""
    try:
        number = int(float(str(value)))
    except ValueError:
        return None
    return number if len(shape.depths) <= number < shape.depth else None


def _spread(shape: ModelShape, percents: tuple[int | None, ...]) -> dict[str, Any]:
    """Allocation, rounding and widths as they stand; widths only as long as no slider has moved since they were set."""
    saved: WhatIf | None = st.session_state.get(SAVED)

    def found(key: str, otherwise: Any) -> Any:
        value = st.session_state.get(key)
        if value is None:
            value = getattr(saved, SPREAD[key]) if saved is not None else st.query_params.get(key)
        return otherwise if value is None else value

    allocation = NAMED.get(found("allocation", "uniform"), found("allocation", "uniform"))
    allocation = allocation if allocation in ALLOCATIONS else "uniform"
    rounding = str(found("round-to", 1))
    round_to = int(rounding) if rounding in map(str, ROUNDINGS) else 1
    widths, at = st.session_state.get(WIDTHS) or (found("widths", ""), percents)
    try:
        if widths:
            parse_widths(widths, shape)
    except PlanError:
        widths = ""
    if allocation != "widths" or at != percents:
        widths = ""
    return {"allocation": allocation, "round_to": round_to, "widths": widths}


def _legal(key: str, value: object, shape: ModelShape, otherwise: int | None) -> int | None:
    try:
        number = int(float(str(value)))
    except (ValueError, OverflowError):
        return otherwise
    if key == "heads":
        return number if number in head_options(shape) else otherwise
    return number if 0 <= number <= MOST else otherwise


def is_legal(what_if: WhatIf, shape: ModelShape) -> bool:
    """Whether controls of this model can stand so, for what-ifs from files. Raises PlanError for widths of another."""

    def whole(value: object, low: int, high: int) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high

    shares = [what_if.residual, what_if.attention, what_if.ffn]
    shares += [what_if.reduction] if what_if.reduction is not None else []  # fmt: skip
    choices = (
        (what_if.heads, (None, *head_options(shape))), (what_if.basis, get_args(Basis)),
        (what_if.repair, (True, False)), (what_if.allocation, tuple(ALLOCATIONS)), (what_if.round_to, ROUNDINGS),
        (what_if.order, get_args(block_records.Order)),
    )  # fmt: skip
    legal = all(whole(share, 0, MOST) for share in shares)
    legal = legal and all(type(value) in map(type, known) and value in known for value, known in choices)
    legal = legal and (what_if.depth is None or whole(what_if.depth, len(shape.depths), shape.depth - 1))
    if legal and what_if.widths:
        parse_widths(what_if.widths, shape)
    return legal and isinstance(what_if.widths, str)


def set_to(what_if: WhatIf) -> None:
    """Move the sliders; to be called before they are drawn, or in a callback."""
    st.session_state[SAVED] = what_if
    for key in (*KEYS, "reduction"):
        value = getattr(what_if, key)
        if value is not None:
            st.session_state[key] = value
    st.session_state["basis"] = DIRECTIONS if what_if.basis == "directions" else CHANNELS
    st.session_state["repair"] = what_if.repair
    if what_if.depth is not None or "depth" in st.session_state:
        st.session_state["depth"] = what_if.depth or ALL_BLOCKS
    st.session_state["order-of-cuts"] = what_if.order
    st.session_state["allocation"] = ALLOCATIONS[what_if.allocation]
    st.session_state["round-to"] = what_if.round_to
    st.session_state[WIDTHS] = (what_if.widths, what_if.percents)


def of_widths(widths: Widths, shape: ModelShape, now: WhatIf, allocation: Allocation = "widths") -> WhatIf:
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
