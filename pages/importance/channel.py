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


def inspector(model: OpenModel, scores: ImportanceScores, plan: PruningPlan, *, beside: bool) -> None:
    """Draw everything about one channel; where its removal is shown beside its picture, not a second time.

    scores: as they are planned with; means over images are shown.
    """
    what = "direction" if scores.basis == "directions" else "channel"
    tip = terms.tip("Its score, its rank, and the effect of its removal.", what, "score", "stderr", "cut")
    st.subheader(f"One {what} in detail", divider="gray", help=tip, anchor=False)
    left, right = st.columns([0.5, 0.5], gap="medium")
    with left:
        component, block, number = picker(scores)
        key = scores.shape.key_of(component, block)
        group = rivals(len(scores.values[key]), heads_after(plan, scores, block), component, number)
        kept = kept_mask(plan, scores, component, block)
        charts.show(rank_chart(scores, component, block, number, group, kept[group], charts.theme()), "place")
        if beside:
            neighbours(scores.per_sample, key, group, kept, number)
        else:
            facts(scores, plan, component, block, number)
    with right:
        if not beside:
            _removal(model, component, block, number, scores.basis)
        elif (effect := shown_effect(model, component, block, number, scores.basis)) is not None:
            show(effect, component, model.task)
        if scores.basis == "channels":
            by_criterion(model, component, block, number, group)
        if not beside:
            neighbours(scores.per_sample, key, group, kept, number)


def beside_picture(model: OpenModel, scores: ImportanceScores, plan: PruningPlan, component: Component) -> bool:
    """Draw the clicked channel of a picture next to it; False where none of this picture was clicked."""
    glass, (chosen, block, number) = session().part(Glass), under_glass(scores)
    if component not in glass.clicked or chosen != component:
        return False
    where = "" if component == "residual" and not scores.shape.stages else f", block {block}"
    with st.container(key="beside"):
        with st.container(horizontal=True, horizontal_alignment="distribute", vertical_alignment="center"):
            st.html(f'<h3 class="part {component}">{member_word(scores, component).capitalize()} {number}{where}</h3>')
            if st.button("", icon=":material/close:", key="beside-close", help="Close", type="tertiary"):
                glass.clicked.clear()
                st.rerun()
        facts(scores, plan, component, block, number)
        _removal(model, component, block, number, scores.basis, columns=2)
    return True


def facts(scores: ImportanceScores, plan: PruningPlan, component: Component, block: int, number: int) -> None:
    """Three cards: score, rank, and whether the plan keeps the channel."""
    shown, key = scores.per_sample, scores.shape.key_of(component, block)
    group = rivals(len(scores.values[key]), heads_after(plan, scores, block), component, number)
    kept = kept_mask(plan, scores, component, block)
    value, error = float(shown.values[key][number]), shown.stderr.get(key)
    rank = int((shown.values[key][group] > value).sum()) + 1
    among = {"attention": "of its merged head", "residual": "of all"}.get(component, "in its block")
    unit = shown.unit if shown.unit.startswith("nats") else ""
    sure = f"{unit}, ± {units.figure(error[number], 2)} standard error" if error is not None else unit
    fate, margin = "kept" if kept[number] else "removed", _margin(shown, key, group, kept, number)
    score = Card("Score", units.figure(value), sure)
    cards([score, Card("Rank", f"{rank} of {len(group)}", among), Card("In this plan", fate, margin)])


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
    return f"{distance:.2g} from the cut"


def _removal(model: OpenModel, component: Component, block: int, number: int, basis: str, *, columns: int = 4) -> None:
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
    job = _removal_job(model, component, block, number, basis)
    jobs.wait_briefly(job, PATIENCE_SECONDS)
    if (effect := progress.show(job)) is not None:
        show_effect(model, effect, component, columns)


def _removal_job(model: OpenModel, component: Component, block: int, number: int, basis: str) -> jobs.Job[Effect]:
    start = removal.direction_removal_job if basis == "directions" else removal.removal_job
    return start(model, component, block, number)


def shown_effect(model: OpenModel, component: Component, block: int, number: int, basis: str) -> Effect | None:
    """The effect of the removal shown beside the picture; None until it is measured."""
    if session().part(Glass).removed != (component, block, number, basis) or not model.can_measure:
        return None
    return jobs.result_of(_removal_job(model, component, block, number, basis))


def show_effect(model: OpenModel, effect: Effect, component: Component, columns: int) -> None:
    task = model.task
    chart = kl_by_image(effect.kl, effect.changed, component, charts.theme(), sample=task.sample)
    charts.show(chart, "kl-by-image")
    norms = " · ".join(f"{where} {norm:.3g}" for where, norm in effect.norms.items())
    images = f"{len(effect.kl):,} of {data_name(effect.data)}"
    weights = f"Norm of its weights: {norms}. " if norms else ""
    st.html(f'<p class="quiet">{weights}{task.samples.capitalize()}: {images}.</p>')
    examples(model, effect, columns=4)
    if columns == 4:
        show(effect, component, task)


def by_criterion(model: OpenModel, component: Component, block: int, number: int, group: np.ndarray) -> None:
    """Score, rank and fate of the channel by each record of scores, at the ratios of the sliders."""
    now, key = slider_state.current(model), model.shape.key_of(component, block)
    rows = []
    for record in (made.per_sample for made in scoring.records(model).values()):
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
    head, bold = ("Rank", what, f"Score, {scores.unit}", "In this plan"), at - max(0, at - AROUND)
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
