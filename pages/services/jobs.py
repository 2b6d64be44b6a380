"""Long work beside the page: it runs in a thread of the server, says how far it is, and can be cancelled.

Pages look a job up by its key; sessions that ask for the same thing share one job.
"""

from __future__ import annotations

import atexit
import logging
import os
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any, Literal

import streamlit as st

from pages.services import imports
from upvit_core.errors import Cancelled, UPViTError

MOST_REMEMBERED = 200
# The first job imports torch; the browser gets its first page before that.
FIRST_PAINT_SECONDS = 1.0
END_SECONDS = 1.0
State = Literal["waiting", "running", "done", "failed", "cancelled"]


class Report:
    """What a job is given to say how far it is; raises Cancelled once someone has asked to stop.

    Takes the library's own `Progress`, or a share between 0 and 1.
    """

    def __init__(self, job: Job):
        self._job = job

    def __call__(self, progress: Any) -> None:
        if self._job.stop.is_set():
            raise Cancelled("Cancelled.")
        if isinstance(progress, (int, float)):
            self._job.share = float(progress)
            return
        self._job.share, self._job.seconds_left = progress.share, progress.seconds_left
        self._job.detail = (
            f"{progress.done:,.0f} of {progress.total:,.0f} {progress.unit}" if progress.done < 1e6 else ""
        )

    def changed(self) -> None:
        """Something on disk is newer than what a page shows: pages that follow this job are run again."""
        self._job.version += 1

    def quietly(self) -> Callable[[Any], None]:
        """For a part of the work whose own progress is not shown: it only learns when to stop."""

        def listen(progress: Any) -> None:
            if self._job.stop.is_set():
                raise Cancelled("Cancelled.")

        return listen

    def rest(self, seconds: float) -> None:
        """Wait, so that what is asked for at every move of a slider is done once it rests."""
        if self._job.stop.wait(seconds):
            raise Cancelled("Cancelled.")

    def say(self, detail: str, share: float | None = None) -> None:
        """Name the step that is being done."""
        if self._job.stop.is_set():
            raise Cancelled("Cancelled.")
        self._job.detail = detail
        if share is not None:
            self._job.share = share


@dataclass
class Job:
    """One piece of work and how far it is."""

    key: str
    title: str
    state: State = "waiting"
    share: float = 0.0
    seconds_left: float | None = None
    detail: str = ""
    result: Any = None
    error: str = ""
    version: int = 0
    started: float = field(default_factory=time.monotonic)
    stop: threading.Event = field(default_factory=threading.Event)

    @property
    def active(self) -> bool:
        return self.state in ("waiting", "running")


class Workers:
    """Two queues, so that a preview of a second does not wait behind a scoring of minutes."""

    def __init__(self) -> None:
        self.jobs: OrderedDict[str, Job] = OrderedDict()
        self.lock = threading.Lock()
        self.ending = False
        self.busy = 0
        atexit.register(self.end)
        self.queues: dict[bool, SimpleQueue[tuple[Job, Callable[[Report], Any]]]] = {}
        for long in (True, False):
            self.queues[long] = SimpleQueue()
            # Daemons: Ctrl-C ends the server without waiting for them.
            threading.Thread(target=self.serve, args=(self.queues[long],), daemon=True).start()

    def start(self, key: str, work: Callable[[Report], Any], title: str, *, long: bool, again: bool) -> Job:
        with self.lock:
            found = self.jobs.get(key)
            if found is not None and (found.active or (found.state == "done" and not again)):
                self.jobs.move_to_end(key)
                return found
            job = self.jobs[key] = Job(key, title)
            self.jobs.move_to_end(key)
            while len(self.jobs) > MOST_REMEMBERED:
                oldest = next((k for k, j in self.jobs.items() if not j.active), None)
                if oldest is None:
                    break
                del self.jobs[oldest]
        self.queues[long].put((job, work))
        return job

    def serve(self, queue: SimpleQueue[tuple[Job, Callable[[Report], Any]]]) -> None:
        time.sleep(FIRST_PAINT_SECONDS)
        while True:
            job, work = queue.get()
            with self.lock:
                self.busy += not self.ending
            if self.ending:
                return
            _run(job, work)
            with self.lock:
                self.busy -= 1

    def end(self) -> None:
        """Before the interpreter ends: Python stops a thread where it next asks for its lock, and inside torch's C++
        that aborts the process. Jobs are asked to stop; where one does not listen in time, the process ends as it is.
        """
        with self.lock:
            self.ending = True
            for job in self.jobs.values():
                job.stop.set()
        deadline = time.monotonic() + END_SECONDS
        while self.busy and time.monotonic() < deadline:
            time.sleep(0.02)
        if self.busy:
            logging.shutdown()
            for stream in (sys.stdout, sys.stderr):
                with suppress(OSError, ValueError):
                    stream.flush()
            os._exit(0)


def _run(job: Job, work: Callable[[Report], Any]) -> None:
    if job.stop.is_set():
        job.state = "cancelled"
        return
    job.state, job.started = "running", time.monotonic()
    try:
        report = Report(job)
        imports.import_heavy(report.say)
        job.result = work(report)
        job.share, job.state = 1.0, "done"
    except Cancelled:
        job.state = "cancelled"
    except UPViTError as error:
        job.error, job.state = str(error), "failed"
    except Exception as error:
        logging.getLogger(__name__).exception("%s failed", job.title)
        job.error = f"{job.title} failed ({type(error).__name__}: {error}); the server's log has the details."
        job.state = "failed"


@st.cache_resource(show_spinner=False)
def workers() -> Workers:
    return Workers()


def start(key: str, work: Callable[[Report], Any], title: str, *, long: bool = False, again: bool = False) -> Job:
    """The job of this key: the one that runs or is done, else a new one. A failed or cancelled one is started again."""
    return workers().start(key, work, title, long=long, again=again)


def submit_done(key: str, title: str, result: Any) -> Job:
    """A job that was done earlier, by another server; its result is known."""
    job = Job(key, title, "done", 1.0, result=result)
    return workers().jobs.setdefault(key, job)


def find(key: str) -> Job | None:
    return workers().jobs.get(key)


def wait_briefly(job: Job, seconds: float) -> None:
    """Wait a moment for a job that is nearly done, so that its picture comes without a bar first."""
    end = time.monotonic() + seconds
    while job.active and time.monotonic() < end:
        time.sleep(0.02)


def cancel(key: str) -> None:
    job = find(key)
    if job is not None and job.active:
        job.stop.set()


def discard(key: str) -> None:
    """So that a job that failed or was cancelled is shown no longer."""
    workers().jobs.pop(key, None)
