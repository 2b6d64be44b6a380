"""The open model: its drawing, its size, its accuracy, and its answers to eight test images."""

import math
from collections.abc import Sequence

import streamlit as st

from pages.services import evaluation, jobs, open_model
from pages.widgets import charts, progress
from pages.widgets.cards import MEASURED, Card, cards
from pages.widgets.plain import plain
from pages.widgets.tables import Tile, gallery, table
from upvit_core import units
from upvit_core.figures.model_diagram import draw_model
from upvit_core.profiling.macs import count_macs, count_parameters
from upvit_core.records.task import data_name


def draw(model: open_model.OpenModel) -> None:
    job = evaluation.measure_baseline(model) if model.can_measure else None
    charts.show(draw_model(model.shape, charts.theme()), "drawing")
    if not model.is_demo:
        st.caption(f"Recognised: {plain(model.recognised)}.")
    numbers(model, job)
    predictions(model, job)


def numbers(model: open_model.OpenModel, job: jobs.Job[evaluation.Baseline] | None) -> None:
    task = model.task
    if (result := jobs.result_of(job)) is not None:
        where = f"{result.images:,} {task.samples} of {data_name(result.data)}"
        note = f"on {where}; 95 % interval {result.low:.{task.digits}f} – {result.high:.{task.digits}f}"
        top = Card(task.name, task.format(result.value), note, MEASURED)
        if math.isnan(result.value):
            top = Card(task.name, "—", "needs images with labels")
    else:
        needs = f"needs {task.data if model.has_weights else 'weights'}"
        top = Card(task.name, "—", "being measured" if job is not None and job.active else needs)
    parameters, macs = units.short(count_parameters(model.shape)), units.short(count_macs(model.shape))
    size = Card("Parameters", parameters, "learned weights")
    cards([size, Card(f"MACs, one {task.batch_item}", macs, f"multiplications to {task.verb}"), top])


def predictions(model: open_model.OpenModel, job: jobs.Job[evaluation.Baseline] | None) -> None:
    """The model's answers to a few images or passages; without data, the field that asks for some."""
    task = model.task
    st.subheader(f"Its answers to eight test {task.samples}", anchor=False)
    if not model.has_weights:
        st.caption("Answers need weights; this model has only shapes and scores.")
        return
    if job is None or job.error or model.dataset != open_model.own_dataset(model):
        with st.form("own-data", border=False):
            dataset = st.text_input(task.inputs, value=model.dataset, placeholder=task.source).strip()
            if st.form_submit_button(f"Measure on {task.them}") and dataset:
                open_model.choose_dataset(model, dataset)
                st.rerun()
    with st.container(key="looks"):
        if (result := progress.show(job)) is not None:
            if result.doubt:
                st.warning(plain(result.doubt), icon=":material/warning:")
            if result.notes:
                st.caption(plain(result.notes))
            draw_guesses(result.guesses, pictures=task.has_pictures)


def draw_guesses(guesses: Sequence[evaluation.ClassGuess], *, pictures: bool) -> None:
    answers = [f"{'✓' if guess.right else '✗'} {guess.likeliest}" for guess in guesses]
    if pictures:
        gallery(
            Tile(
                guess.shown,
                f"{guess.label}, taken for {guess.likeliest}",
                (answer, f"{units.percent(guess.probability)}{'' if guess.right else f', is {guess.label}'}"),
            )
            for guess, answer in zip(guesses, answers, strict=True)
        )
    else:
        rows = [
            (f"… {guess.shown}", guess.label, f"{answer} {units.percent(guess.probability)}")
            for guess, answer in zip(guesses, answers, strict=True)
        ]
        table(("after", "comes", "answer"), rows)
