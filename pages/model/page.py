"""Model: what is open, drawn and counted, with what it makes of a few images; and the way to open another."""

import streamlit as st

from pages.model import open_panel
from pages.services import evaluation, jobs, open_model
from pages.widgets import charts, frame, presenter, progress
from pages.widgets.cards import MEASURED, Card, cards
from pages.widgets.tables import Tile, gallery, table
from upvit_core import units
from upvit_core.figures.model_diagram import draw_model
from upvit_core.profiling.macs import count_macs, count_parameters
from upvit_core.records.task import data_name, task_of


def accuracy(model: open_model.OpenModel) -> jobs.Job | None:
    """The evaluation of the open model, where there are weights and images."""
    spec = evaluation.image_spec(model)
    return evaluation.measure_baseline(model, spec) if model.has_weights and spec else None


def numbers(model: open_model.OpenModel, job: jobs.Job | None) -> None:
    task = task_of(model.shape)
    if job is not None and job.state == "done":
        result: evaluation.Baseline = job.result
        where = f"{result.images:,} {task.samples} of {data_name(result.data)}"
        note = f"on {where}; 95 % sure of {result.low:.{task.digits}f} – {result.high:.{task.digits}f}"
        top = Card(task.name, task.format(result.value), note, MEASURED)
    else:
        needs = f"needs {task.data if model.has_weights else 'weights'}"
        top = Card(task.name, "—", "being measured" if job is not None and job.active else needs)
    cards(
        [
            Card("Parameters", units.short(count_parameters(model.shape)), "numbers that the model has learnt"),
            Card(
                f"MACs, one {task.batch_item}", units.short(count_macs(model.shape)), f"multiplications to {task.verb}"
            ),
            top,
        ]
    )


def predictions(model: open_model.OpenModel, job: jobs.Job | None) -> None:
    """What it makes of a few images, where it has pictures; before that, the field that asks for them or for a text."""
    task = task_of(model.shape)
    st.subheader(f"What it makes of eight test {task.samples}", anchor=False)
    if job is None:
        if model.has_weights:
            with st.form("own-data", border=False):
                spec = st.text_input(task.inputs, placeholder=task.source)
                if st.form_submit_button(f"Measure on {task.them}") and spec:
                    evaluation.choose_images(model, spec.strip())
                    st.rerun()
        else:
            st.caption("Predictions need weights; this shows shapes and scores alone.")
        return
    place = st.container(key="looks")
    with place:
        if job.active:
            progress.progress(job)
        elif job.state == "done":
            said = [f"{'✓' if guess.right else '✗'} {guess.likeliest}" for guess in job.result.guesses]
            if task.has_pictures:
                gallery(
                    Tile(
                        guess.shown,
                        f"{guess.label}, taken for {guess.likeliest}",
                        (told, f"{guess.probability:.0%}{'' if guess.right else f', is {guess.label}'}"),
                    )
                    for guess, told in zip(job.result.guesses, said, strict=True)
                )
            else:
                table(
                    ("after", "comes", "it says"),
                    [
                        (f"… {guess.shown}", guess.label, f"{told} {guess.probability:.0%}")
                        for guess, told in zip(job.result.guesses, said, strict=True)
                    ],
                )
        else:
            st.error(job.error or "Cancelled.")
            if st.button("Try again"):
                jobs.discard(job.key)
                st.rerun()


with frame.page("Model", "What is open: its parts, its size, and how well it does."):
    left, right = st.columns([0.68, 0.32], gap="medium")
    with right, presenter.folded("Open another"):
        open_panel.panel()
    with left:
        model = frame.current()
        job = accuracy(model)
        charts.show(draw_model(model.shape, charts.theme()), "drawing")
        numbers(model, job)
    predictions(model, job)
