"""One channel under the glass: score, place and error; and, with weights, what its removal does to real images."""

from __future__ import annotations

from html import escape

import numpy as np
import streamlit as st

from pages.services import block_removals, evaluation, jobs, removal, scoring, slider_state
from pages.services.open_model import OpenModel
from pages.services.removal import Effect
from pages.widgets import charts, progress, terms
from pages.widgets.cards import Card, cards
from pages.widgets.tables import examples
from upvit_core import units
from upvit_core.errors import UPViTError
from upvit_core.figures.channel import kl_by_image, rank_chart
from upvit_core.figures.removal import attention_pair, by_class
from upvit_core.figures.score_grid import heads_after, kept_mask, member_word
from upvit_core.figures.theme import TITLES
from upvit_core.importance.ranking import rivals
from upvit_core.records.plan import PruningPlan
from upvit_core.records.scores import ImportanceScores
from upvit_core.records.shape import Component
from upvit_core.records.task import Task, data_name, task_of

WANTED = "channel-wanted"
ANCHOR = "under-the-glass"
PATIENCE_SECONDS = 1.5


def choose(model: OpenModel, basis: str, component: Component, block: int, number: int) -> None:
    """Put a channel under the glass and begin to remove it; to be called before the page is drawn."""
    st.session_state[WANTED] = (component, block, number)
    st.session_state["glass-component"], st.session_state["glass-block"] = component, block
    st.session_state["glass-channel"] = number
    spec = evaluation.image_spec(model)
    if basis == "channels" and model.has_weights and spec and removal.at_once(model):
        removal.removal_job(model, component, block, number, spec)


def under_glass(scores: ImportanceScores) -> tuple[Component, int, int]:
    """The channel that the three fields name: component, block, number; what the model does not have becomes the first.

    To be called before the fields and whatever shows their channel are drawn.
    """
    shape, state = scores.shape, st.session_state
    if state.setdefault("glass-component", "residual") not in shape.components:
        state["glass-component"] = "residual"
    component: Component = state["glass-component"]
    if state.setdefault("glass-block", 0) > _last_block(scores, component):
        state["glass-block"] = 0
    width = len(scores.values[shape.key_of(component, int(state["glass-block"]))])
    if state.setdefault("glass-channel", 0) >= width:
        state["glass-channel"] = 0
    alone = component == "residual" and not shape.stages
    return component, 0 if alone else int(state["glass-block"]), int(state["glass-channel"])


def _last_block(scores: ImportanceScores, component: Component) -> int:
    shape = scores.shape
    if component == "residual" and not shape.stages:
        return shape.depth - 1  # the field keeps its block while it is off
    return max(group.place for group in shape.groups_of(component))


def picker(scores: ImportanceScores) -> tuple[Component, int, int]:
    """Three fields that name a channel."""
    component, block, number = under_glass(scores)
    shape, most = scores.shape, _last_block(scores, component)
    width = len(scores.values[shape.key_of(component, block)])
    alone = component == "residual" and not shape.stages
    a, b, c = st.columns(3)
    a.selectbox("Component", shape.components, format_func=TITLES.__getitem__, key="glass-component")
    b.number_input(
        "Stage" if component == "residual" and shape.stages else "Block", 0, max(most, 1), step=1, key="glass-block",
        disabled=alone or most == 0, help="The residual is one for all blocks." if alone else None,
    )  # fmt: skip
    c.number_input(
        f"{member_word(scores, component).capitalize()} (0 to {width - 1})", 0, width - 1, step=1, key="glass-channel"
    )
    return component, block, number


def inspector(model: OpenModel, scores: ImportanceScores, plan: PruningPlan) -> None:
    what = "direction" if scores.basis == "directions" else "channel"
    st.subheader(
        f"One {what} under the glass", anchor=ANCHOR, divider="gray",
        help=terms.tip(
            "Its score, its place against the cut, and what its removal does.", what, "score", "stderr", "cut"
        ),
    )  # fmt: skip
    st.html(f'<p class="quiet">Click a cell of a picture above, or name a {what} here.</p>')
    left, right = st.columns([0.5, 0.5], gap="medium")
    with left:
        component, block, number = picker(scores)
        key = scores.shape.key_of(component, block)
        width = len(scores.values[scores.shape.key_of(component, block)])
        group = rivals(width, heads_after(plan, scores, block), component, number)
        kept = kept_mask(plan, scores, component, block)
        value = float(scores.values[key][number])
        error = scores.stderr.get(key)
        rank = int((scores.values[key][group] > value).sum()) + 1
        where = (
            "of its merged head"
            if component == "attention"
            else "of all"
            if component == "residual"
            else "in its block"
        )
        cards(
            [
                Card(
                    "Score",
                    f"{units.figure(value)} nats",
                    f"± {units.figure(error[number], 2)} standard error" if error is not None else "no error given",
                ),
                Card("Place", f"{rank} of {len(group)}", where),
                Card("In this plan", "kept" if kept[number] else "removed", _margin(scores, key, group, kept, number)),
            ]
        )
        charts.show(rank_chart(scores, component, block, number, group, kept[group], charts.theme()), "place")
        if scores.basis == "channels":
            by_criterion(model, component, block, number, group)
        neighbours(scores, key, group, kept, number)
    with right:
        _removal(model, component, block, number, scores.basis)


