"""Importance: every channel of the model as a cell of a heatmap, the cut, and any one channel in detail."""

from functools import partial
from typing import Literal

import streamlit as st

from pages.importance import channel, confidence, criteria, direction
from pages.services import block_removals, removal, scoring
from pages.services.open_model import OpenModel
from pages.services.session import session
from pages.widgets import charts, frame, presenter, scores_panel, sliders, terms
from upvit_core.figures import heatmaps
from upvit_core.figures.curves import kept_curve
from upvit_core.figures.score_grid import Picture, channel_at, member_word
from upvit_core.figures.theme import Spec
from upvit_core.planning.what_if import head_options
from upvit_core.records.plan import PruningPlan
from upvit_core.records.scores import ImportanceScores
from upvit_core.records.shape import Component, ModelShape

HEIGHTS: dict[Component, int] = {"residual": 250, "attention": 300, "ffn": 300, "reduction": 280}
WHAT: dict[Component, str] = {
    "residual": "Channels of the stream that every block reads from and writes to. Removing one narrows {all}.",
    "attention": "Channels inside the attention heads, block by block. {heads}",
    "ffn": "Hidden channels of the feed-forward networks, block by block.",
    "reduction": "Channels of the smaller map from which a block makes its keys and values, block by block.",
}


def clicked(model: OpenModel, basis: str, component: Component, drawn: Picture) -> None:
    """Show the channel of a clicked cell in detail, before the page is run again.

    Plotly reports a second click on the same cell as an empty selection; it counts as a click on that cell.
    """
    points = st.session_state[f"{component}-scores"]["selection"]["points"]
    before = session().part(channel.Glass).clicked
    if points or component in before:
        where = channel_at(drawn, points[0]["x"], points[0]["y"]) if points else before[component]
        before[component] = where
        channel.choose(model, basis, component, *where)


def ring(component: Component, layout: Spec, drawn: Picture, where: tuple[int, int]) -> None:
    """Draw a ring around a channel, over its picture; a mark in the chart itself would remount the chart."""
    spot, margin = heatmaps.spot(drawn, layout, *where), layout["margin"]
    with st.container(key=f"ring-{component}"):
        if spot is not None:
            left = f"calc({margin['l']}px + (100% - {margin['l'] + margin['r']}px) * {spot[0]:.6f})"
            st.html(f'<div class="ring" aria-hidden="true" style="left: {left}; top: {spot[1]:.1f}px"></div>')


def _about(component: Component, shape: ModelShape) -> str:
    merges = len(head_options(shape)) > 1
    heads = "Heads are merged first; then each merged head is cut." if merges else "Each head is cut."
    return WHAT[component].format(all="its whole stage" if shape.stages else "the whole model", heads=heads)


def picture(
    model: OpenModel, scores: ImportanceScores, component: Component, plan: PruningPlan, order: str, block: int | None
) -> None:
    alone = None if component == "residual" else block
    if alone is not None and alone not in {group.place for group in scores.shape.groups_of(component)}:
        return
    theme, selected = charts.theme(), channel.under_glass(scores)
    opened = selected[0] == component and component in session().part(channel.Glass).clicked
    wide, narrow = st.columns([0.62, 0.38] if opened else [0.73, 0.27], gap="small")
    with wide:
        by: Literal["position", "importance"] = "position" if order == "By position" else "importance"
        height = HEIGHTS[component] if alone is None else 250
        chart, drawn = heatmaps.heatmap(scores, component, plan, theme, by, block=alone, height=height)
        about = direction.WHAT[component] if scores.basis == "directions" else _about(component, scores.shape)
        head = f'<h3 class="part {component}">{terms.linked(chart.title)}</h3>'
        st.html(f'{head}<p class="quiet">{about} <b>Click a cell.</b></p>')
        click = partial(clicked, model, scores.basis, component, drawn)
        with st.container(key=f"picture-{component}"):
            charts.show(chart, f"{component}-scores", on_select=click, tools=False)
            if selected[0] == component:
                ring(component, charts.presented(chart).spec["layout"], drawn, selected[1:])
    with narrow:
        if opened and channel.beside_picture(model, scores, plan, component):
            return
        curve = kept_curve(scores, component, plan, theme, block=alone, height=HEIGHTS[component])
        held = f"Share of the score that the best {member_word(scores, component)}s hold."
        st.html(f'<h3 class="part">{curve.title}</h3><p class="quiet">{held}</p>')
        charts.show(curve, f"{component}-curve")


with frame.page(
    "Importance",
    "How much the model's answers change when one channel is missing: bright is important, dark can go.",
    "The score of a channel is KL(q ‖ p) in nats an image, or a token of a text, a mean over proxy images: q is the "
    "model's answer, p its answer without that channel.",
):
    model = frame.current()
    with presenter.folded("Scores"):
        scores_panel.scores_panel(model)
    scores = scoring.current(model)
    if scores is None:
        step = "" if model.has_weights else " Open a model with weights, or published scores."
        text = f"The pictures will be here, one for each component, once there are scores.{step}"
        frame.awaited(text, icon=":material/grid_on:")
        if model.has_weights:
            scores_panel.score_button("score-first", primary=True)
    elif (scores := direction.switch(model, scores)) is not None:
        one, two, _, four = st.columns([0.3, 0.2, 0.25, 0.25], vertical_alignment="bottom")
        with one:
            orders = ["By importance", "By position"]
            tip = "By importance: the best of each row comes first, so the cut is a line. By position: as in the model."
            order = st.segmented_control(
                "Order", orders, default=orders[0], required=True, key="order", bind="query-params", help=tip
            )
        with two:
            names = ["All blocks", *(f"Block {b}" for b in range(model.shape.depth))]
            row = st.selectbox("Blocks", names, key="row", bind="query-params")
        with four, st.popover("Move the cut", icon=":material/tune:", width="stretch"):
            what_if = sliders.controls(model)
        plan = what_if.plan(scores, block_removals.records())
        confidence.certainty(scores, plan)
        block = None if row == names[0] else names.index(row) - 1
        for component in model.shape.components:
            picture(model, scores, component, plan, order, block)
        if scores.basis == "channels":
            confidence.agreement(model, scores, what_if)
            criteria.panel(model, scores, what_if)
        channel.inspector(model, scores, plan, beside=bool(session().part(channel.Glass).clicked))
        removal.prepare(model)
