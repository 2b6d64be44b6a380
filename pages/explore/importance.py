"""Importance: every channel of the model as a picture, where the cut falls, and any one channel under the glass."""

import streamlit as st

from pages.shared import channel, charts, criteria, direction, frame, measured, presenter, scoring, terms, trust, whatif
from upvit_core.figures.curves import kept_curve
from upvit_core.figures.heatmaps import channel_at, heatmap, member_word
from upvit_core.importance.scores import ImportanceScores
from upvit_core.models.shape import Component
from upvit_core.planning.plan import PruningPlan

HEIGHTS: dict[Component, int] = {"residual": 250, "attention": 300, "ffn": 300, "reduction": 280}
WHAT: dict[Component, str] = {
    "residual": "Channels of the stream that every block reads from and writes to. Removing one narrows the whole "
    "model.",
    "attention": "Channels inside the attention heads, block by block. Heads are merged first; then each merged head "
    "is cut.",
    "ffn": "Hidden channels of the feed-forward networks, block by block.",
    "reduction": "Channels of the smaller map from which a block makes its keys and values, block by block.",
}


def picture(scores: ImportanceScores, component: Component, plan: PruningPlan, order: str, block: int | None) -> None:
    alone = None if component == "residual" else block
    if alone is not None and alone not in {group.place for group in scores.shape.groups_of(component)}:
        return
    theme, selected = charts.theme(), st.session_state.get("channel")
    wide, narrow = st.columns([0.73, 0.27], gap="small")
    with wide:
        ring = (selected[1], selected[2]) if selected and selected[0] == component else None
        chart, drawn = heatmap(
            scores,
            component,
            plan,
            theme,
            "position" if order == "By position" else "importance",
            block=alone,
            selected=ring,
            height=HEIGHTS[component] if alone is None else 250,
        )
        told = direction.WHAT[component] if scores.basis == "directions" else WHAT[component]
        st.html(f'<h3 class="part {component}">{terms.linked(chart.title)}</h3><p class="quiet">{told}</p>')
        event = charts.show(chart, f"{component}-scores", on_select="rerun", tools=False)
        points = event["selection"]["points"] if event else []
        if points:
            where = channel_at(drawn, points[0]["x"], points[0]["y"])
            click = (component, points[0]["x"], points[0]["y"])
            if st.session_state.get("click") != click:
                st.session_state["click"] = click
                channel.choose(component, *where)
                st.rerun()
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
    "The score of a channel is Σᵢ KL(qᵢ ‖ pᵢ) in nats, summed over the proxy images: qᵢ is what the model says about "
    "image i, "
    "pᵢ what it says without that channel.",
):
    model = frame.current()
    with presenter.folded("Scores"):
        scoring.panel(model)
    scores = scoring.current(model)
    if scores is None:
        what = (
            "Press **Score…** to make them." if model.has_weights else "Open a model with weights, or published scores."
        )
        st.info(
            f"Three pictures will be here, one per component, once there are scores. {what}", icon=":material/grid_on:"
        )
    elif (scores := direction.switch(model, scores, measured.image_spec(model))) is not None:
        keys = whatif.keys_of(model.shape)
        cells = dict(zip(keys, st.columns(len(keys), gap="medium"), strict=True))
        what_if = whatif.controls(model.shape, cells)
        plan = what_if.plan(scores)
        trust.certainty(scores, plan)
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
            picture(scores, component, plan, order, block)
        if scores.basis == "channels":
            trust.agreement(model, scores, what_if)
            criteria.panel(model, scores, what_if)
        channel.inspector(model, scores, plan)
