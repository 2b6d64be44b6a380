"""The map on Trade-off: how far it has grown, and the picture of what is left of the model over two sliders."""

from __future__ import annotations

import json
from dataclasses import astuple
from functools import partial
from typing import TypeVar

import numpy as np
import streamlit as st

from pages.services import device, maps
from pages.services.open_model import OpenModel
from pages.services.session import session
from pages.tradeoff.state import state
from pages.widgets import charts, progress
from upvit_core import units
from upvit_core.figures.contours import Axis, Surface, draw_map
from upvit_core.mapping.points import removed
from upvit_core.planning.what_if import MAX_REMOVED_PERCENT, WhatIf
from upvit_core.profiling.macs import count_macs
from upvit_core.records.map import CutPoint
from upvit_core.records.scores import ImportanceScores
from upvit_core.records.shape import Component, ModelShape

T = TypeVar("T")
STEP = 5
PERCENTS = np.arange(0, MAX_REMOVED_PERCENT + 1, STEP)
NEAR = 12
"""Measured cuts are drawn where every slider that is no axis is at most so many percent away."""


def map_section(model: OpenModel, scores: ImportanceScores, now: WhatIf) -> None:
    """Draw the map of these settings; it grows by itself for a small model, at a press for a large one."""
    job, known = maps.job_of(model, scores, now), maps.find(model, scores, now)
    full = known is not None and len(known.record.cuts) >= maps.STEPS[-1]
    with st.container(key="slot-map"):
        if (reading := maps.reading(model, scores, now)) is not None:
            progress.show(reading)
        elif (job is not None and job.active) or (job is not None and job.error):
            progress.show(job)
        elif model.can_measure and not full and (job is None or job.state == "cancelled"):
            _offer(model, scores, now, known)
    if known is None:
        if not model.can_measure:
            st.caption("A map is measured: it needs the model's weights and images.")
        return
    st.html(f'<p class="quiet">{_account(known)}</p>')
    if now.depth is None and not now.widths:
        _picture(model, scores, now, known)


def _offer(model: OpenModel, scores: ImportanceScores, now: WhatIf, known: maps.Known | None) -> None:
    cuts = maps.STEPS[-1]
    batch = device.batch_of(model)
    times = device.milliseconds(batch, model.shape)
    about = f", about {units.duration(cuts * times[0] / batch)} of passes at most" if times else ""
    help_text = (
        f"Cuts the model in up to {cuts} ways and measures each on 1,000 held-out {model.task.batch_items}{about}."
    )
    if st.button(
        "Go on measuring around" if known else "Measure around",
        icon=":material/explore:",
        key="grow-map",
        help=help_text,
    ):
        maps.job_of(model, scores, now, start=True)
        st.rerun()


def _account(known: maps.Known) -> str:
    """A sentence on the number of measured cuts and on the errors of their estimates from one another."""
    record = known.record
    told = f"{len(record.cuts)} cuts measured on {record.samples:,} held-out samples"
    if not record.errors:
        return f"{told}."
    last, task = record.errors[-1], known.surrogate.task
    value = f"{last.value:.1f} points" if task.in_percent else units.percent(last.value, 1)
    return (
        f"{told}. Estimated from the others, the KL of each is off by {units.percent(last.kl)} and its "
        f"{task.name.lower()} by {value} (medians; 95 in 100 of the KLs by at most {units.percent(last.kl_95)})."
    )


