"""The report of a plan: one HTML file with the figures, numbers and commands of the Trade-off page."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pages.services import plan_commands
from pages.services.maps import Known
from pages.services.open_model import OpenModel
from upvit_core.planning.what_if import WhatIf
from upvit_core.records.plan import PruningPlan
from upvit_core.records.scores import ImportanceScores
from upvit_core.records.task import data_name

if TYPE_CHECKING:
    from upvit_core.evaluation import Evaluation
    from upvit_core.profiling.throughput import SpeedUp

HELP = (
    "One HTML file: sliders, figures, numbers, where they come from, the commands that make them again. Opens "
    "without a network, on a phone too; prints on A4."
)


def report_of_plan(
    model: OpenModel,
    scores: ImportanceScores | None,
    what_if: WhatIf,
    plan: PruningPlan,
    accuracy: Evaluation | None,
    speed: SpeedUp | None,
    known: Known | None,
) -> str:
    from upvit_core.report import Measurement, plan_report

    measured, task = [], model.task
    if accuracy is not None and accuracy.kl is not None:
        low, high = task.interval(accuracy)
        under, over = accuracy.kl_interval or (accuracy.kl, accuracy.kl)
        how = f"{accuracy.images:,} {task.samples} of {data_name(model.dataset)}, measured, no training"
        value = f"{task.format(task.value(accuracy), 2)} (95 %: {low:.2f} to {high:.2f})"
        kl = f"{accuracy.kl:.4g} {task.nats} (95 %: {under:.4g} to {over:.4g})"
        measured += [Measurement(task.name, value, how), Measurement("KL to the original", kl, how)]
    if speed is not None:
        second = speed.second
        how = f"measured on {second.device}, batch {second.batch_size}, {second.dtype}, in turns"
        value = f"{speed.ratio:.2f} times the original ({speed.low:.2f} to {speed.high:.2f})"
        measured.append(Measurement("Throughput", value, how))
    commands = plan_commands.commands(model, scores, what_if, plan)
    name, surrogate = f"{model.name}, {what_if.words}", None if known is None else known.surrogate
    return plan_report(plan, scores, name=name, measured=measured, commands=commands, surrogate=surrogate)
