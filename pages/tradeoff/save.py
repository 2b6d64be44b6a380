"""Save and share: the pruned model, its command line, the report, and the plan as a file."""

import streamlit as st

from pages.services import jobs, maps, plan_commands, reports
from pages.services.open_model import OpenModel
from pages.tradeoff import prune, saved_plans
from pages.tradeoff.measurements import Measurements
from upvit_core.planning.what_if import WhatIf
from upvit_core.records.plan import PruningPlan
from upvit_core.records.scores import ImportanceScores


def save_panel(
    model: OpenModel,
    scores: ImportanceScores | None,
    now: WhatIf,
    plan: PruningPlan,
    found: Measurements,
    known: maps.Known | None,
) -> None:
    with st.popover(
        "Save and share", icon=":material/ios_share:", width="stretch", key="save-box", on_change="rerun"
    ) as box:
        if not box.open:
            return
        prune.prune_button(model, plan, now)
        st.download_button(
            "Report",
            data=lambda: reports.report_of_plan(
                model, scores, now, plan, jobs.result_of(found.accuracy), jobs.result_of(found.speed), known
            ),
            mime="text/html",
            file_name=f"plan-{plan.digest}.html",
            icon=":material/article:",
            on_click="ignore",
            width="stretch",
            key="report-plan",
            help=reports.HELP,
        )
        st.download_button(
            "Plan file",
            data=lambda: saved_plans.file_content(now.words, plan, now),
            file_name="plan.json",
            mime="application/json",
            icon=":material/download:",
            on_click="ignore",
            width="stretch",
            key="plan-file",
            help="A plan.json: `python -m upvit_core prune MODEL plan.json` cuts by it, and another studio opens it.",
        )
        st.caption("The address of this page shows this very plan. On a machine without a browser:")
        st.code(plan_commands.commands(model, scores, now, plan), language=None, wrap_lines=True, width=560)
        if not model.has_weights:
            st.caption("MODEL is a checkpoint of this shape, IMAGES a folder of classes: this app has only its scores.")
