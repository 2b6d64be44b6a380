"""The closing slide of Method: the model before and after, in parameters and in right answers on the same images."""

from __future__ import annotations

from typing import TYPE_CHECKING

import streamlit as st

from pages.method import sizes_lesson
from pages.method.lesson import say
from pages.services import block_removals, evaluation, jobs, open_model, scoring, slider_state
from pages.services.open_model import OpenModel
from pages.widgets import charts, progress
from upvit_core import units
from upvit_core.planning.what_if import WhatIf
from upvit_core.profiling.macs import count_macs, count_parameters
from upvit_core.records.scores import ImportanceScores

if TYPE_CHECKING:
    from upvit_core.evaluation import Evaluation

MOMENTS = ("This cut", "Every size")
HEIGHT = 430


def slide(model: OpenModel, scores: ImportanceScores | None) -> None:
    """Draw what the plan under the sliders does to the open model, or all sizes that one model holds."""
    moment = st.segmented_control(
        "Step", MOMENTS, default=MOMENTS[0], required=True, key="lesson-closing", label_visibility="collapsed"
    )
    (this_cut if moment == MOMENTS[0] else every_size)(model, scores)


def every_size(model: OpenModel, scores: ImportanceScores | None) -> None:
    """Draw the accuracy of all sizes of one elastic model."""
    text, picture = st.columns([0.36, 0.64], gap="large")
    with text:
        say(sizes_lesson.WORDS)
    job = sizes_lesson.sizes_job(model)
    with picture:
        if job is None:
            st.info("One model of every size is made from a plain ViT classifier with weights, and images.")
        elif (sizes := progress.show(job, height=HEIGHT)) is not None:
            sizes_lesson.draw(sizes, model, charts.theme(), HEIGHT)


def this_cut(model: OpenModel, scores: ImportanceScores | None) -> None:
    """Draw the plan under the sliders beside the original."""
    now = slider_state.current(model)
    planned, finding = scoring.for_planning(model, scores, now) if scores is not None else (None, None)
    known = planned if planned is not None else open_model.no_scores(model.shape)
    plan = now.plan(known, block_removals.records())
    after, task = plan.shape_after, model.task
    before, thin = count_parameters(model.shape), count_parameters(after)
    times = units.times(count_macs(model.shape) / count_macs(after))
    st.html(f'<div class="closing"><b>{units.short(before)} → {units.short(thin)}</b><span>parameters</span></div>')
    both = whole_and_thin(model, planned, now)
    measured = [jobs.result_of(job) for job in both]
    if len(measured) == 2 and measured[0] is not None and measured[1] is not None:
        first, last = (task.format(task.value(result)) for result in measured)
        images = f"{task.name.lower()} on the same {measured[0].images:,} {task.samples}, without training"
        st.html(f'<div class="closing"><b>{first} → {last}</b><span>{images}</span></div>')
    say(
        f"<p>We scored every channel, kept the best, and cut: <b>{now.words}</b>. What is left is an ordinary "
        f"model, with {times} fewer multiplications. What it lost, it learns again from the original.</p>"
    )
    progress.show(finding)
    for job in both:
        if job.state != "done":
            progress.show(job, cancellable=False)
            break


def whole_and_thin(model: OpenModel, planned: ImportanceScores | None, now: WhatIf) -> list[jobs.Job[Evaluation]]:
    """The jobs that measure the original and the plan on the same images; none where they cannot be measured."""
    if not model.can_measure or planned is None:
        return []
    whole = WhatIf(0, 0, model.shape.num_heads, 0, reduction=0 if "reduction" in model.shape.components else None)
    cuts = ((whole, False), (now, now.repair))
    return [
        evaluation.preview(model, cut.plan(planned, block_removals.records()), repair=repair) for cut, repair in cuts
    ]
