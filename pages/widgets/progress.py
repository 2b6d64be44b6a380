"""Draws how far a background job has come: a bar, the time left, and a button that cancels it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import streamlit as st

from pages.services.jobs import Job, Report, discard, find, start
from upvit_core import units
from upvit_core.errors import UPViTError

POLL_SECONDS = 0.8


def ready(job: Job, height: int | None = None) -> bool:
    """Whether the result is there; if not, its place shows how far the job is, or why it has none.

    `height`: of the place, in pixels, so that nothing below it moves when the result comes.
    """
    if job.active:
        with st.container(height=height or "content", border=False):
            progress(job)
        return False
    if job.state != "done":
        st.error(job.error or "Cancelled.")
        discard(job.key)
        return False
    return True


def progress(job: Job, *, cancellable: bool = True) -> None:
    """Bar, time left and Cancel, brought up to date by itself.

    The page is run again once the job has ended, or has something new to show.
    """
    shown = job.version

    @st.fragment(run_every=POLL_SECONDS)
    def watch() -> None:
        if not job.active or job.version != shown:
            st.rerun()
        left = units.duration(job.seconds_left)
        parts = [job.title, job.detail, f"{left} left" if left else ""]
        text = " · ".join(part for part in parts if part)
        if job.state == "waiting":
            text = f"{job.title} · waiting for its turn"
        with st.container(horizontal=True, vertical_alignment="center"):
            st.progress(min(max(job.share, 0.0), 1.0), text=text)
            if cancellable and st.button("Cancel", key=f"cancel {job.key}", disabled=job.stop.is_set()):
                job.stop.set()

    watch()


def redraw_when_done(watched: Sequence[Job | None], draw: Callable[[], None]) -> None:
    """Draw something that shows how jobs go on; once the last of them has ended, the page is run again."""
    active = [job for job in watched if job is not None and job.active]

    @st.fragment(run_every=POLL_SECONDS if active else None)
    def live() -> None:
        if active and not any(job.active for job in active):
            st.rerun()
        draw()

    live()


def wait(key: str, work: Callable[[Report], Any], title: str) -> Any:
    """The result of a job; until it is there, show how far it is and end this script run.

    Raises UPViTError with the job's own sentence where it failed.
    """
    job = find(key) or start(key, work, title)
    if job.active:
        progress(job)
        st.stop()
    if job.state == "done":
        return job.result
    discard(key)
    raise UPViTError(job.error or f"{title} was cancelled; start it again when you need it.")
