"""The what-if: four numbers that say how much to remove, the same on every page and carried by the link.

How they are spread over the blocks is part of it: equally, by one ranking (`ALLOCATIONS`), or block by block, as widths
in a short text that a budget or the table of blocks gave.
"""

from __future__ import annotations

from typing import Any, get_args

import streamlit as st

from upvit_core.errors import PlanError
from upvit_core.planning.what_if import (
    ALLOCATIONS,
    MOST,
    ROUNDINGS,
    Basis,
    Order,
    WhatIf,
    default_what_if,
    head_options,
)
from upvit_core.planning.widths import parse_widths
from upvit_core.records.shape import ModelShape

CHANNELS, DIRECTIONS = "Channels", "Directions"
KEYS = ("residual", "attention", "heads", "ffn")
SAVED = "what_if"
WIDTHS = "widths-now"
SPREAD = {"allocation": "allocation", "round-to": "round_to", "widths": "widths"}
NAMED = {name: key for key, name in ALLOCATIONS.items()}
ALL_BLOCKS = 1_000_000  # more than any model has: the slider of the depth then goes to its end


def keys_of(shape: ModelShape) -> tuple[str, ...]:
    """The sliders that this model has."""
    return KEYS + (("reduction",) if "reduction" in shape.components else ())


def current(shape: ModelShape) -> WhatIf:
    """The what-if as it stands: the sliders', else the one left on another page, else the link's, else the default."""
    start = default_what_if(shape)
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


def _order(saved: WhatIf | None) -> Order:
    value = st.session_state.get("order-of-cuts") or (saved.order if saved else st.query_params.get("order-of-cuts"))
    return next((order for order in get_args(Order) if value == order), "together")


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
