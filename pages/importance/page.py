"""Importance: every channel of the model as a picture, where the cut falls, and any one channel under the glass."""

from functools import partial

import streamlit as st

from pages.importance import channel, confidence, criteria, direction
from pages.services import block_removals, removal, scoring, slider_state
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
from upvit_core.records.shape import Component

HEIGHTS: dict[Component, int] = {"residual": 250, "attention": 300, "ffn": 300, "reduction": 280}
WHAT: dict[Component, str] = {
    "residual": "Channels of the stream that every block reads from and writes to. Removing one narrows {all}.",
    "attention": "Channels inside the attention heads, block by block. {heads}",
    "ffn": "Hidden channels of the feed-forward networks, block by block.",
    "reduction": "Channels of the smaller map from which a block makes its keys and values, block by block.",
}


def clicked(model: OpenModel, basis: str, component: Component, drawn: Picture) -> None:
    """A cell was clicked: its channel goes under the glass, before the page is run again.

    A second click on a cell takes its selection back; where another picture was clicked in between, it is meant anew.
    """
    points = st.session_state[f"{component}-scores"]["selection"]["points"]
    before = session().part(channel.Glass).clicked
    if points or component in before:
        where = channel_at(drawn, points[0]["x"], points[0]["y"]) if points else before[component]
        before[component] = where
        channel.choose(model, basis, component, *where)


def ring(component: Component, layout: Spec, drawn: Picture, where: tuple[int, int]) -> None:
    """A ring around a channel, over its picture; a mark in the chart itself would have the chart made anew."""
    spot, margin = heatmaps.spot(drawn, layout, *where), layout["margin"]
    with st.container(key=f"ring-{component}"):
        if spot is not None:
            left = f"calc({margin['l']}px + (100% - {margin['l'] + margin['r']}px) * {spot[0]:.6f})"
            st.html(f'<div class="ring" aria-hidden="true" style="left: {left}; top: {spot[1]:.1f}px"></div>')


def picture(
    model: OpenModel, scores: ImportanceScores, component: Component, plan: PruningPlan, order: str, block: int | None
) -> None:
    alone = None if component == "residual" else block
    if alone is not None and alone not in {group.place for group in scores.shape.groups_of(component)}:
        return
    theme, selected = charts.theme(), channel.under_glass(scores)
    wide, narrow = st.columns([0.73, 0.27], gap="small")
    with wide:
        chart, drawn = heatmaps.heatmap(
            scores,
            component,
            plan,
            theme,
            "position" if order == "By position" else "importance",
            block=alone,
            height=HEIGHTS[component] if alone is None else 250,
        )
        told = direction.WHAT[component] if scores.basis == "directions" else WHAT[component].format(
            all="its whole stage" if len(scores.shape.embed_dims) > 1 else "the whole model",
            heads="Heads are merged first; then each merged head is cut." if len(head_options(scores.shape)) > 1
            else "Each head is cut.",
        )  # fmt: skip
        if selected[0] == component:
            told += f' <a class="term" href="#{channel.ANCHOR}">Number {selected[2]} is under the glass ↓</a>'
        st.html(f'<h3 class="part {component}">{terms.linked(chart.title)}</h3><p class="quiet">{told}</p>')
        click = partial(clicked, model, scores.basis, component, drawn)
        with st.container(key=f"picture-{component}"):
            charts.show(chart, f"{component}-scores", on_select=click, tools=False)
            if selected[0] == component:
                ring(component, charts.presented(chart).spec["layout"], drawn, selected[1:])
    with narrow:
        curve = kept_curve(scores, component, plan, theme, block=alone, height=HEIGHTS[component])
        st.html(
            f'<h3 class="part">{curve.title}</h3><p class="quiet">Share of the score that the best '
            f"{member_word(scores, component)}s hold.</p>"
        )
        charts.show(curve, f"{component}-curve")


with frame.page(
    "Importance",
    "How much the model's answers change when one channel is missing: bright is important, dark can go.",
    "The score of a channel is Σᵢ KL(qᵢ ‖ pᵢ) in nats, summed over the proxy images, or the tokens of a text: qᵢ is "
    "what the model says about number i, pᵢ what it says without that channel.",
):
    model = frame.current()
    with presenter.folded("Scores"):
        scores_panel.scores_panel(model)
    scores = scoring.current(model)
    if scores is None:
        what = (
            "Press **Score…** to make them." if model.has_weights else "Open a model with weights, or published scores."
        )
        frame.awaited(
            f"Three pictures will be here, one per component, once there are scores. {what}", icon=":material/grid_on:"
        )
    elif (scores := direction.switch(model, scores)) is not None:
        keys = slider_state.keys_of(model.shape)
        cells = dict(zip(keys, st.columns(len(keys), gap="medium" if len(keys) < 5 else "small"), strict=True))
        what_if = sliders.controls(model.shape, cells)
        plan = what_if.plan(scores, block_removals.records())
        confidence.certainty(scores, plan)
        one, two, _ = st.columns([0.3, 0.2, 0.5], vertical_alignment="bottom")
        with one:
            order = st.segmented_control(
                "Order",
                ["By importance", "By position"],
                default="By importance",
                required=True,
                key="order",
                bind="query-params",
                help="By importance: in every row the best channel comes first, so the cut is a line. By position: as "
                "they lie "
                "in the model.",
            )
        with two:
            names = ["All blocks", *(f"Block {b}" for b in range(model.shape.depth))]
            row = st.selectbox("Blocks", names, key="row", bind="query-params")
        block = None if row == names[0] else names.index(row) - 1
        for component in model.shape.components:
            picture(model, scores, component, plan, order, block)
        if scores.basis == "channels":
            confidence.agreement(model, scores, what_if)
            criteria.panel(model, scores, what_if)
        channel.inspector(model, scores, plan)
        removal.prepare(model)
