"""The what-if of this session: where the sliders stand, the same on every page and carried by the link."""

from dataclasses import replace

import streamlit as st

from pages.services.open_model import OpenModel
from pages.services.session import resolve, session
from upvit_core.errors import PlanError
from upvit_core.planning.depth import ORDERS, Order
from upvit_core.planning.what_if import (
    ALLOCATIONS,
    MAX_REMOVED_PERCENT,
    ROUNDINGS,
    SLIDERS,
    Allocation,
    SliderValues,
    WhatIf,
    default_what_if,
    head_options,
)
from upvit_core.planning.widths import parse_widths
from upvit_core.records.basis import Basis
from upvit_core.records.shape import ModelShape

CHANNELS, DIRECTIONS = "Cut as in the paper", "Rotate, cut, repair"
DIRECTIONS_WORDS = ("directions", "Directions", DIRECTIONS)
# Keys of widgets, and of the link. The sliders have those of the fields of WhatIf.
BASIS, REPAIR, DEPTH, ORDER = "basis", "repair", "depth", "order-of-cuts"
ALLOCATION, ROUND_TO, WIDTHS = "allocation", "round-to", "widths"
ALL_BLOCKS = 1_000_000  # more than any model has: the slider of the depth then goes to its end


def keys_of(shape: ModelShape) -> tuple[str, ...]:
    """The sliders that this model has."""
    return tuple(key for key in SLIDERS if key == "heads" or key in shape.components)


def start_of(model: OpenModel) -> WhatIf:
    """The what-if at which a visitor finds the model."""
    return default_what_if(model.shape, weights=model.has_weights, images=model.can_measure and not model.is_elastic)


def current(model: OpenModel) -> WhatIf:
    """The what-if of this session; illegal values count as the default."""
    shape, start, saved = model.shape, start_of(model), session().what_if

    def setting(key: str, attribute: str = "") -> object:
        return resolve(key, getattr(saved, attribute or key) if saved else None)

    percents = {key: _percent(setting(key), default) for key, default in start.percents.items()}
    heads = whole(setting("heads"))
    heads = heads if heads in head_options(shape) else start.heads
    asked, repair = setting(BASIS), setting(REPAIR)
    basis = start.basis if asked is None else Basis.DIRECTIONS if asked in DIRECTIONS_WORDS else Basis.CHANNELS
    depth = whole(resolve(DEPTH, saved.depth or ALL_BLOCKS if saved else None))
    order: Order = next((order for order in ORDERS if setting(ORDER, "order") == order), "together")
    round_to = whole(setting(ROUND_TO, "round_to"))
    what_if = start.with_percents(
        percents,
        heads=heads,
        basis=basis,
        repair=basis == Basis.DIRECTIONS if repair is None else repair in (True, "true"),
        round_to=round_to if round_to in ROUNDINGS else 1,
        depth=depth if depth is not None and len(shape.depths) <= depth < shape.depth else None,
        order=order,
    )
    if model.is_elastic:
        what_if = replace(what_if, heads=start.heads, basis=Basis.CHANNELS, repair=False, depth=None)
    allocation, widths = _spread(setting(ALLOCATION), setting(WIDTHS), shape, what_if.slider_values)
    return replace(what_if, allocation=allocation, widths=widths)


def _spread(asked: object, text: object, shape: ModelShape, sliders: SliderValues) -> tuple[Allocation, str]:
    """Allocation and widths of single blocks; widths hold only while no slider has moved since they were set."""
    allocation: Allocation = "uniform"
    for key, name in ALLOCATIONS.items():
        allocation = key if asked in (key, name) else allocation
    widths, at = session().widths or (str(text or ""), sliders)
    if allocation != "widths" or at != sliders:
        return allocation, ""
    try:
        if widths:
            parse_widths(widths, shape)
    except PlanError:
        widths = ""
    return allocation, widths


def whole(value: object) -> int | None:
    """A setting of a link as a whole number; None where it is none."""
    try:
        return int(float(str(value)))
    except (ValueError, OverflowError):
        return None


def _percent(value: object, default: float) -> float:
    number = whole(value)
    return number if number is not None and 0 <= number <= MAX_REMOVED_PERCENT else default


def remember(what_if: WhatIf) -> None:
    """Keep the what-if for pages that do not draw its sliders."""
    session().what_if, session().widths = what_if, (what_if.widths, what_if.slider_values)


def set_to(what_if: WhatIf) -> None:
    """Move the sliders; to be called before they are drawn, or in a callback."""
    remember(what_if)
    state = st.session_state
    for key in SLIDERS:
        value = getattr(what_if, key)
        if value is not None:
            state[key] = value
    state[BASIS] = DIRECTIONS if what_if.basis == "directions" else CHANNELS
    state[REPAIR] = what_if.repair
    if what_if.depth is not None or DEPTH in state:
        state[DEPTH] = what_if.depth or ALL_BLOCKS
    state[ORDER] = what_if.order
    state[ALLOCATION] = ALLOCATIONS[what_if.allocation]
    state[ROUND_TO] = what_if.round_to
