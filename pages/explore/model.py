"""Model: what is open, drawn and counted, with what it makes of a few images; and the way to open another."""

import streamlit as st

from pages.shared import charts, frame, jobs, measured, opened, opening, presenter, words
from pages.shared.cards import MEASURED, Card, cards
from pages.shared.gallery import Tile, gallery, table
from upvit_core.figures.drawing import drawing
from upvit_core.models.judge import judge_of
from upvit_core.profiling.macs import count_macs, count_parameters


def accuracy(model: opened.Opened) -> jobs.Job | None:
    """The evaluation of the open model, where there are weights and images."""
    spec = measured.image_spec(model)
    return measured.look(model, spec) if model.has_weights and spec else None


def numbers(model: opened.Opened, job: jobs.Job | None) -> None:
    judge = judge_of(model.shape)
    if job is not None and job.state == "done":
        result: measured.Look = job.result
        where = f"{result.images:,} {judge.samples} of {words.data_name(result.data)}"
        note = f"on {where}; 95 % sure of {result.low:.{judge.digits}f} – {result.high:.{judge.digits}f}"
        top = Card(judge.name, judge.told(result.value), note, MEASURED)
    else:
        needs = f"needs {judge.data if model.has_weights else 'weights'}"
        top = Card(judge.name, "—", "being measured" if job is not None and job.active else needs)
    cards(
        [
            Card("Parameters", words.short(count_parameters(model.shape)), "numbers that the model has learnt"),
            Card(f"MACs, one {judge.item}", words.short(count_macs(model.shape)), f"multiplications to {judge.task}"),
            top,
        ]
    )


def predictions(model: opened.Opened, job: jobs.Job | None) -> None:
    """What it makes of a few images, where it has pictures; before that, the field that asks for them or for a text."""
    judge = judge_of(model.shape)
    st.subheader(f"What it makes of eight test {judge.samples}", anchor=False)
    if job is None:
        if model.has_weights:
            with st.form("own-data", border=False):
                spec = st.text_input(judge.inputs, placeholder=judge.source)
                if st.form_submit_button(f"Measure on {judge.them}") and spec:
                    measured.choose_images(model, spec.strip())
                    st.rerun()
        else:
            st.caption("Predictions need weights; this shows shapes and scores alone.")
        return
    place = st.container(key="looks")
    with place:
        if job.active:
            jobs.progress(job)
        elif job.state == "done":
            said = [f"{'✓' if guess.right else '✗'} {guess.likeliest}" for guess in job.result.guesses]
            if judge.has_pictures:
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
                jobs.forget(job.key)
                st.rerun()


with frame.page("Model", "What is open: its parts, its size, and how well it does."):
    left, right = st.columns([0.68, 0.32], gap="medium")
    with right, presenter.folded("Open another"):
        opening.panel()
    with left:
        model = frame.current()
        job = accuracy(model)
        charts.show(drawing(model.shape, charts.theme()), "drawing")
        numbers(model, job)
    predictions(model, job)
