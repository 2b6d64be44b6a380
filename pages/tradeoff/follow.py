"""Values that follow a slider while it is dragged: the browser computes them from formulas and a table of the map."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import streamlit as st
from streamlit.components.v2.types import ComponentRenderer

from pages.services import maps
from pages.services.open_model import OpenModel
from upvit_core.figures.browser import text_of
from upvit_core.figures.theme import COLOURS
from upvit_core.mapping.table import estimate_table
from upvit_core.planning.live_counts import live_counts
from upvit_core.planning.what_if import WhatIf, head_options
from upvit_core.records.plan import PruningPlan
from upvit_core.records.shape import ModelShape

PERCENTS = (0, 10, 20, 30, 40, 50, 60, 70, 80, 90, 95)
"""The grid of the table, along each share."""
HERE = Path(__file__).parent / "browser"


def follower(model: OpenModel, now: WhatIf, plan: PruningPlan, known: maps.Known | None) -> None:
    """Listen to the sliders; plans of equal shares alone have formulas."""
    plain = now.allocation == "uniform" and now.round_to == 1 and now.depth is None and not now.widths
    data: dict[str, Any] | None = None
    if plain:
        shape, options = model.shape, head_options(model.shape)
        widest = {c: shape.groups_of(c)[0].width for c in shape.components}
        cost, loss = st.session_state.get("cost"), st.session_state.get("loss")
        by_value = loss in (None, model.task.name) and model.has_weights
        data = {
            "model": live_counts(shape),
            "heads": list(options) if len(options) > 1 else [now.heads or 0] if options else [],
            "shown": now.heads or 0,
            "veil": None if shape.one_share else [
                {"component": c, "width": widest[c], "colour": COLOURS[c]} for c in shape.components
            ],
            "table": None if known is None else table_of(known, shape, now.heads),
            "front": {None: "params", "Parameters": "params", "MACs": "macs"}.get(cost) if by_value else None,
            "task": {"sign": model.task.sign},
        }  # fmt: skip
    _component()(key="follow", data=data)


@cache
def _component() -> ComponentRenderer:
    css = (HERE / "follow.css").read_text(encoding="utf-8")
    js = text_of("counts.js") + (HERE / "follow.js").read_text(encoding="utf-8")
    return st.components.v2.component("tradeoff_follow", html="<span></span>", css=css, js=js, isolate_styles=False)


def table_of(known: maps.Known, shape: ModelShape, heads: int | None) -> dict[str, Any] | None:
    """The map's value at every grid point of the shares, with these heads."""
    return _table(known.record.digest, heads, _Known(known, shape))


class _Known:
    """A map and its shape, which say nothing in a key."""

    def __init__(self, known: maps.Known, shape: ModelShape):
        self.known, self.shape = known, shape


@st.cache_resource(max_entries=24, show_spinner=False)
def _table(digest: str, heads: int | None, _of: _Known) -> dict[str, Any]:
    known, percents = _of.known, dict.fromkeys(_of.shape.components, PERCENTS)
    values = np.round(estimate_table(known.surrogate, known.worth, _of.shape, heads, percents).value, 2)
    cuts = len(known.record.cuts)
    return {
        "percents": percents, "axes": _of.shape.components, "heads": heads or 0, "values": values.tolist(), "cuts": cuts
    }  # fmt: skip