def _margin(scores: ImportanceScores, key: str, group: np.ndarray, kept: np.ndarray, number: int) -> str:
    """How far the channel's score is from the cut."""
    inside = group[kept[group]]
    outside = group[~kept[group]]
    if not len(inside) or not len(outside):
        return "nothing is cut here"
    values = scores.values[key]
    edge = (values[inside].min() + values[outside].max()) / 2
    distance = abs(values[number] - edge)
    if key in scores.stderr and scores.stderr[key][number] > 0:
        count = distance / scores.stderr[key][number]
        return f"{count:.1f} standard errors from the cut" + (": not certain" if count < 2 else "")
    return f"{distance:.2g} nats from the cut"


def _removal(model: OpenModel, component: Component, block: int, number: int, basis: str) -> None:
    spec, task = evaluation.image_spec(model), task_of(model.shape)
    if not model.has_weights or not spec:
        needs = task.wanted if model.has_weights else "a model with weights"
        st.info(
            f"Here you will see which {task.samples} change when only this channel is removed. That needs {needs}.",
            icon=":material/visibility:",
        )
        return
    name = (component, block, number, basis)
    what = "channel" if basis == "channels" or component == "ffn" else "direction"
    if basis == "directions" and component == "residual" and number == 0:
        st.info("This is the constant: LayerNorm takes it away, and every plan keeps it.")
        return
    if st.session_state.pop(WANTED, None) == name[:3] and removal.at_once(model):
        st.session_state["removed"] = name
    if st.session_state.get("removed") != name and not st.button(
        f"Remove only this {what}", icon=":material/content_cut:"
    ):
        st.html(f'<p class="quiet">Shows which test {task.samples} change, and how: before → after.</p>')
        return
    st.session_state["removed"] = name
    if basis == "directions":
        job = removal.direction_removal_job(model, component, block, number, spec)
    else:
        job = removal.removal_job(model, component, block, number, spec)
    jobs.wait_briefly(job, PATIENCE_SECONDS)
    if progress.ready(job):
        show_effect(model, job.result, component, spec)
    elif not job.active:
        st.session_state.pop("removed", None)


def show_effect(model: OpenModel, effect: Effect, component: Component, spec: str) -> None:
    task = task_of(model.shape)
    chart = kl_by_image(effect.kl, effect.changed, component, charts.theme(), sample=task.sample)
    charts.show(chart, "kl-by-image")
    norms = " · ".join(f"{where} {norm:.3g}" for where, norm in effect.norms.items())
    images = f"{len(effect.kl):,} of {data_name(effect.data)}"
    weights = f"Norm of its weights: {norms}. " if norms else ""
    st.html(f'<p class="quiet">{weights}{task.samples.capitalize()}: {images}.</p>')
    examples(model, effect, spec, columns=4)
    show(effect, component, task)


AROUND = 4


def _table(caption: str, head: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    top = "".join(f"<th scope='col'>{escape(name)}</th>" for name in head)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    st.html(
        f'<div class="scrolls"><table class="plain"><caption>{escape(caption)}</caption><tr>{top}</tr>{body}</table>'
        "</div>"
    )


def by_criterion(model: OpenModel, component: Component, block: int, number: int, group: np.ndarray) -> None:
    """Score, place and fate of the channel by every record of scores there is, at the ratios of the sliders."""
    now, key = slider_state.current(model.shape), model.shape.key_of(component, block)
    rows = []
    for record in scoring.records(model).values():
        if record.basis != "channels":
            continue
        values, errors = record.values[key], record.stderr.get(key)
        rank = int((values[group] > values[number]).sum()) + 1
        try:
            fate = (
                "kept"
                if kept_mask(now.plan(record, block_removals.records()), record, component, block)[number]
                else "removed"
            )
        except UPViTError:
            fate = "—"
        error = f" ± {units.figure(errors[number], 2)}" if errors is not None else ""
        told = (
            f"{record.criterion}, {record.images:,} {task_of(record.shape).batch_items}"
            if record.images
            else record.criterion
        )
        rows.append((escape(told), f"{units.figure(values[number])}{error}", f"{rank} of {len(group)}", fate))
    _table("By criterion, at the ratios set", ("Criterion", "Score", "Place", "In its plan"), rows)


def neighbours(scores: ImportanceScores, key: str, group: np.ndarray, kept: np.ndarray, number: int) -> None:
    """The channels next to it in the ranking."""
    values, errors = scores.values[key], scores.stderr.get(key)
    ranked = group[np.argsort(-values[group], kind="stable")]
    at = int(np.flatnonzero(ranked == number)[0])
    rows = []
    for rank in range(max(0, at - AROUND), min(len(ranked), at + AROUND + 1)):
        channel = int(ranked[rank])
        error = f" ± {units.figure(errors[channel], 2)}" if errors is not None else ""
        fate = "kept" if kept[channel] else "removed"
        cells = (str(rank + 1), str(channel), f"{units.figure(values[channel])}{error}", fate)
        rows.append(tuple(f"<b>{cell}</b>" for cell in cells) if channel == number else cells)
    component: Component = key.partition(".")[0]  # type: ignore[assignment]
    what = member_word(scores, component).capitalize()
    _table("Neighbours by score", ("Place", what, "Score, nats", "In this plan"), rows)


def show(effect: Effect, component: Component, task: Task) -> None:
    """Classes, and for attention the maps of the most affected images."""
    theme = charts.theme()
    charts.show(
        by_class(effect.names, effect.labels, effect.kl, effect.changed, component, theme, task=task), "by-class"
    )
    if effect.maps is None:
        return
    count = len(effect.maps)
    chosen = st.slider("Image, the most affected first", 1, count, 1, key="glass-map") if count > 1 else 1
    before, after = effect.maps[chosen - 1]
    charts.show(attention_pair(before, after, theme), "attention-maps")
