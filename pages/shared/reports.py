"""The report of what is on the page, as one HTML file to take away; written when the button is pressed, not before."""

from __future__ import annotations

import streamlit as st

from pages.shared import jobs, measured, plan_commands, words
from pages.shared.opened import Opened
from pages.shared.whatif import WhatIf
from upvit_core.importance.scores import ImportanceScores
from upvit_core.models.judge import judge_of
from upvit_core.planning.plan import PruningPlan
from upvit_core.runs.store import Run, RunStore

HELP = (
    "One HTML file: figures, numbers, where they come from, the commands that make them again. Opens without a "
    "network, prints on A4."
)


def of_plan(
    model: Opened, scores: ImportanceScores | None, what_if: WhatIf, plan: PruningPlan,
    accuracy: jobs.Job | None, speed: jobs.Job | None,
) -> str:  # fmt: skip
    from upvit_core.report import Measurement, plan_report

    told = []
    if accuracy is not None and accuracy.state == "done":
        result = accuracy.result
        judge = judge_of(model.shape)
        low, high = judge.interval(result)
        under, over = result.kl_interval or (result.kl, result.kl)
        how = (
            f"{result.images:,} {judge.samples} of {words.data_name(measured.image_spec(model))}, measured, no training"
        )
        told.append(
            Measurement(judge.name, f"{judge.told(judge.value(result), 2)} (95 %: {low:.2f} to {high:.2f})", how)
        )
        told.append(
            Measurement("KL to the original", f"{result.kl:.4g} {judge.nats} (95 %: {under:.4g} to {over:.4g})", how)
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
    model: Opened, scores: ImportanceScores | None, what_if: WhatIf, plan: PruningPlan,
    accuracy: jobs.Job | None, speed: jobs.Job | None,
) -> None:  # fmt: skip
    st.download_button(
        "Report", data=lambda: of_plan(model, scores, what_if, plan, accuracy, speed), mime="text/html",
        file_name=f"plan-{plan.digest}.html", icon=":material/article:", on_click="ignore", width="stretch",
        key="report-plan", help=HELP,
    )  # fmt: skip


def run_button(store: RunStore, run: Run) -> None:
    def write() -> str:
        from upvit_core.report import run_report

        return run_report(store, run.id)

    st.download_button(
        "Report", data=write, file_name=f"{run.id}.html", mime="text/html", icon=":material/article:",
        on_click="ignore", key=f"report-{run.id}", width="stretch", help=HELP,
    )  # fmt: skip
