"""One channel in detail: its score, rank and error; with weights, the effect of its removal on real images."""

from dataclasses import dataclass, field

import numpy as np
import streamlit as st

from pages.services import block_removals, evaluation, jobs, removal, scoring, slider_state
from pages.services.open_model import OpenModel
from pages.services.removal import Effect
from pages.services.session import session
from pages.widgets import charts, progress, terms
from pages.widgets.cards import Card, cards
from pages.widgets.tables import examples, table
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

COMPONENT, BLOCK, CHANNEL = "glass-component", "glass-block", "glass-channel"  # keys of the three fields
ANCHOR = "under-the-glass"
PATIENCE_SECONDS = 1.5
AROUND = 4


@dataclass
class Glass:
    """The channel of the last click, to be removed on the next run, and the channel whose removal is shown."""

    wanted: tuple[Component, int, int] | None = None
    removed: tuple[Component, int, int, str] | None = None
    clicked: dict[Component, tuple[int, int]] = field(default_factory=dict)  # the last click on each picture


def choose(model: OpenModel, basis: str, component: Component, block: int, number: int) -> None:
    """Show a channel in detail and start its removal; call this before the page is drawn."""
    session().part(Glass).wanted = (component, block, number)
    st.session_state[COMPONENT], st.session_state[BLOCK], st.session_state[CHANNEL] = component, block, number
    if basis == "channels" and model.can_measure and evaluation.measures_at_once(model):
        removal.removal_job(model, component, block, number)


def under_glass(scores: ImportanceScores) -> tuple[Component, int, int]:
    """Component, block and number that the three fields name; a value that the model lacks becomes the first.

    Call this before the fields, and before anything that shows their channel.
    """
    shape, state = scores.shape, st.session_state
    if state.setdefault(COMPONENT, "residual") not in shape.components:
        state[COMPONENT] = "residual"
    component: Component = state[COMPONENT]
    if state.setdefault(BLOCK, 0) > _last_block(scores, component):
        state[BLOCK] = 0
    width = len(scores.values[shape.key_of(component, int(state[BLOCK]))])
    if state.setdefault(CHANNEL, 0) >= width:
        state[CHANNEL] = 0
    alone = component == "residual" and not shape.stages
    return component, 0 if alone else int(state[BLOCK]), int(state[CHANNEL])


def _last_block(scores: ImportanceScores, component: Component) -> int:
    shape = scores.shape
    if component == "residual" and not shape.stages:
        return shape.depth - 1  # the disabled field keeps its block
    return max(group.place for group in shape.groups_of(component))


def picker(scores: ImportanceScores) -> tuple[Component, int, int]:
    """Three fields that name a channel."""
    component, block, number = under_glass(scores)
    shape, most = scores.shape, _last_block(scores, component)
    width = len(scores.values[shape.key_of(component, block)])
    alone = component == "residual" and not shape.stages
    left, middle, right = st.columns(3)
    left.selectbox("Component", shape.components, format_func=TITLES.__getitem__, key=COMPONENT)
    label, note = "Stage" if component == "residual" and shape.stages else "Block", "All blocks share one residual."
    off, tip = alone or most == 0, note if alone else None
    middle.number_input(label, 0, max(most, 1), step=1, key=BLOCK, disabled=off, help=tip)
    label = f"{member_word(scores, component).capitalize()} (0 to {width - 1})"
    right.number_input(label, 0, width - 1, step=1, key=CHANNEL)
    return component, block, number


def inspector(model: OpenModel, scores: ImportanceScores, plan: PruningPlan) -> None:
    what = "direction" if scores.basis == "directions" else "channel"
    tip = terms.tip("Its score, its rank, and the effect of its removal.", what, "score", "stderr", "cut")
    st.subheader(f"One {what} in detail", anchor=ANCHOR, divider="gray", help=tip)
    st.html(f'<p class="quiet">Click a cell of a picture above, or choose a {what} here.</p>')
    left, right = st.columns([0.5, 0.5], gap="medium")
    with left:
        component, block, number = picker(scores)
        key = scores.shape.key_of(component, block)
        group = rivals(len(scores.values[key]), heads_after(plan, scores, block), component, number)
        kept = kept_mask(plan, scores, component, block)
        value = float(scores.values[key][number])
        error = scores.stderr.get(key)
        rank = int((scores.values[key][group] > value).sum()) + 1
        among = {"attention": "of its merged head", "residual": "of all"}.get(component, "in its block")
        sure = f"± {units.figure(error[number], 2)} standard error" if error is not None else "no error given"
        fate, margin = "kept" if kept[number] else "removed", _margin(scores, key, group, kept, number)
        score = Card("Score", f"{units.figure(value)} nats", sure)
        cards([score, Card("Rank", f"{rank} of {len(group)}", among), Card("In this plan", fate, margin)])
        charts.show(rank_chart(scores, component, block, number, group, kept[group], charts.theme()), "place")
        if scores.basis == "channels":
            by_criterion(model, component, block, number, group)
        neighbours(scores, key, group, kept, number)
    with right:
        _removal(model, component, block, number, scores.basis)


