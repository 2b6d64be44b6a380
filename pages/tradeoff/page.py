"""Trade-off: controls at the left, four numbers, pictures under tabs, and the front beside them, on one screen."""

from dataclasses import dataclass, replace

import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from pages.services import block_removals, demo_tour, evaluation, jobs, maps, scoring, slider_state
from pages.services.forecast import forecast_of
from pages.services.open_model import OpenModel, no_scores
from pages.services.session import session
from pages.tradeoff import (
    blocks,
    budget,
    changes,
    compare,
    depth,
    device_panel,
    distill,
    estimates,
    follow,
    map_section,
    pareto,
    save,
    tried_plans,
    undo,
    your_image,
)
from pages.tradeoff.measurements import Measurements, measure_button, measure_plan
from pages.widgets import charts, frame, progress, sliders
from upvit_core.figures.head_merging import draw_head_merging
from upvit_core.figures.heatmaps import draw_kept_strips
from upvit_core.planning.curves import share_removed
from upvit_core.planning.what_if import WhatIf
from upvit_core.profiling.macs import count_macs, count_parameters
from upvit_core.records.plan import PruningPlan
from upvit_core.records.scores import ImportanceScores

STAYS, MAP, BLOCKS, DEPTH, HEADS, COMPARE, CLASSES, YOURS, DETAILS = TABS = (
    "What stays", "Map", "Block by block", "Fewer blocks", "Heads", "Compare", "By class", "Your image",
    "Details",
)  # fmt: skip


@dataclass(frozen=True)
class Shown:
    """The plan under the sliders: `scores` the chosen ones, `planned` those by which this plan keeps channels."""

    model: OpenModel
    scores: ImportanceScores | None
    planned: ImportanceScores | None
    finding: jobs.Job[ImportanceScores] | None
    now: WhatIf
    plan: PruningPlan
    found: Measurements
    known: maps.Known | None


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
    elif (shipped := demo_tour.values_of(model, now)) is not None:
        entry = replace(entry, value=shipped["this"], images=evaluation.EVALUATION_IMAGES)
    if known is not None:
        entry = replace(entry, mapped=known.of(plan))
    if (speed := jobs.result_of(found.speed)) is not None:
        entry = replace(entry, speed_up=speed.ratio, speed_measured=True)
    tried_plans.record(model, scores, entry)


def the_heads(scores: ImportanceScores, plan: PruningPlan) -> None:
    block = st.slider("Block", 0, scores.shape.depth - 1, 0, key="merge-block") if scores.shape.depth > 1 else 0
    charts.show(draw_head_merging(scores, plan, block, charts.theme(), height=430), "head-flow")
    if plan.basis == "directions" and plan.heads_of(block) not in (None, scores.shape.blocks[block].num_heads):
        st.caption("By directions the cut joins the heads that attend most alike; here neighbours stand for them.")


def rail(model: OpenModel) -> tuple[WhatIf, DeltaGenerator]:
    """Presets, the way to cut and the sliders; returns where they stand, and the place of the budget beside presets."""
    with st.container(horizontal=True, vertical_alignment="bottom", gap="xsmall", key="preset-row"):
        sliders.preset_picker(model)
        budgets = st.container(width="content")
    if model.is_elastic:
        st.caption("Elastic model: every setting is a slice and keeps all heads and blocks.")
    elif model.shape.has_directions:
        sliders.basis_control(model)
    else:
        sliders.repair_control(model)
    return sliders.controls(model), budgets


def finer(shown: Shown) -> None:
    """Settings that are seldom needed, Undo and Redo."""
    model = shown.model
    with st.container(horizontal=True, vertical_alignment="center", key="finer-row"):
        with st.popover("Finer", icon=":material/tune:", type="tertiary", key="finer"):
            if model.shape.has_directions and not model.is_elastic:
                sliders.repair_control(model)
            if not model.shape.one_share:
                blocks.allocation_controls(model, shown.scores)
            device_panel.device_panel(model)
        undo.undo_buttons(model.source, shown.now)


def foot(shown: Shown) -> None:
    """The actions, always in sight."""
    model, now, plan, scores = shown.model, shown.now, shown.plan, shown.planned or shown.scores
    measure_button(model, plan, now, shown.found)
    distill.distil_button(model, shown.scores, now, shown.found)
    save.save_panel(model, scores, now, plan, shown.found, shown.known)


