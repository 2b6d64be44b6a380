"""Trade-off: move four sliders, see at once what stays, what it costs, and what it is expected to lose."""

from dataclasses import replace

import streamlit as st

from pages.services import block_removals, jobs, maps, plan_commands, reports, scoring, slider_state
from pages.services.open_model import OpenModel, no_scores
from pages.services.session import session
from pages.tradeoff import (
    blocks,
    budget,
    compare,
    depth,
    device_panel,
    distill,
    estimates,
    map_section,
    pareto,
    prune,
    tried_plans,
    undo,
)
from pages.tradeoff.forecast import forecast_line, forecast_of
from pages.tradeoff.measurements import Measurements, measure_button, measure_plan
from pages.widgets import charts, frame, presenter, progress, sliders
from upvit_core.figures.head_merging import draw_head_merging
from upvit_core.figures.heatmaps import draw_kept_strips
from upvit_core.planning.curves import share_removed
from upvit_core.planning.what_if import WhatIf, head_options
from upvit_core.profiling.macs import count_macs, count_parameters
from upvit_core.records.plan import PruningPlan
from upvit_core.records.scores import ImportanceScores


def record_plan(
    model: OpenModel,
    scores: ImportanceScores,
    now: WhatIf,
    plan: PruningPlan,
    found: Measurements,
    known: maps.Known | None,
) -> None:
    """Put this plan on the front, with what has been measured of it."""
    times, shape = estimates.latencies(model, plan), plan.shape_after
    entry = tried_plans.TriedPlan(
        now,
        count_parameters(shape),
        count_macs(shape),
        share_removed(scores, plan),
        speed_up=times[0] / times[1] if times else 0.0,
    )
    if (result := jobs.result_of(found.accuracy)) is not None:
        entry = entry.measured(model.task, result)
    if known is not None:
        entry = replace(entry, mapped=known.of(plan))
    if (speed := jobs.result_of(found.speed)) is not None:
        entry = replace(entry, speed_up=speed.ratio, speed_measured=True)
    tried_plans.record(model, scores, entry)


def the_heads(scores: ImportanceScores, plan: PruningPlan) -> None:
    together = len(head_options(scores.shape)) > 1
    st.subheader("Heads that flow together" if together else "What stays of each head", anchor=False)
    block = st.slider("Block", 0, scores.shape.depth - 1, 0, key="merge-block") if scores.shape.depth > 1 else 0
    charts.show(draw_head_merging(scores, plan, block, charts.theme(), height=430), "head-flow")
    if plan.basis == "directions" and plan.heads_of(block) not in (None, scores.shape.blocks[block].num_heads):
        st.caption("By directions the cut joins the heads that attend most alike; here neighbours stand for them.")


def command_button(model: OpenModel, scores: ImportanceScores | None, now: WhatIf, plan: PruningPlan) -> None:
    with st.popover(
        "Copy command",
        icon=":material/terminal:",
        width="stretch",
        help="For a machine without a browser.",
        key="command-box",
        on_change="rerun",
    ) as box:
        if box.open:
            commands = plan_commands.commands(model, scores, now, plan)
            st.code(commands, language=None, wrap_lines=True, width=560)
            if not model.has_weights:
                st.caption(
                    "MODEL is a checkpoint of this shape, IMAGES a folder of classes: this app has only its scores."
                )


def report_button(
    model: OpenModel, scores: ImportanceScores | None, now: WhatIf, plan: PruningPlan, found: Measurements
) -> None:
    def write() -> str:
        accuracy, speed = jobs.result_of(found.accuracy), jobs.result_of(found.speed)
        return reports.report_of_plan(model, scores, now, plan, accuracy, speed)

    st.download_button(
        "Report",
        data=write,
        mime="text/html",
        file_name=f"plan-{plan.digest}.html",
        icon=":material/article:",
        on_click="ignore",
        width="stretch",
        key="report-plan",
        help=reports.HELP,
    )


with frame.page(
    "Trade-off",
    "Choose how much to remove; size, speed and what stays follow at once.",
    "Parameters and MACs are counted exactly. MACs: multiply-accumulates of the forward pass of one image (or block of "
    "text), attention's QKᵀ and AV "
    "included.",
):
    model = frame.current()
    scores = scoring.current(model)
    if (target := session().move_to) is not None:
        session().move_to = None
        slider_state.set_to(target)
    left, right = st.columns([0.25, 0.75], gap="medium")
    with left:
        sliders.preset_picker(model.shape)
        with presenter.folded("How"):
            sliders.method_controls(model.shape, model.can_measure)
            if not model.shape.one_share:
                blocks.allocation_controls(model.shape, scores)
        now = sliders.controls(model.shape)
        shown, finding = scoring.for_planning(model, scores, now)
        plan = now.plan(shown or scores or no_scores(model.shape), block_removals.records())
        found = Measurements() if finding is not None else measure_plan(model, plan, now)
        known = None if shown is None else maps.find(model, shown, now)
        mapped = None if known is None else known.of(plan)
        ahead = forecast_of(model, found.accuracy, mapped)
    if shown is not None and (result := jobs.result_of(found.accuracy)) is not None:
        maps.give(model, shown, now, plan, result)
    with right:
        estimates.number_cards(model, shown, plan, now, found, mapped)
        forecast_line(ahead)
        budget.budget_result(model, shown or scores, plan)
        for job in found.all:
            if job is not None and not job.active:
                progress.show(job)
        if shown is not None:
            charts.show(draw_kept_strips(shown, plan, charts.theme()), "strips")
    with left:  # after the pictures, which a slider's move should change first
        undo.undo_buttons(model.source, now)
        with presenter.folded("More"):
            device_panel.device_panel(model)
            budget.budget_panel(model, shown or scores, now, plan)
            measure_button(model, plan, now)
            prune.prune_button(model, plan, now)
            distill.distil_button(model, scores, now)
            command_button(model, shown or scores, now, plan)
            report_button(model, shown or scores, now, plan, found)
    with right:
        if shown is not None:
            if not model.shape.one_share and now.depth is None:
                icon, opened = ":material/table_rows:", bool(now.widths)
                with st.expander(
                    "Block by block", icon=icon, expanded=opened, key="block-by-block", on_change="rerun"
                ) as box:
                    if box.open:
                        blocks.blocks_table(plan, now)
        elif finding is not None:
            progress.show(finding, height=560)
        elif scores is None:
            frame.awaited(
                "Widths and costs follow the sliders already. The pictures of what stays will be here once there are "
                "scores: make them on Importance.",
                icon=":material/grid_on:",
            )
        if scores is not None:
            depth.depth_panel(model, shown or scores, now)
    if shown is not None:
        record_plan(model, shown, now, plan, found, known)
        map_section.map_section(model, shown, now)
        wide, narrow = st.columns([0.56, 0.44], gap="large")
        with wide:
            pareto.pareto_section(model, shown, now, ahead)
        with narrow:
            the_heads(shown, plan)
        compare.compare_panel(model, shown, now, plan)
