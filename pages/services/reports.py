"""The report of what is on the page, as one HTML file to take away; written when the button is pressed, not before."""

from __future__ import annotations

import streamlit as st

from pages.services import evaluation, jobs, plan_commands
from pages.services.open_model import OpenModel
from upvit_core.planning.what_if import WhatIf
from upvit_core.records.plan import PruningPlan
from upvit_core.records.scores import ImportanceScores
from upvit_core.records.task import data_name, task_of

HELP = (
    "One HTML file: figures, numbers, where they come from, the commands that make them again. Opens without a "
    "network, prints on A4."
)


def of_plan(
    model: OpenModel, scores: ImportanceScores | None, what_if: WhatIf, plan: PruningPlan,
    accuracy: jobs.Job | None, speed: jobs.Job | None,
) -> str:  # fmt: skip
    from upvit_core.report import Measurement, plan_report

    told = []
    if accuracy is not None and accuracy.state == "done":
        result = accuracy.result
        task = task_of(model.shape)
        low, high = task.interval(result)
        under, over = result.kl_interval or (result.kl, result.kl)
        data = data_name(evaluation.image_spec(model))
        how = f"{result.images:,} {task.samples} of {data}, measured, no training"
        told.append(
            Measurement(task.name, f"{task.format(task.value(result), 2)} (95 %: {low:.2f} to {high:.2f})", how)
        )
        told.append(
            Measurement("KL to the original", f"{result.kl:.4g} {task.nats} (95 %: {under:.4g} to {over:.4g})", how)
        )
    if speed is not None and speed.state == "done":
        found, second = speed.result, speed.result.second
        how = f"measured on {second.device}, batch {second.batch_size}, {second.dtype}, in turns"
        value = f"{found.ratio:.2f} times the original ({found.low:.2f} to {found.high:.2f})"
        told.append(Measurement("Throughput", value, how))
    return plan_report(
        plan, scores, name=f"{model.name}, {what_if.words}", measured=told,
        commands=plan_commands.commands(model, scores, what_if, plan),
    )  # fmt: skip


def plan_button(
    model: OpenModel, scores: ImportanceScores | None, what_if: WhatIf, plan: PruningPlan,
    accuracy: jobs.Job | None, speed: jobs.Job | None,
) -> None:  # fmt: skip
    st.download_button(
        "Report", data=lambda: of_plan(model, scores, what_if, plan, accuracy, speed), mime="text/html",
        file_name=f"plan-{plan.digest}.html", icon=":material/article:", on_click="ignore", width="stretch",
        key="report-plan", help=HELP,
    )  # fmt: skip