def _picture(model: OpenModel, scores: ImportanceScores, now: WhatIf, known: maps.Known) -> None:
    task, components = model.task, model.shape.components
    one, two, three = st.columns([0.44, 0.31, 0.25])
    with one:
        x = _choose("Across", components, components[0])
    with two:
        rest = tuple(component for component in components if component != x)
        y = _choose("Upwards", rest, "ffn" if "ffn" in rest else rest[0])
    with three:
        by_kl = _choose("Colour", (task.name, "KL"), task.name) == "KL"
    grid = _grid(model.shape, scores, now, known, x, y)
    found = known.at([point for row in grid.points for point in row])
    names = ("kl", "kl_low", "kl_high") if by_kl else ("value", "value_low", "value_high")
    middle, low, high = (getattr(found, name).reshape(grid.costs.shape) for name in names)
    title, unit = (f"KL, {task.nats}", "") if by_kl else (task.name, " %" if task.in_percent else "")
    chart = draw_map(
        Axis(x, f"{_name(x)} removed, %", PERCENTS),
        Axis(y, f"{_name(y)} removed, %", PERCENTS),
        Surface(title, unit, middle, low, high, log=by_kl or not task.in_percent),
        grid.costs,
        charts.theme(),
        cost_title="MACs",
        now=(now.percents[x], now.percents[y]),
        measured=_near(known, now, x, y, by_kl),
        data=grid.data,
        height=400,
    )
    data = charts.clicked_data(charts.show(chart, "map", on_select="rerun"))
    if data:
        target = WhatIf(*json.loads(str(data)))
        if state().clicked_map != target:
            state().clicked_map = target
            if target != now:
                session().move_to = target
                st.rerun()
    st.html(
        '<p class="quiet">Dots were measured; dashed lines are of equal MACs. Click a place to set the sliders.</p>'
    )


def _choose(label: str, options: tuple[T, ...], default: T) -> T:
    chosen = st.segmented_control(
        label, options, default=default, required=True, key=f"map-{label}", wrap=True, format_func=_name
    )
    return chosen if chosen in options else default


def _name(option: str) -> str:
    return "FFN" if option == "ffn" else option[0].upper() + option[1:]


class _Grid:
    """Plans over two shares by row and column: what each keeps and loses, its MACs, and what sets the sliders to it."""

    def __init__(
        self, shape: ModelShape, known: maps.Known, scores: ImportanceScores, now: WhatIf, x: Component, y: Component
    ):
        base = known.worth.of(now.plan(scores))
        widths = []
        for percent in PERCENTS:
            even = now.with_percents(dict.fromkeys(now.percents, float(percent)))
            widths.append(known.worth.of(even.plan(scores)).widths)
        own = {component: [group.key for group in shape.groups_of(component)] for component in (x, y)}
        self.points: list[list[CutPoint]] = []
        self.data: list[list[str]] = []
        self.costs = np.zeros((len(PERCENTS), len(PERCENTS)))
        for r, py in enumerate(PERCENTS):
            self.points.append([])
            self.data.append([])
            for c, px in enumerate(PERCENTS):
                chosen = dict(base.widths) | {key: widths[c][key] for key in own[x]}
                chosen |= {key: widths[r][key] for key in own[y]}
                self.points[r].append(known.worth.at(chosen, base.heads))
                self.costs[r, c] = count_macs(shape.with_widths(chosen, base.heads))
                moved = now.with_percents({**now.percents, x: float(px), y: float(py)})
                self.data[r].append(json.dumps(astuple(moved)))


@st.cache_resource(max_entries=12, show_spinner=False)
def _grid_of(key: str, _make: partial[_Grid]) -> _Grid:
    return _make()


def _grid(
    shape: ModelShape, scores: ImportanceScores, now: WhatIf, known: maps.Known, x: Component, y: Component
) -> _Grid:
    others = {name: percent for name, percent in now.percents.items() if name not in (x, y)}
    key = f"{scores.digest} {x} {y} {others} {now.heads} {now.basis} {now.repair} {now.allocation} {now.round_to}"
    return _grid_of(key, partial(_Grid, shape, known, scores, now, x, y))


def _near(known: maps.Known, now: WhatIf, x: Component, y: Component, by_kl: bool) -> list[tuple[float, float, str]]:
    """Measured cuts with the heads of the sliders, whose other shares are near theirs."""
    shape, task, found = known.record.shape, known.surrogate.task, []
    for cut in known.record.cuts:
        shares = {component: 100 * share for component, share in removed(cut.widths, shape).items()}
        far = any(abs(shares[c] - now.percents[c]) > NEAR for c in shares if c not in (x, y))
        if not far and set(cut.heads.values()) <= {now.heads, None}:
            words = f"KL {cut.kl:.2g}" if by_kl else task.format(task.value(cut))
            found.append((shares[x], shares[y], words))
    return found
