"""The runs as cards, newest first: name, latest accuracy beside the original's, curve, time, and what can be done."""

import time
from collections.abc import Sequence
from datetime import datetime
from html import escape
from urllib.parse import quote

import streamlit as st

from pages.services import run_data
from pages.widgets import run_actions
from pages.widgets.plain import plain
from upvit_core import units
from upvit_core.figures.evaluations import has_numbers
from upvit_core.runs.folder import RunSummary
from upvit_core.runs.spec import RESUMABLE
from upvit_core.runs.store import RunStore

SHOWN, LISTED = 10, 12
REFRESH = "2s"
WIDE, HIGH = 84, 26  # pixels of the small curve
STARVED = 0.2
"""A run that waits for data for more than this share of time is reported as slowed by loading."""
REMEDY = "Give the next run more workers (under More, or --workers), or put its folder on a faster disk."


def shown_key(run_id: str) -> str:
    return f"show-{run_id}"


def listed(summaries: Sequence[RunSummary]) -> Sequence[RunSummary]:
    """The runs that have a card: the newest, or all."""
    return summaries if st.session_state.get("every-run") else summaries[:LISTED]


def chosen(summaries: Sequence[RunSummary]) -> list[RunSummary]:
    """The runs that are drawn, newest first; at first the newest."""
    for place, summary in enumerate(listed(summaries)):
        st.session_state.setdefault(shown_key(summary.id), place < SHOWN)
    return [s for s in listed(summaries) if st.session_state[shown_key(s.id)]]


def draw(store: RunStore, summaries: Sequence[RunSummary]) -> None:
    """A card a run; those of active runs follow them by themselves."""
    label, colour = run_data.names(summaries), run_data.colours(summaries)
    for summary in listed(summaries):
        with st.container(key=f"run-{summary.id}"):
            st.checkbox(plain(label[summary.id]), key=shown_key(summary.id))
            if summary.state.is_active:
                _follow(store, summary.id, colour[summary.id])
            else:
                st.html(card(store, summary, colour[summary.id]))
            if summary.state.state in RESUMABLE:
                st.caption(plain(summary.reason))
            elif summary.state.note:
                st.caption(plain(summary.state.note))
            if failure := run_actions.failed_stop(summary.id):
                st.warning(plain(failure))
            with st.container(horizontal=True, vertical_alignment="center", gap="small"):
                run_actions.button_of(store, summary)
                run_actions.more_of(store, summary)
    if len(summaries) > LISTED:
        st.toggle(f"Show all {len(summaries)}", key="every-run")


def _follow(store: RunStore, run_id: str, colour: str) -> None:
    """The card of an active run, drawn in a place of its own until the page is drawn anew."""

    def now() -> None:
        summary = next((s for s in store.list() if s.id == run_id), None)
        if summary is not None:
            st.html(card(store, summary, colour))

    st.fragment(now, run_every=REFRESH)()


def card(store: RunStore, summary: RunSummary, colour: str) -> str:
    """HTML of what a run has reached and when."""
    text = run_data.state_words(summary.state, stopping=run_actions.stopping(summary.id))
    number, note = _reached(summary, text)
    percent = round(100 * summary.state.progress)
    track = "" if summary.state.state == "done" else f'<div class="done" style="width: {percent}%"></div>'
    bar = (
        f'<div class="{"track" if track else ""}" role="progressbar" aria-label="{escape(text)}" '
        f'aria-valuenow="{percent}" aria-valuemin="0" aria-valuemax="100">{track}</div>'
    )
    return (
        f'<div class="run" style="--run: {colour}"><div class="top"><span>{escape(_times(summary))}</span>'
        f"{_curve(store, summary, colour)}</div>"
        f'<div class="now"><b>{escape(number)}</b><span>{escape(note)}</span></div>{bar}{_pace(store, summary)}</div>'
    )


def _pace(store: RunStore, summary: RunSummary) -> str:
    """The present speed of a run, with advice if it waits for data."""
    points = run_data.rows().points(store, summary.id)
    if summary.state.state != "running" or (pace := points.pace) is None:
        return ""
    rate, waiting = pace
    what, workers = "images" if summary.state.perplexity is None else "blocks", points.train[-1].get("workers")
    text = f"<p>{units.figure(rate)} {what}/s, waiting for data {units.percent(waiting)} of the time</p>"
    if waiting > STARVED and isinstance(workers, int):
        loading = f"{workers} worker{'' if workers == 1 else 's'}" if workers else "The training process alone"
        text += f'<p class="starved">{loading} cannot load images fast enough. {REMEDY}</p>'
    return text


def _reached(summary: RunSummary, text: str) -> tuple[str, str]:
    """The latest accuracy or perplexity, and what stands beside it."""
    state = summary.state
    if state.perplexity is not None:
        number = f"{state.perplexity:.2f}"
        return number, "perplexity" if state.state == "done" else text
    if state.top1 is None:
        return "—", text
    number, goal = f"{state.top1:.1f} %", state.teacher_top1
    if state.state == "done":
        return number, "" if goal is None else f"{state.top1 - goal:+.1f} to the original".replace("-", "−")
    return number, text if goal is None else f"of {goal:.1f} · {text}"


def _times(summary: RunSummary) -> str:
    """`epoch 0.5 of 1 · started 08:07`; of a finished run its epochs and how long it trained."""
    state, spec = summary.state, summary.spec
    if spec is None:
        return ""
    began = datetime.fromtimestamp(spec.created / 1e9)
    when = began.strftime("%H:%M" if began.date() == datetime.fromtimestamp(time.time()).date() else "%-d %b %H:%M")
    if state.state == "done":
        epochs = f"{spec.epochs} epoch{'s' if spec.epochs > 1 else ''}"
        return " · ".join(filter(None, (epochs, units.duration(state.seconds), when)))
    return f"epoch {state.epoch:.2g} of {spec.epochs} · started {when}"


def _curve(store: RunStore, summary: RunSummary, colour: str) -> str:
    """The small curve of top-1 over the planned epochs, from 0 to 100 %."""
    if summary.spec is None:
        return ""
    evals = [row for row in run_data.rows().points(store, summary.id).evals if has_numbers(row, "epoch", "top1")]
    scale = WIDE / max(summary.spec.epochs, 1e-9)
    line = " ".join(f"{scale * row['epoch']:.1f},{HIGH * (1 - row['top1'] / 100):.1f}" for row in evals)
    svg = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="-2 -2 {WIDE + 4} {HIGH + 4}"><polyline points="{line}" '
        f'fill="none" stroke="{colour}" stroke-width="2" stroke-linejoin="round" stroke-linecap="round"/></svg>'
    )
    return f'<img width="{WIDE}" height="{HIGH}" alt="" src="data:image/svg+xml,{quote(svg)}"/>'
