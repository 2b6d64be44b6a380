"""Draws background jobs: a bar with the time left and Cancel, the error of a failed job, and Try again."""

from collections.abc import Callable, Sequence
from typing import TypeVar

import streamlit as st

from pages.services import jobs, news
from pages.services.jobs import AnyJob, Job
from pages.services.session import session
from pages.widgets.plain import plain
from upvit_core import units

POLL_SECONDS = 0.8
LONG_SECONDS = 15.0  # of what is told on other pages too
T = TypeVar("T")


def show(job: Job[T] | None, *, height: int | None = None, cancellable: bool = True) -> T | None:
    """Return the result of a finished job; draw any other: its progress, or its error with a button to try again.

    height: of the drawing in pixels, so that nothing below it moves when the result arrives.
    """
    if job is None or job.state == "done":
        return jobs.result_of(job)
    with st.container(height=height or "content", border=False):
        if job.active:
            _watch(job, cancellable)
        else:
            if job.state == "failed":
                st.error(plain(job.error))
            else:
                st.info(f"{plain(job.title)}: cancelled.")
            if st.button("Try again", key=f"again {job.key}", icon=":material/replay:"):
                jobs.restart(job)
                st.rerun()
    return None


def _watch(job: AnyJob, cancellable: bool) -> None:
    """The bar, updated by itself; the page is run again once the job has ended or has something new to show."""
    shown = job.version

    @st.fragment(run_every=POLL_SECONDS)
    def watch() -> None:
        if not job.active or job.version != shown:
            st.rerun()
        if job.long or (job.seconds_left or 0) > LONG_SECONDS:
            news.watch(job, session().page)
        left = units.duration(job.seconds_left)
        parts = [job.title, job.detail, f"{left} left" if left else ""]
        text = " · ".join(part for part in parts if part)
        if job.state == "waiting":
            text = f"{job.title} · waiting for its turn"
        with st.container(horizontal=True, vertical_alignment="center"):
            st.progress(min(max(job.share, 0.0), 1.0), text=plain(text))
            if cancellable and st.button("Cancel", key=f"cancel {job.key}", disabled=job.stop.is_set()):
                job.stop.set()

    watch()


def redraw_when_done(watched: Sequence[AnyJob | None], draw: Callable[[], None]) -> None:
    """Draw something that depends on jobs, again and again while they run; then the page is run again."""
    active = [job for job in watched if job is not None and job.active]

    @st.fragment(run_every=POLL_SECONDS if active else None)
    def live() -> None:
        if active and not any(job.active for job in active):
            st.rerun()
        draw()

    live()
