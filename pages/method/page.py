"""Method: eight steps of the method on the open model; every picture shows its real numbers."""

from dataclasses import replace
from typing import Any

import numpy as np
import streamlit as st

from pages.method import closing, distill_lesson, rotation_lesson
from pages.method.lesson import say, show
from pages.services import evaluation, open_model, removal, scoring
from pages.services.open_model import OpenModel
from pages.widgets import charts, frame, presenter, progress, tables
from upvit_core import units
from upvit_core.figures.channel import kl_by_image, rank_chart
from upvit_core.figures.curves import plan_share
from upvit_core.figures.head_merging import draw_head_merging
from upvit_core.figures.heatmaps import heatmap
from upvit_core.figures.kl_sum import kl_sum
from upvit_core.figures.model_diagram import draw_model
from upvit_core.figures.score_grid import heads_after
from upvit_core.figures.theme import TITLES
from upvit_core.importance import ranking
from upvit_core.planning.what_if import MAX_REMOVED_PERCENT, WhatIf, default_what_if, head_options
from upvit_core.profiling.macs import count_macs, count_parameters
from upvit_core.records.plan import PruningPlan
from upvit_core.records.scores import ImportanceScores
from upvit_core.records.shape import Component, ModelShape

STEP = "step"  # key of the widget, and of the link
STEPS = (
    "1 · One block",
    "2 · One channel less",
    "3 · Ranking and the cut",
    "4 · Merging heads",
    "5 · A thinner model",
    "6 · The right basis",
    "7 · Learning again",
    "8 · What we did",
)
LESSON_IMAGES = 200
TALL = 470
ATTENTION_CHANNEL = "A channel here is one row of q, k and v, and one column on the way out."


def component_choice(model: OpenModel, key: str) -> Component:
    chosen: Component = st.segmented_control(
        "Component",
        model.shape.components,
        default="residual",
        required=True,
        wrap=True,
        format_func=TITLES.__getitem__,
        key=f"lesson-{key}",
    )
    return chosen


def alone(shape: ModelShape, component: Component, percent: int) -> WhatIf:
    """`percent` of one component removed, and nothing else."""
    none = WhatIf(0, 0, None, 0, reduction=0 if "reduction" in shape.components else None)
    changes: dict[str, Any] = {component: percent}
    return replace(none, **changes)


