"""One channel under the glass: score, place and error; and, with weights, what its removal does to real images."""

from __future__ import annotations

from typing import Any

import numpy as np
import streamlit as st

from pages.shared import channel_more, charts, jobs, measured, removal, terms, words
from pages.shared.cards import Card, cards
from pages.shared.gallery import Tile, gallery, table
from pages.shared.opened import Opened
from pages.shared.removal import Effect
from upvit_core.figures.channel import kl_by_image, place
from upvit_core.figures.picture import heads_after, kept_mask, member_word
from upvit_core.figures.theme import TITLES
from upvit_core.importance.scores import ImportanceScores
from upvit_core.models.judge import judge_of
from upvit_core.models.shape import Component
from upvit_core.planning.plan import PruningPlan

WANTED = "channel-wanted"
ANCHOR = "under-the-glass"
SHOWN = 8
PATIENCE_SECONDS = 1.5


def choose(model: Opened, basis: str, component: Component, block: int, number: int) -> None:
    """Put a channel under the glass and begin to remove it; to be called before the page is drawn."""
    st.session_state[WANTED] = (component, block, number)
    st.session_state["glass-component"], st.session_state["glass-block"] = component, block
    st.session_state["glass-channel"] = number
    spec = measured.image_spec(model)
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


def rivals(scores: ImportanceScores, plan: PruningPlan, component: Component, block: int, number: int) -> np.ndarray:
    """Channels that compete for the same places: all of the component, or those of the same merged head."""
    width = len(scores.values[scores.shape.key_of(component, block)])
    if component != "attention":
        return np.arange(width)
    size = width // heads_after(plan, scores, block)
    return np.arange(number // size * size, (number // size + 1) * size)


def inspector(model: Opened, scores: ImportanceScores, plan: PruningPlan) -> None:
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
        group = rivals(scores, plan, component, block, number)
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
                    f"{words.figure(value)} nats",
                    f"± {words.figure(error[number], 2)} standard error" if error is not None else "no error given",
                ),
                Card("Place", f"{rank} of {len(group)}", where),
                Card("In this plan", "kept" if kept[number] else "removed", _margin(scores, key, group, kept, number)),
            ]
        )
        charts.show(place(scores, component, block, number, group, kept[group], charts.theme()), "place")
        if scores.basis == "channels":
            channel_more.by_criterion(model, component, block, number, group)
        channel_more.neighbours(scores, key, group, kept, number)
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


def _removal(model: Opened, component: Component, block: int, number: int, basis: str) -> None:
    spec, judge = measured.image_spec(model), judge_of(model.shape)
    if not model.has_weights or not spec:
        needs = judge.wanted if model.has_weights else "a model with weights"
        st.info(
            f"Here you will see which {judge.samples} change when only this channel is removed. That needs {needs}.",
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
        st.html(f'<p class="quiet">Shows which test {judge.samples} change, and how: before → after.</p>')
        return
    st.session_state["removed"] = name
    if basis == "directions":
        from pages.shared import direction

        job = direction.removal_job(model, component, block, number, spec)
    else:
        job = removal.removal_job(model, component, block, number, spec)
    jobs.linger(job, PATIENCE_SECONDS)
    if jobs.ready(job):
        show_effect(model, job.result, component, spec)
    elif not job.active:
        st.session_state.pop("removed", None)


def show_effect(model: Opened, effect: Effect, component: Component, spec: str) -> None:
    judge = judge_of(model.shape)
    chart = kl_by_image(effect.kl, effect.changed, component, charts.theme(), sample=judge.sample)
    charts.show(chart, "kl-by-image")
    norms = " · ".join(f"{where} {norm:.3g}" for where, norm in effect.norms.items())
    images = f"{len(effect.kl):,} of {words.data_name(effect.data)}"
    weights = f"Norm of its weights: {norms}. " if norms else ""
    st.html(f'<p class="quiet">{weights}{judge.samples.capitalize()}: {images}.</p>')
    examples(model, effect, spec, columns=4)
    channel_more.show(effect, component, judge)


def examples(model: Opened, effect: Effect, spec: str, *, columns: int, only: list[int] | None = None) -> None:
    """The most affected images or tokens, or those in `only`, before → after."""
    if judge_of(model.shape).has_pictures:
        gallery(tiles(model, effect, spec, only=only), columns=columns)
    else:
        passages(model, effect, spec, only=only)


def passages(
    model: Opened, effect: Effect, spec: str, count: int = SHOWN, only: list[int] | None = None
) -> None:  # fmt: skip
    """Where in the text: what went before, the token that follows, and the likeliest one before → after."""
    data: Any = measured.images(model, spec, "val")
    rows = []
    for i in only or np.argsort(-effect.kl, kind="stable")[:count]:
        block, place = divmod(int(effect.indices[i]), model.shape.answers)
        told = data.passage(block, place)
        was, now = int(effect.before[i].argmax()), int(effect.after[i].argmax())
        rows.append((
            f"… {told}", effect.names[effect.labels[i]], f"{effect.names[was]} {effect.before[i, was]:.0%}",
            f"{effect.names[now]} {effect.after[i, now]:.0%}", f"{effect.kl[i]:.2g}",
        ))  # fmt: skip
    table(("after", "comes", "it said", "now it says", "KL, nats"), rows)


def tiles(model: Opened, effect: Effect, spec: str, count: int = SHOWN, only: list[int] | None = None) -> list[Tile]:
    """The most affected images, or those in `only`, before → after."""
    data = measured.images(model, spec, "val")
    found = []
    for i in only or np.argsort(-effect.kl, kind="stable")[:count]:
        was, now = int(effect.before[i].argmax()), int(effect.after[i].argmax())
        first = f"{effect.names[was]} {effect.before[i, was]:.0%}"
        then = f"→ {effect.names[now]} {effect.after[i, now]:.0%}"
        picture = measured.data_uri(data.image(int(effect.indices[i])))
        found.append(
            Tile(picture, f"{effect.names[effect.labels[i]]}: {first} {then}", (first, then, f"KL {effect.kl[i]:.2g}"))
        )
    return found
