"""All that was measured of the open model, as lines over parallel axes, and the slider that matters most."""

from __future__ import annotations

from collections.abc import Iterator

import streamlit as st

from pages.services import device, folders, maps, run_data
from pages.services.open_model import OpenModel
from pages.tradeoff import tried_plans
from pages.widgets import charts
from upvit_core.figures.parallel import STATES, Outcome, draw_parallel
from upvit_core.figures.theme import TITLES
from upvit_core.mapping.knobs import HEADS, importance
from upvit_core.planning.what_if import WhatIf
from upvit_core.records.scores import ImportanceScores
from upvit_core.records.shape import ModelShape
from upvit_core.runs.store import RunStore

CUT, TRAINED, THIS = STATES


def draw(model: OpenModel, scores: ImportanceScores, now: WhatIf) -> None:
    known = maps.find(model, scores, now)
    outcomes = [*_cuts(model, known), *_tried(model, scores, now), *_runs(model)]
    if len(outcomes) < 2:
        st.caption("Plans are lines here once two are measured: move a slider, measure a map, or start a run.")
        return
    st.html(
        '<p class="quiet">A line is a thinner model that was measured. Drag along axes to keep the lines that pass '
        "there; click an axis to free it.</p>"
    )
    with st.container(key="wide-chart"):
        charts.show(draw_parallel(model.shape, outcomes, model.task, charts.theme()), "all-plans")
    if known is not None:
        st.html(f'<p class="quiet">{_mattered(known, known.record.digest)}</p>')


def _cuts(model: OpenModel, known: maps.Known | None) -> Iterator[Outcome]:
    """The map's cuts that keep all blocks."""
    for number, cut in enumerate(() if known is None else known.record.cuts, 1):
        if all(group.key in cut.widths for group in model.shape.groups):
            shape = model.shape.with_widths(cut.widths, cut.heads)
            yield Outcome(f"cut {number} of the map", CUT, shape, model.task.value(cut), _speed(model, shape))


def _tried(model: OpenModel, scores: ImportanceScores, now: WhatIf) -> Iterator[Outcome]:
    """Plans of this session that were cut in the present way."""
    for entry in tried_plans.all_tried(model, scores).values():
        this = entry.what_if
        if entry.value is not None and (this.basis, this.repair) == (now.basis, now.repair):
            shape = this.plan(scores).shape_after
            yield Outcome(this.words, THIS if this == now else CUT, shape, entry.value, _speed(model, shape))


def _runs(model: OpenModel) -> Iterator[Outcome]:
    """Finished distillations of this model."""
    store = RunStore(folders.runs())
    for run in store.list():
        if (
            run.spec is None
            or run.state.state != "done"
            or run.spec.kind != "distill"
            or run.spec.teacher != model.model
        ):
            continue
        points, shape = run_data.rows().points(store, run.id), run_data.shape_of(store, run.id, run.spec)
        if shape is not None and points.evals and model.task.key in points.evals[-1]:
            yield Outcome(run.name, TRAINED, shape, points.evals[-1][model.task.key], points.speedup)


def _speed(model: OpenModel, shape: ModelShape) -> float | None:
    """Times the original's speed, estimated; None where this device is not calibrated."""
    times = device.milliseconds(device.batch_of(model), model.shape, shape)
    return times[0] / times[1] if times else None


@st.cache_data(max_entries=16, show_spinner=False)
def _mattered(_known: maps.Known, digest: str) -> str:
    """A sentence on the sliders by their importance to the map's measured cuts."""
    task, found = _known.surrogate.task, importance(_known.surrogate, _known.worth)
    names = {HEADS: "Heads", **{str(part): title for part, title in TITLES.items()}}
    ranked = [(names[name], task.gap(max(found[name], 0.0))) for name in sorted(found, key=lambda name: -found[name])]
    rest = ", ".join(f"{name} {value}" for name, value in ranked[1:])
    return (
        f"<b>{ranked[0][0]} matters most:</b> with its settings shuffled among the {len(_known.record.cuts)} measured "
        f"cuts, the map misses their {task.name.lower()} by {ranked[0][1][1:]} more. {rest} (permutation importance)."
    )
