"""Both ways on Runs: a run that starts from channels and one that starts from directions, in the same charts."""

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
    """The newest two runs of equal shape, data and epochs, one from channels and one from directions; else none."""
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


def basis_words(spec: RunSpec) -> str:
    basis = str((spec.plan or {}).get("basis", "channels"))
    return WAYS[basis] + (", repaired" if spec.repair else "")


def recipe_name(spec: RunSpec) -> str:
    """Name of the preset that these settings equal, ignoring seed and housekeeping; else "custom settings"."""
    loose = {"seed", "threads", "workers", "eval_images", "eval_every", "checkpoint_minutes", "tensorboard", "amp"}
    settings = spec.settings.model_dump(exclude=loose)
    equal = (name for name, preset in PRESETS.items() if preset.model_dump(exclude=loose) == settings)
    return next((recipes.NAMES[name] for name in equal), "custom settings")


def panel(store: RunStore, chosen: Sequence[RunSummary], curves: Sequence[RunCurve]) -> None:
    """Compare both ways; draws nothing where the ticked runs hold no such pair."""
    by_id = {curve.id: curve for curve in curves}
    both = [(by_id[s.id], s.spec) for s in pair(store, chosen) if s.spec is not None and s.id in by_id]
    if len(both) < 2:
        return
    drawn = [replace(curve, label=basis_words(spec)) for curve, spec in both]
    st.subheader("Both ways", anchor=False)
    st.html(f'<p class="quiet">{_summary([spec for _, spec in both], drawn)}</p>')
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


def _summary(specs: Sequence[RunSpec], drawn: Sequence[RunCurve]) -> str:
    """The settings that both share, and the accuracies so far, in a few sentences."""
    names = [recipe_name(spec) for spec in specs]
    recipe = "the same recipe" if names[0] == names[1] else f"each with its recipe ({names[0]}; {names[1]})"
    text = f"The same widths, data and epochs, {recipe}. "
    if not all(curve.points.evals for curve in drawn):
        return text + "The starts are being measured."
    first, last = ([curve.points.evals[at] for curve in drawn] for at in (0, -1))
    text += f"{_test_images(specs, first)}: right after the cut {_accuracies(first)}"
    if all(row.get("step", 0) > 0 for row in last):
        text += f"; now {_accuracies(last)}"
    if (teacher := drawn[0].points.teacher) is not None:
        text += f"; the teacher {teacher['top1']:.1f} %"
    whole = _ends_on_all(drawn)
    if len(whole) == len(drawn):
        text += f". On all {whole[0]['images']:,}: {_accuracies(whole)}"
        text += f"; the teacher {whole[0]['teacher_top1']:.1f} %" if "teacher_top1" in whole[0] else ""
    return text + "."


def _test_images(specs: Sequence[RunSpec], rows: Sequence[Row]) -> str:
    """The images on which the curves are measured; runs of different seeds choose different ones."""
    sizes = [row.get("images") for row in rows]
    seeds = {spec.settings.seed for spec in specs if spec.settings.eval_images is not None}
    if None in sizes:
        return "On test images"
    if sizes[0] != sizes[1]:
        return f"On {sizes[0]:,} and {sizes[1]:,} test images"
    return f"On {sizes[0]:,} test images each, not the same ones" if len(seeds) > 1 else f"On {sizes[0]:,} test images"


def _ends_on_all(drawn: Sequence[RunCurve]) -> list[Row]:
    return [row for curve in drawn if (row := curve.points.whole) is not None]


def _accuracies(rows: Sequence[Row]) -> str:
    return f"{rows[0]['top1']:.1f} % by channels, {rows[1]['top1']:.1f} % by directions"