def place_shown(shape: ModelShape, component: Component) -> tuple[int | None, str]:
    """Index and name of the block or stage that a step shows; None and "" where all blocks share the residual."""
    places = [group.place for group in shape.groups_of(component)]
    if component != "residual":
        return places[len(places) // 2], f"block {places[len(places) // 2]}"
    return (places[0], f"stage {places[0]}") if len(places) > 1 else (None, "")


def one_block(model: OpenModel) -> None:
    text, picture = st.columns([0.36, 0.64], gap="large")
    with text:
        component = component_choice(model, "component")
        half = alone(model.shape, component, 50).plan(open_model.no_scores(model.shape)).shape_after
        saved = 1 - count_parameters(half) / count_parameters(model.shape)
        block, task, dims = model.shape.blocks[-1], model.task, model.shape.embed_dims
        last, heads = " in the last stage" if len(dims) > 1 else "", model.shape.heads_in(block)
        about = {
            "residual": f"The <b class='residual'>residual</b> is the stream through the model: "
            f"{', '.join(map(str, dims))} channels{', stage by stage,' if last else ''} that each of the "
            f"{model.shape.depth} blocks reads and adds to. A channel less here is a channel less "
            f"<i>{'in all of its stage' if last else 'everywhere'}</i>.",
            "attention": f"<b class='attention'>Attention</b> lets {task.units} look at each other: "
            f"{heads} heads of {model.shape.channels_in(block) // heads} channels{last}. "
            + ("They are cut whole." if model.shape.structure.head_dim else ATTENTION_CHANNEL),
            "ffn": f"The <b class='ffn'>FFN</b> processes each {task.unit} alone: it widens to {block.ffn:,} "
            f"hidden channels{last} and narrows again. A channel here is one hidden unit.",
            "reduction": f"The <b class='reduction'>reduction</b> makes a smaller map of the {task.units}, from "
            "which attention takes its keys and values. A channel here is one channel of that map.",
        }[component]
        say(f"<p>{about}</p><p>Without half of these channels: <b>{units.percent(saved)}</b> fewer parameters.</p>")
    with picture:
        show(draw_model(model.shape, charts.theme(), emphasis=component, height=TALL), "block")


def one_channel(model: OpenModel, scores: ImportanceScores) -> None:
    text, picture = st.columns([0.36, 0.64], gap="large")
    with text:
        component = component_choice(model, "remove")
        shown, where = place_shown(model.shape, component)
        block, where, task = shown or 0, f" of {where}" if where else "", model.task
        values = scores.per_sample.values[model.shape.key_of(component, block)]
        label = f"Which one? Rank 1 is the most important of {len(values)}"
        rank = st.slider(label, 1, len(values), 1, key=f"lesson-place-{component}")
        number = int(np.argsort(-values, kind="stable")[rank - 1])
        say(
            f"<p>Remove <b>{TITLES[component]} channel {number}</b>{where} alone. How far are the model's answers "
            "from those before?</p>"
            "<div class='equation'>KL( q ‖ p ) = Σ q · ln( q / p )</div>"
            f"<p>q: the answer before, p: after; the sum is over {task.outputs}. The score is the mean over "
            f"{scores.images:,} {task.batch_items}: <b>{values[number]:.3g}</b> nats.</p>"
        )
    with picture:
        if not model.can_measure:
            plan = WhatIf(0, 0, None, 0).plan(scores)
            group = ranking.rivals(len(values), heads_after(plan, scores, block), component, number)
            kept = np.ones(len(group), bool)
            show(rank_chart(scores, component, block, number, group, kept, charts.theme(), height=TALL), "place")
            st.caption(f"With weights and {task.data}, as the demo has, this shows which {task.samples} change.")
            return
        effect = progress.show(removal.removal_job(model, component, block, number, LESSON_IMAGES), height=TALL)
        if effect is None:
            return
        order = np.argsort(-effect.kl, kind="stable")
        image = st.slider(f"{task.sample.capitalize()}, the most affected first", 1, len(order), 1, key="lesson-image")
        chosen = int(order[image - 1])
        left, right = st.columns([0.2, 0.8]) if task.has_pictures else [st.container()] * 2
        with left:
            tables.examples(model, effect, only=[chosen], columns=1)
        with right:
            before, after = effect.before[chosen], effect.after[chosen]
            chart = kl_sum(effect.names, before, after, component, charts.theme(), height=430, what=task.output)
            show(chart, "kl-sum")
        if not presenter.on():  # one picture a screen
            show(
                kl_by_image(effect.kl, effect.changed, component, charts.theme(), sample=task.sample, height=200), "kl"
            )


def the_cut(model: OpenModel, scores: ImportanceScores) -> None:
    text, picture = st.columns([0.36, 0.64], gap="large")
    with text:
        component = component_choice(model, "rank")
        ratio = st.slider("Removed, %", 0, MAX_REMOVED_PERCENT, 50, key="lesson-ratio", format="%d%%")
        plan = alone(model.shape, component, ratio).plan(scores)
        block, where = place_shown(model.shape, component)
        where = f" ({where} is shown)" if where else ""
        kept, held = plan_share(scores, plan, component, block or 0)
        say(
            f"<p>Score every channel, rank them, and cut{where}. Channels right of the line are removed.</p>"
            f"<p><b>{units.percent(kept)}</b> of the channels hold <b>{units.percent(held)}</b> of the score.</p>"
            "<p>A flat tail means many channels that hardly matter. Pruning removes those.</p>"
        )
    with picture:
        job = evaluation.preview(model, plan) if model.can_measure and evaluation.measures_at_once(model) else None
        pictures = job is not None and model.task.has_pictures
        height = 250 if pictures else TALL
        chart, _ = heatmap(scores, component, plan, charts.theme(), block=block, height=height)
        show(chart, "cut")
        if pictures:
            with st.container(key="cut-images"):
                progress.redraw_when_done([job], lambda: changed_images(model, plan))


def changed_images(model: OpenModel, plan: PruningPlan) -> None:
    """Draw images whose answers the cut changes, once it is measured."""
    known = evaluation.changes(model, plan, repair=False)
    if known is None:
        say("<p>Which answers change? The cut is being measured.</p>")
        return
    images, lost, won = known.by_class.images, len(known.by_class.lost), len(known.by_class.won)
    say(f"<p>Of {images:,} images, <b>{lost:,}</b> become wrong and {won:,} right.</p>")
    tables.gallery(tables.changed_tiles(known.examples[: tables.SHOWN]))


def merging_heads(model: OpenModel, scores: ImportanceScores) -> None:
    text, picture = st.columns([0.36, 0.64], gap="large")
    options = head_options(model.shape)
    if len(options) < 2:
        say("<p>This model has one head in each block, or uneven heads: there is nothing to merge.</p>")
        return
    with text:
        usual, moments = default_what_if(model.shape).heads, ["As they are", "Merged", "Cut"]
        heads = st.select_slider("Heads that stay", options, value=usual, key="lesson-heads")
        moment = st.segmented_control("Step", moments, default="Cut", required=True, wrap=True, key="lesson-moment")
        now = model.shape.num_heads or 1
        say(
            f"<p>A thin model needs few heads, not {now} very narrow ones. So neighbouring heads are merged, "
            f"{now // heads} into one; then the least important channels <i>inside each merged head</i> are cut.</p>"
            "<p>All keep equally many channels: the heads of a layer must have one width. At the right: the share of "
            "the score that stays.</p>"
        )
    with picture:
        plan = WhatIf(0, 50, heads, 0).plan(scores)
        step = moments.index(moment) + 1
        block, theme = model.shape.depth // 2, charts.theme()
        show(draw_head_merging(scores, plan, block, theme, height=TALL, step=step, by_score=False), "merge")


def thinner(model: OpenModel) -> None:
    text, picture = st.columns([0.36, 0.64], gap="large")
    with text:
        ratio = st.slider("Removed from everything, %", 0, MAX_REMOVED_PERCENT, 50, key="lesson-all", format="%d%%")
        heads = default_what_if(model.shape).heads if ratio >= 50 else model.shape.num_heads
        after = WhatIf(ratio, ratio, heads, ratio).plan(open_model.no_scores(model.shape)).shape_after
        before, now = count_parameters(model.shape), count_parameters(after)
        say(
            f"<p>The result is an ordinary, thinner model of the same structure: <b>{units.short(now)}</b> parameters "
            f"in place of {units.short(before)}, <b>{units.times(count_macs(model.shape) / count_macs(after))}</b> "
            "fewer multiplications.</p>"
            "<p>No masks and no special code: any program that runs the original runs this one.</p>"
            "<p>Widths multiply: a layer half as wide on both sides has a <i>quarter</i> of its weights.</p>"
        )
    with picture:
        show(draw_model(model.shape, charts.theme(), after, height=TALL), "thin")


PAGES = {
    "Start": "pages/start/page.py",
    "Importance": "pages/importance/page.py",
    "Trade-off": "pages/tradeoff/page.py",
    "Runs": frame.RUNS_PAGE,
}
SEE_ON = ("Start", "Importance", "Importance", "Trade-off", "Trade-off", "Trade-off", "Runs", "Runs")  # by step


def move(by: int) -> None:
    st.session_state[STEP] = STEPS[min(max(STEPS.index(st.session_state[STEP]) + by, 0), len(STEPS) - 1)]


with frame.page("Method", "Making a transformer thinner in eight steps, on the open model."):
    model = frame.current()
    scores = scoring.current(model)
    step = st.segmented_control(
        "Step",
        STEPS,
        default=STEPS[0],
        required=True,
        wrap=True,
        key=STEP,
        bind="query-params",
        label_visibility="collapsed",
    )
    if presenter.on():  # the dots between the buttons tell where one is
        st.html("<style>.st-key-step { display: none; }</style>")
    number = STEPS.index(step) if step in STEPS else 0  # a link may name anything
    if number in (1, 2, 3):
        if scores is None:
            text = "This step shows the model's scores. Make them on Importance, or open the demo."
            frame.awaited(text, icon=":material/grid_on:")
        else:
            (one_channel, the_cut, merging_heads)[number - 1](model, scores)
    elif number == 0:
        one_block(model)
    elif number == 4:
        thinner(model)
    elif number == 5:
        rotation_lesson.lesson(model, scores, height=TALL)
    elif number == 6:
        distill_lesson.teacher(model, scores, height=TALL)
    else:
        closing.slide(model, scores)
    with st.container(horizontal=True, vertical_alignment="center"):
        first, last, icon = number == 0, number == len(STEPS) - 1, ":material/arrow_"
        st.button("Back", icon=f"{icon}back:", on_click=move, args=(-1,), disabled=first, key="back")
        dots = "".join("●" if i == number else "○" for i in range(len(STEPS)))
        st.html(f'<span class="dots" role="img" aria-label="step {number + 1} of {len(STEPS)}">{dots}</span>')
        st.button("Next", icon=f"{icon}forward:", on_click=move, args=(1,), disabled=last, key="next")
        frame.page_link(PAGES[SEE_ON[number]], f"See it on {SEE_ON[number]}")