def pictures(shown: Shown) -> None:
    """One picture at a time, under tabs; a script run draws the open one alone."""
    model, now, plan, scores = shown.model, shown.now, shown.plan, shown.planned
    opened = DEPTH if now.depth is not None else BLOCKS if now.widths else STAYS
    lacking = () if changes.has_classes(model) else (CLASSES, YOURS)
    names = [name for name in TABS if name not in lacking and (name != YOURS or your_image.may_give())]
    tabs = dict(zip(names, st.tabs(names, key="pictures", on_change="rerun", default=opened), strict=True))
    with tabs[DEPTH]:  # its slider is part of the link, whichever tab is open
        if model.is_elastic:
            st.caption("Slices keep all blocks.")
        elif shown.scores is not None:
            depth.depth_panel(model, scores or shown.scores, now, shut=not tabs[DEPTH].open)
        elif tabs[DEPTH].open:
            st.caption("Fewer blocks need scores: make them on Importance.")
    name = next((name for name, tab in tabs.items() if tab.open), STAYS)
    with tabs[name]:
        if name == DEPTH:
            return
        if name == DETAILS:
            estimates.detail_cards(
                model, scores, plan, shown.found, None if shown.known is None else shown.known.of(plan)
            )
        elif name == CLASSES:
            changes.class_by_class(model, plan, now, shown.found)
        elif name == YOURS:
            your_image.draw(model, plan, now, shown.found)
        elif scores is None:
            waiting(shown)
        elif name == STAYS:
            charts.show(draw_kept_strips(scores, plan, charts.theme()), "strips")
        elif name == MAP:
            map_section.map_section(model, scores, now)
        elif name == BLOCKS:
            if model.shape.one_share or now.depth is not None:
                st.caption("Blocks are set together here: a model of stages, or one with fewer blocks.")
            else:
                blocks.blocks_table(plan, now)
        elif name == HEADS:
            the_heads(scores, plan)
        else:
            compare.compare_panel(model, scores, now, plan)


def waiting(shown: Shown) -> None:
    if shown.finding is not None:
        progress.show(shown.finding, height=480)
    else:
        frame.awaited(
            "Widths and costs follow the sliders already. The pictures of what stays will be here once there are "
            "scores: make them on Importance.",
            icon=":material/grid_on:",
        )


def body(model: OpenModel) -> None:
    scores = scoring.current(model)
    left, right = st.columns([0.235, 0.765], gap="medium")
    with left, st.container(key="rail"):
        now, budgets = rail(model)
        planned, finding = scoring.for_planning(model, scores, now)
        plan = now.plan(planned or scores or no_scores(model.shape), block_removals.records())
        found = Measurements() if finding is not None else measure_plan(model, scores, plan, now)
        known = maps.find(model, planned, now)
        shown = Shown(model, scores, planned, finding, now, plan, found, known)
        with budgets:
            budget.budget_panel(model, planned or scores, now, plan)
        finer(shown)
        with st.container(key="rail-foot"):
            foot(shown)
    if planned is not None:
        if (result := jobs.result_of(found.accuracy)) is not None:
            maps.give(model, planned, now, plan, result)
        record_plan(model, planned, now, plan, found, known)
    mapped = None if known is None else known.of(plan)
    ahead = forecast_of(model, found.accuracy, mapped)
    with right:
        estimates.number_cards(model, planned, plan, now, found, mapped)
        budget.budget_result(model, planned or scores, plan)
        for job in found.all:
            if job is not None and not job.active:
                progress.show(job)
        middle, side = st.columns([0.61, 0.39], gap="medium")
        with middle:
            pictures(shown)
        with side:
            if planned is not None:
                pareto.pareto_section(model, planned, now, ahead)
            changes.draw(model, plan, now, found)
            if ahead is not None:
                st.html(
                    f'<p class="quiet">○ After {ahead.epochs} epochs of distillation: <b>{ahead.low:.1f} – '
                    f"{ahead.high:.1f} %</b> top-1, forecast (80 % band) from {ahead.runs} finished runs of this model "
                    "by one recipe in this studio.</p>"
                )
    follow.follower(model, now, plan, known)


with frame.page(
    "Trade-off",
    "",
    "Choose how much to remove; size, speed and what stays follow at once. Parameters and MACs are counted exactly. "
    "MACs: multiply-accumulates of the forward pass of one image (or block of text), attention's QKᵀ and AV included.",
):
    opened = frame.current()
    if (target := session().move_to) is not None:
        session().move_to = None
        slider_state.set_to(target)
    body(opened)
