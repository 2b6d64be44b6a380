"""Trade-off: move four sliders, see at once what stays, what it costs, and what it is expected to lose."""

import streamlit as st

from pages.shared import charts, frame, opened, scoring, whatif, words
from pages.shared.cards import ESTIMATED, Card, cards
from upvit_core.figures.heatmaps import strips
from upvit_core.profiling.macs import count_macs, count_parameters

with frame.page("Trade-off", "Choose how much to remove; everything on this page follows at once."):
    model = frame.current()
    scores = scoring.current(model)
    left, right = st.columns([0.27, 0.73], gap="medium")
    with left:
        whatif.preset_picker(model.shape)
        what_if = whatif.controls(model.shape)
    plan = what_if.plan(scores or opened.no_scores(model.shape))
    after, before = plan.shape_after, model.shape
    with right:
        params, macs = count_parameters(after), count_macs(after)
        cards(
            [
                Card("Parameters", words.short(params), f"{words.times(count_parameters(before) / params)} smaller"),
                Card("MACs, one image", words.short(macs), f"{words.times(count_macs(before) / macs)} fewer"),
                Card("Speed-up", words.times(count_macs(before) / macs), "from MACs alone", ESTIMATED),
                Card("Top-1 now", "—", "needs weights"),
            ]
        )
        if scores is None:
            st.info("No scores yet: widths and costs follow the sliders, the pictures need scores.")
        else:
            charts.show(strips(scores, plan, charts.theme()), "strips")
