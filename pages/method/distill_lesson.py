"""The last step of Method: a small real run, from surgery to recovery within class time, with a live curve."""

import json

import streamlit as st

from pages.method.closing import whole_and_thin
from pages.method.lesson import say
from pages.services import block_removals, folders, jobs, launch, limits, open_model, recipes, scoring, slider_state
from pages.services.open_model import OpenModel
from pages.services.session import session
from pages.widgets import charts, progress
from pages.widgets.plain import plain
from upvit_core import units
from upvit_core.figures.evaluations import Points
from upvit_core.figures.learning_curve import plot_learning_curve
from upvit_core.planning.what_if import WhatIf
from upvit_core.records.scores import ImportanceScores
from upvit_core.records.task import task_of_rows
from upvit_core.runs.spec import RunSpec
from upvit_core.runs.store import RunStore
from upvit_core.training.settings import PRESETS


def teacher(model: OpenModel, scores: ImportanceScores | None, *, height: int) -> None:
    text, picture = st.columns([0.36, 0.64], gap="large")
    now = slider_state.current(model)
    planned, finding = scoring.for_planning(model, scores, now)
    ready = model.can_measure and planned is not None
    store = RunStore(folders.runs())
    run_id = session().lessons.get(model.source)
    going = run_id in {summary.id for summary in store.list() if summary.state.is_active}
    with text:
        say(
            "<p>Right after the cut the thin model is confused. So it learns again, taught by the original:</p>"
            "<div class='equation'>L = CE( y, p ) + α · KL( q ‖ p )</div>"
            "<p>Predict the label y, <i>and</i> answer as the teacher does (q).</p>"
        )
        epochs = st.slider(
            "Epochs", 1, 6, 2, key="lesson-epochs", help=f"Cut as set on Trade-off: {now.words} removed."
        )
        off, icon, why = going or not ready, ":material/school:", "This lesson is still going; Runs can stop it."
        if st.button(
            "Teach it", type="primary", icon=icon, disabled=off, key="lesson-start", help=why if going else None
        ):
            session().lessons[model.source] = start_lesson(store, model, planned, now, int(epochs))
            st.rerun()
        if words := limits.room_words(store):
            st.caption(words)
        progress.show(finding)
        if finding is None and not ready:
            st.caption(f"Needs weights, scores and {model.task.data}. The demo has them all.")
    with picture:
        if run_id is None:
            before_the_press(model, planned, now, height)
            return
        watch(store, run_id, height)


def before_the_press(model: OpenModel, planned: ImportanceScores | None, now: WhatIf, height: int) -> None:
    """Draw where the curve will begin and where it is to go, as far as both are measured."""
    jobs_of = whole_and_thin(model, planned, now)
    whole, thin = (jobs.result_of(job) for job in jobs_of) if jobs_of else (None, None)
    task = model.task
    chart = plot_learning_curve(
        [] if thin is None else [0],
        [] if thin is None else [task.value(thin)],
        None if whole is None else task.value(whole),
        charts.theme(),
        task=task,
        height=height - 70,
    )
    charts.show(charts.enlarged(chart), "lesson-before")
    for job in jobs_of:
        if job.state != "done":
            progress.show(job, cancellable=False)
            return


def start_lesson(
    store: RunStore, model: OpenModel, scores: ImportanceScores | None, what_if: WhatIf, epochs: int
) -> str:
    """Start a small real run; returns its id."""
    plan = what_if.plan(scores if scores is not None else open_model.no_scores(model.shape), block_removals.records())
    order = RunSpec(
        name=f"Lesson: {model.name} "
             f"{what_if.words}"[:200], teacher=model.model, plan=json.loads(plan.to_json()), data=model.dataset,
        repair=what_if.repair, epochs=epochs, settings=PRESETS[recipes.usual(model, what_if)],
    )  # fmt: skip
    (run,) = launch.start(store, [order])
    return run.id


def watch(store: RunStore, run_id: str, height: int) -> None:
    """Draw the run's curve, live while it runs."""
    active = store.state(run_id).is_active

    @st.fragment(run_every=2.0 if active else None)
    def live() -> None:
        state = store.state(run_id)
        if active and not state.is_active:
            st.rerun()
        rows, _ = store.read_metrics(run_id)
        task = task_of_rows(rows)
        points = Points(rows)
        whole, teacher = points.whole or {}, points.teacher or {}
        seen = [row for row in points.evals if task.key in row]
        left = units.duration(state.seconds_left)
        doing = [state.stage or state.state, f"{left} left" if left else "", state.error]
        st.progress(state.progress, text=plain(" · ".join(filter(None, doing))))
        chart = plot_learning_curve(
            [row["step"] for row in seen],
            [row[task.key] for row in seen],
            teacher.get(task.key),
            charts.theme(),
            task=task,
            height=height - 70,
        )
        charts.show(charts.enlarged(chart), f"lesson-learning-{len(seen)}")
        if task.key in whole and seen:
            st.caption(
                f"The line is of {seen[0]['images']:,} test {task.samples}; on all {whole['images']:,} the end is "
                f"{task.format(whole[task.key])}."
            )

    live()
