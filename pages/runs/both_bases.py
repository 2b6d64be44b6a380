"""Both ways on Runs: the letter's channels and directions with repair, from start to end in one chart."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace

import streamlit as st

from pages.services import recipes, run_data
from pages.widgets import charts
from upvit_core.figures.evaluations import Row
from upvit_core.figures.runs import RunCurve
from upvit_core.figures.training_curves import GLYPHS, plot_training_curves
from upvit_core.runs.folder import RunSummary
from upvit_core.runs.spec import RunSpec
from upvit_core.runs.store import RunStore
from upvit_core.training.settings import PRESETS

STYLE = "<style>.key { display: inline-block; margin-right: 1.4em; }</style>"
WAYS = {"channels": "Channels (UP-ViT)", "directions": "Directions"}


def pair(store: RunStore, chosen: Sequence[RunSummary]) -> list[RunSummary]:
    """The newest two runs of one shape, data and length of which one began from channels, the other from directions."""
    seen: dict[object, dict[str, RunSummary]] = {}
    for summary in chosen:
        spec = summary.spec
        if spec is None or spec.plan is None or spec.settings.from_scratch:
            continue
        shape = run_data.shape_of(store, summary.id, spec)
        if shape is None:
            continue
        both = seen.setdefault((shape.embed_dim, shape.blocks, spec.data, spec.epochs), {})
        both.setdefault(str(spec.plan.get("basis", "channels")), summary)
        if len(both) == 2:
            return [both[basis] for basis in WAYS]
    return []


def way_words(spec: RunSpec) -> str:
    basis = str((spec.plan or {}).get("basis", "channels"))
    return WAYS[basis] + (", repaired" if spec.repair else "")


def recipe_words(spec: RunSpec) -> str:
    """What the preset is called that the settings are, seed and duties aside; else that they are its own."""
    loose = {"seed", "threads", "workers", "eval_images", "eval_every", "checkpoint_minutes", "tensorboard", "amp"}
    own = json.loads(spec.settings.model_dump_json(exclude=loose))
    named = (name for name, preset in PRESETS.items() if json.loads(preset.model_dump_json(exclude=loose)) == own)
    return next((recipes.NAMES[name] for name in named), "settings of its own")


def panel(store: RunStore, chosen: Sequence[RunSummary], curves: Sequence[RunCurve]) -> None:
    """Nothing where no two of the ticked runs are both ways of one cut."""
    both = pair(store, chosen)
    by_id = {curve.id: curve for curve in curves}
    drawn = [
        replace(by_id[s.id], label=way_words(s.spec)) for s in both if s.spec is not None and s.id in by_id
    ]  # fmt: skip
    if len(drawn) < 2:
        return
    st.subheader("Both ways", anchor=False)
    st.html(f'<p class="quiet">{_sentence([s.spec for s in both if s.spec is not None], drawn)}</p>')
    marks = zip(GLYPHS, drawn, strict=False)
    keys = [f'<b style="color: {curve.colour}">{glyph}</b> {curve.label}' for glyph, curve in marks]
    keys += ["○ the start, before any training", "★ the teacher"]
    keys += [f"□ the end, on all {row['images']:,} test images" for row in _ends_on_all(drawn)[:1]]
    st.html("<p>" + "".join(f'<span class="key">{key}</span> ' for key in keys) + "</p>" + STYLE)
    left, right = st.columns(2)
    with left:
        charts.show(plot_training_curves(drawn, "top1", charts.theme()), "starts-top1")
    with right:
        charts.show(plot_training_curves(drawn, "kl_teacher", charts.theme()), "starts-kl")


def _sentence(specs: Sequence[RunSpec], drawn: Sequence[RunCurve]) -> str:
    """What is the same, and what was found so far, in numbers."""
    names = [recipe_words(spec) for spec in specs]
    same = "the same recipe" if names[0] == names[1] else f"each by its own recipe ({names[0]}; {names[1]})"
    told = f"The same widths and data, as many epochs, {same}. "
    if not all(curve.evaluations for curve in drawn):
        return told + "The starts are being measured."
    first, last = ([curve.evaluations[at] for curve in drawn] for at in (0, -1))
    told += f"{_tested(specs, first)}: right after the cut {_reached(first)}"
    if all(row.get("step", 0) > 0 for row in last):
        told += f"; now {_reached(last)}"
    if (teacher := drawn[0].teacher_row) is not None:
        told += f"; the teacher {teacher['top1']:.1f} %"
    whole = _ends_on_all(drawn)
    if len(whole) == len(drawn):
        told += f". On all {whole[0]['images']:,}: {_reached(whole)}"
        told += f"; the teacher {whole[0]['teacher_top1']:.1f} %" if "teacher_top1" in whole[0] else ""
    return told + "."


def _tested(specs: Sequence[RunSpec], rows: Sequence[Row]) -> str:
    """What the lines are measured on; runs of different seeds choose different images."""
    sizes = [row.get("images") for row in rows]
    drawn = {spec.settings.seed for spec in specs if spec.settings.eval_images is not None}
    if None in sizes:
        return "On test images"
    if sizes[0] != sizes[1]:
        return f"On {sizes[0]:,} and {sizes[1]:,} test images"
    return f"On {sizes[0]:,} test images each, not the same ones" if len(drawn) > 1 else f"On {sizes[0]:,} test images"


def _ends_on_all(drawn: Sequence[RunCurve]) -> list[Row]:
    return [row for curve in drawn if (row := curve.whole) is not None]


def _reached(rows: Sequence[Row]) -> str:
    return f"{rows[0]['top1']:.1f} % by channels, {rows[1]['top1']:.1f} % by directions"
