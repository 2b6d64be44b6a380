"""The jobs that measure the plan under the sliders: its accuracy, and its throughput."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import streamlit as st

from pages.services import evaluation, jobs
from pages.services.open_model import OpenModel
from pages.tradeoff.state import state
from pages.widgets import progress
from upvit_core.planning.what_if import WhatIf
from upvit_core.records.plan import PruningPlan

if TYPE_CHECKING:
    from upvit_core.evaluation import Evaluation
    from upvit_core.profiling.throughput import SpeedUp


@dataclass(frozen=True)
class Measurements:
    """Jobs that measure one plan; `unrepaired` measures the same plan before repair."""

    accuracy: jobs.Job[Evaluation] | None = None
    unrepaired: jobs.Job[Evaluation] | None = None
    speed: jobs.Job[SpeedUp] | None = None

    @property
    def all(self) -> tuple[jobs.AnyJob | None, ...]:
        return self.accuracy, self.unrepaired, self.speed


def measure_plan(model: OpenModel, plan: PruningPlan, what_if: WhatIf) -> Measurements:
    """The jobs of a plan: accuracy starts by itself where the model is small, throughput on request."""
    speed: jobs.Job[SpeedUp] | None = jobs.find(evaluation.throughput_key(plan))
    if not model.can_measure:
        return Measurements(speed=speed)
    keys = {repair: evaluation.preview_key(model, plan, repair=repair) for repair in {False, what_if.repair}}
    for key in state().previews:
        job = jobs.find(key)
        if key not in keys.values() and job is not None and job.active:
            jobs.discard(key)
    state().previews = tuple(keys.values())
    previews: dict[bool, jobs.Job[Evaluation] | None] = {}
    for repair in sorted(keys):
        if evaluation.measures_at_once(model):
            previews[repair] = evaluation.preview(model, plan, repair=repair)
        else:
            previews[repair] = jobs.find(keys[repair])
    return Measurements(previews[what_if.repair], previews[False] if what_if.repair else None, speed)


def measure_button(model: OpenModel, plan: PruningPlan, what_if: WhatIf) -> None:
    """The button that measures, or in its place the progress, so that nothing moves."""
    running = [jobs.find(evaluation.throughput_key(plan))]
    if model.can_measure and not evaluation.measures_at_once(model):
        running.append(jobs.find(evaluation.preview_key(model, plan, repair=what_if.repair)))
    active = [job for job in running if job is not None and job.active]
    with st.container(key="slot-measure"):
        if active:
            progress.show(active[0])
        elif st.button(
            "Measure",
            icon=":material/speed:",
            width="stretch",
            key="measure",
            help="Throughput of the original and of this plan on this device, in turns: 20 s at most; for a large "
            f"model, {model.task.name.lower()} too.",
        ):
            evaluation.throughput(plan)
            if model.can_measure:
                jobs.restart(evaluation.preview(model, plan, repair=what_if.repair))
            st.rerun()
