"""The jobs that measure the plan under the sliders: its accuracy, and its throughput."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import streamlit as st

from pages.services import block_removals, evaluation, jobs, scoring
from pages.services.open_model import OpenModel
from pages.tradeoff.state import state
from pages.widgets import progress
from upvit_core.planning.what_if import WhatIf
from upvit_core.records.basis import Basis
from upvit_core.records.plan import PruningPlan
from upvit_core.records.scores import ImportanceScores

if TYPE_CHECKING:
    from upvit_core.evaluation import Evaluation
    from upvit_core.profiling.throughput import SpeedUp


@dataclass(frozen=True)
class Measurements:
    """Jobs that measure one plan on the same images as the original; `other` is the same plan cut the other way."""

    accuracy: jobs.Job[Evaluation] | None = None
    other: jobs.Job[Evaluation] | None = None
    original: jobs.Job[evaluation.Baseline] | None = None
    speed: jobs.Job[SpeedUp] | None = None
    other_words: str = ""

    @property
    def all(self) -> tuple[jobs.AnyJob | None, ...]:
        return self.accuracy, self.other, self.original, self.speed


def other_way(model: OpenModel, now: WhatIf) -> WhatIf:
    """The paper's way if `now` is another, else rotated and repaired, or repaired if nothing can be rotated."""
    if now.repair or now.basis == Basis.DIRECTIONS:
        return replace(now, basis=Basis.CHANNELS, repair=False)
    basis = Basis.DIRECTIONS if scoring.can_find_directions(model) else Basis.CHANNELS
    return replace(now, basis=basis, repair=True)


def measure_plan(model: OpenModel, scores: ImportanceScores | None, plan: PruningPlan, now: WhatIf) -> Measurements:
    """The jobs of a plan: accuracy and speed start by themselves where the model is small, else on request."""
    if not model.can_measure:
        return Measurements(speed=jobs.find(evaluation.throughput_key(plan)))
    wanted = [(plan, now.repair)]
    against = other_way(model, now)
    record = None if model.is_elastic else scoring.for_planning(model, scores, against)[0]
    if record is not None and (record.basis == against.basis or against.basis == Basis.CHANNELS):
        wanted.append((against.plan(record, block_removals.records()), against.repair))
    keys = [evaluation.preview_key(model, plan, repair=repair) for plan, repair in wanted]
    current = (*keys, evaluation.throughput_key(plan))
    for key in state().previews:
        job = jobs.find(key)
        if key not in current and job is not None and job.active:
            jobs.discard(key)
    state().previews = current
    found: list[jobs.Job[Evaluation] | None]
    original: jobs.Job[evaluation.Baseline] | None
    if evaluation.measures_at_once(model):
        original = evaluation.measure_baseline(model)
        found = [evaluation.preview(model, plan, repair=repair) for plan, repair in wanted]
        speed: jobs.Job[SpeedUp] | None = evaluation.throughput(plan)
    else:
        known = jobs.find(evaluation.baseline_key(model)) or evaluation.stored_baseline(model)
        original = evaluation.measure_baseline(model) if known is not None else None
        found, speed = [jobs.find(key) for key in keys], jobs.find(evaluation.throughput_key(plan))
    words = "repaired" if against.repair else "cut as in the paper"
    return Measurements(found[0], found[1] if len(found) > 1 else None, original, speed, words)


def measure_button(model: OpenModel, plan: PruningPlan, what_if: WhatIf, found: Measurements) -> None:
    """The button for what is not measured by itself, or in its place the progress, so that nothing moves."""
    if evaluation.measures_at_once(model) and model.can_measure:
        return
    active = [job for job in found.all if job is not None and job.active]
    with st.container(key="slot-measure"):
        if active:
            progress.show(active[0])
        elif found.speed is None or (model.can_measure and found.accuracy is None):
            label = "Measure accuracy and speed here" if model.can_measure else "Time it here"
            help_text = "The original and this plan take turns on this device."
            if st.button(label, icon=":material/speed:", width="stretch", key="measure", help=help_text):
                evaluation.throughput(plan, again=True)
                if model.can_measure:
                    jobs.restart(evaluation.preview(model, plan, repair=what_if.repair))
                    evaluation.measure_baseline(model)
                st.rerun()