def _margin(scores: ImportanceScores, key: str, group: np.ndarray, kept: np.ndarray, number: int) -> str:
    """The distance of the channel's score from the cut, in words."""
    inside, outside = group[kept[group]], group[~kept[group]]
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
    task, glass = model.task, session().part(Glass)
    if not model.can_measure:
        needs = task.wanted if model.has_weights else "a model with weights"
        st.info(
            f"Here you will see which {task.samples} change when only this channel is removed. That needs {needs}.",
            icon=":material/visibility:",
        )
        return
    name = (component, block, number, basis)
    what = "channel" if basis == "channels" or component == "ffn" else "direction"
    if basis == "directions" and component == "residual" and number == 0:
        st.info("This is the constant: LayerNorm subtracts it, and every plan keeps it.")
        return
    if glass.wanted == name[:3] and evaluation.measures_at_once(model):
        glass.removed = name
    glass.wanted = None
    if glass.removed != name and not st.button(f"Remove only this {what}", icon=":material/content_cut:"):
        st.html(f'<p class="quiet">Shows which test {task.samples} change, and how: before → after.</p>')
        return
    glass.removed = name
    start = removal.direction_removal_job if basis == "directions" else removal.removal_job
    job = start(model, component, block, number)
    jobs.wait_briefly(job, PATIENCE_SECONDS)
    if (effect := progress.show(job)) is not None:
        show_effect(model, effect, component)


def show_effect(model: OpenModel, effect: Effect, component: Component) -> None:
    task = model.task
    chart = kl_by_image(effect.kl, effect.changed, component, charts.theme(), sample=task.sample)
    charts.show(chart, "kl-by-image")
    norms = " · ".join(f"{where} {norm:.3g}" for where, norm in effect.norms.items())
    images = f"{len(effect.kl):,} of {data_name(effect.data)}"
    weights = f"Norm of its weights: {norms}. " if norms else ""
    st.html(f'<p class="quiet">{weights}{task.samples.capitalize()}: {images}.</p>')
    examples(model, effect, columns=4)
    show(effect, component, task)


def by_criterion(model: OpenModel, component: Component, block: int, number: int, group: np.ndarray) -> None:
    """Score, rank and fate of the channel by each record of scores, at the ratios of the sliders."""
    now, key = slider_state.current(model.shape), model.shape.key_of(component, block)
    rows = []
    for record in scoring.records(model).values():
        if record.basis != "channels":
            continue
        values, errors = record.values[key], record.stderr.get(key)
        rank = int((values[group] > values[number]).sum()) + 1
        try:
            kept = kept_mask(now.plan(record, block_removals.records()), record, component, block)[number]
            fate = "kept" if kept else "removed"
        except UPViTError:
            fate = "—"
        error = f" ± {units.figure(errors[number], 2)}" if errors is not None else ""
        on = f", {record.images:,} {task_of(record.shape).batch_items}" if record.images else ""
        rows.append((record.criterion + on, f"{units.figure(values[number])}{error}", f"{rank} of {len(group)}", fate))
    table(("Criterion", "Score", "Rank", "In its plan"), rows, caption="By criterion, at the ratios set")


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
        rows.append((str(rank + 1), str(channel), f"{units.figure(values[channel])}{error}", fate))
    component: Component = key.partition(".")[0]  # type: ignore[assignment]
    what = member_word(scores, component).capitalize()
    head, bold = ("Rank", what, "Score, nats", "In this plan"), at - max(0, at - AROUND)
    table(head, rows, caption="Neighbours by score", bold=bold)


def show(effect: Effect, component: Component, task: Task) -> None:
    """Draw the KL by class, and for attention the maps of the most affected images."""
    theme = charts.theme()
    chart = by_class(effect.names, effect.labels, effect.kl, effect.changed, component, theme, task=task)
    charts.show(chart, "by-class")
    if effect.maps is None:
        return
    count = len(effect.maps)
    chosen = st.slider("Image, the most affected first", 1, count, 1, key="glass-map") if count > 1 else 1
    before, after = effect.maps[chosen - 1]
    charts.show(attention_pair(before, after, theme), "attention-maps")
