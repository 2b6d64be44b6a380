"""Model: what is open, drawn and counted, with what it makes of a few images; and the way to open another."""

import streamlit as st

from pages.shared import charts, frame, jobs, measured, opened, opening, presenter, words
from pages.shared.cards import MEASURED, Card, cards
from pages.shared.gallery import Tile, gallery
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
        top = Card(judge.name, judge.told(judge.value(result)), note, MEASURED)
    else:
        why = (
            "being measured"
            if job is not None and job.active
            else f"needs {words.inputs(model.shape)}"
            if model.has_weights
            else "needs weights"
        )
        top = Card(judge.name, "—", why)
    macs = words.short(count_macs(model.shape))
    cards(
        [
            Card("Parameters", words.short(count_parameters(model.shape)), "numbers that the model has learnt"),
            Card(
                f"MACs, one {judge.item}",
                macs,
                f"multiplications to {'continue each of its tokens' if model.shape.is_language else 'classify it'}",
            ),
            top,
        ]
    )


def text(model: opened.Opened, job: jobs.Job | None) -> None:
    """Where a language model's text lies, and how far the measuring is."""
    if job is None:
        if model.has_weights and (spec := st.text_input("Text", placeholder="/data/book.txt", key="text-file")):
            measured.choose_images(model, spec.strip())
            st.rerun()
    elif job.active:
        jobs.progress(job)
    elif job.state != "done":
        st.error(job.error or "Cancelled.")


def predictions(model: opened.Opened, job: jobs.Job | None) -> None:
    if measured.is_language(model):
        text(model, job)
        return
    st.subheader("What it makes of eight test images", anchor=False)
    if job is None:
        if model.has_weights:
            st.caption(
                "Its predictions will be here once it has images: a folder with one folder per class, or a data set "
                "name."
            )
            with st.form("own-images", border=False):
                spec = st.text_input("Images", placeholder="/data/imagenet, photos.tar.gz, torch/cifar10")
                if st.form_submit_button("Use these images") and spec:
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
            gallery(
                Tile(
                    guess.picture,
                    f"{guess.label}, taken for {guess.likeliest}",
                    (
                        f"{'✓' if guess.right else '✗'} {guess.likeliest}",
                        f"{guess.probability:.0%}{'' if guess.right else f', is {guess.label}'}",
                    ),
                )
                for guess in job.result.guesses
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
