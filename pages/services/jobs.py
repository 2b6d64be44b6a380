"""Background jobs: long work runs in a thread of the server, reports its progress, and can be cancelled.

Pages look a job up by its key; sessions that ask for the same work share one job.
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
from typing import Any, Generic, Literal, Protocol, TypeVar

from pages.services import compute, imports
from upvit_core.errors import Cancelled, UPViTError

MOST_REMEMBERED = 200
# The first job imports torch; the browser gets its first page before that.
FIRST_PAINT_SECONDS = 1.0
END_SECONDS = 1.0
State = Literal["waiting", "running", "done", "failed", "cancelled"]
T = TypeVar("T")


class Progress(Protocol):
    """Progress as the library reports it: `done` of `total` in `unit`, and the seconds left (None: not known yet)."""

    @property
    def done(self) -> float: ...
    @property
    def total(self) -> float: ...
    @property
    def unit(self) -> str: ...
    @property
    def share(self) -> float: ...
    @property
    def seconds_left(self) -> float | None: ...


class Report:
    """The callback through which a job reports its progress; every call raises Cancelled once the job is to stop."""

    def __init__(self, job: AnyJob):
        self._job = job

    def __call__(self, progress: Progress | float) -> None:
        """Report the library's `Progress`, or a share between 0 and 1."""
        self.cancel_only(progress)
        if isinstance(progress, (int, float)):
            self._job.share = float(progress)
            return
        self._job.share, self._job.seconds_left = progress.share, progress.seconds_left
        self._job.detail = (
            f"{progress.done:,.0f} of {progress.total:,.0f} {progress.unit}" if progress.done < 1e6 else ""
        )

    def cancel_only(self, progress: object = None) -> None:
        """Raise Cancelled once the job is to stop; for parts of the work whose own progress is not shown."""
        if self._job.stop.is_set():
            raise Cancelled("Cancelled.")

    def step(self, detail: str, share: float | None = None) -> None:
        """Name the current step."""
        self.cancel_only()
        self._job.detail = detail
        if share is not None:
            self._job.share = share

    def debounce(self, seconds: float) -> None:
        """Wait, so that work requested at every move of a slider starts only once the slider rests."""
        if self._job.stop.wait(seconds):
            raise Cancelled("Cancelled.")

    def changed(self) -> None:
        """Announce new results on disk: pages that watch this job are run again."""
        self._job.version += 1


@dataclass
class Job(Generic[T]):
    """One piece of work with its progress; `result` is None until the job is done."""

    key: str
    title: str
    work: Callable[[Report], T] | None = None
    long: bool = False
    apart: bool = False
    state: State = "waiting"
    share: float = 0.0
    seconds_left: float | None = None
    detail: str = ""
    result: T | None = None
    error: str = ""
    version: int = 0
    stop: threading.Event = field(default_factory=threading.Event)

    @property
    def active(self) -> bool:
        return self.state in ("waiting", "running")

    def run(self) -> None:
        """Do the work in this thread; errors end up in `state` and `error`."""
        if self.stop.is_set():
            self.state = "cancelled"
        if self.state != "waiting" or self.work is None:
            return
        self.state = "running"
        try:
            report = Report(self)
            if not self.apart:
                imports.import_heavy(report.step)
            with compute.job(report.debounce, report.step):
                self.result = self.work(report)
            self.share, self.state = 1.0, "done"
            self.work = None
        except Cancelled:
            self.state = "cancelled"
        except UPViTError as error:
            self.error, self.state = str(error), "failed"
        except Exception as error:
            logging.getLogger(__name__).exception("%s failed", self.title)
            self.error = f"{self.title} failed ({type(error).__name__}: {error}); the server's log has the details."
            self.state = "failed"


AnyJob = Job[Any]


class Workers:
    """All jobs by key, and the threads that run them: a preview of a second does not wait behind minutes of scoring.

    submit: runs or queues a new job in place of the two threads.
    """

    def __init__(self, submit: Callable[[AnyJob], None] | None = None) -> None:
        self.lock = threading.Lock()
        self.closing = False
        self.running = 0
        self._jobs: OrderedDict[str, AnyJob] = OrderedDict()
        self._queues: dict[bool, SimpleQueue[AnyJob]] = {True: SimpleQueue(), False: SimpleQueue()}
        self._submit = submit or self._hand_on
        if submit is None:
            atexit.register(self.end)
            for queue in self._queues.values():
                # Daemons: Ctrl-C ends the server without waiting for them.
                threading.Thread(target=self._serve, args=(queue,), daemon=True).start()

    def start(
        self,
        key: str,
        work: Callable[[Report], T],
        title: str,
        *,
        long: bool = False,
        again: bool = False,
        apart: bool = False,
    ) -> Job[T]:
        """The job with this key where it is active or done; otherwise, or with `again` once it is done, a new one.

        A job `apart` has a thread of its own: it waits for another process, or in between for quiet.
        """
        with self.lock:
            known = self._jobs.get(key)
            if known is not None and (known.active or (known.state == "done" and not again)):
                self._jobs.move_to_end(key)
                return known
            job = self._add(Job(key, title, work, long, apart))
        self._submit(job)
        return job

    def submit_done(self, key: str, title: str, result: T) -> Job[T]:
        """The job with this key; where there is none, a finished one with this result."""
        with self.lock:
            return self._jobs.get(key) or self._add(Job(key, title, state="done", share=1.0, result=result))

    def find(self, key: str) -> AnyJob | None:
        with self.lock:
            return self._jobs.get(key)

    def discard(self, key: str) -> None:
        """Stop a job and forget it."""
        with self.lock:
            job = self._jobs.pop(key, None)
        if job is not None:
            job.stop.set()

    def all(self) -> list[AnyJob]:
        """Every remembered job, the longest unused first."""
        with self.lock:
            return list(self._jobs.values())

    def _add(self, job: Job[T]) -> Job[T]:
        """Remember a job, in place of old ones that have ended; the lock is held."""
        self._jobs[job.key] = job
        self._jobs.move_to_end(job.key)
        while len(self._jobs) > MOST_REMEMBERED:
            oldest = next((key for key, other in self._jobs.items() if not other.active and other is not job), None)
            if oldest is None:
                break
            del self._jobs[oldest]
        return job

    def _hand_on(self, job: AnyJob) -> None:
        if job.apart:
            threading.Thread(target=self._run, args=(job,), daemon=True).start()
        else:
            self._queues[job.long].put(job)

    def _serve(self, queue: SimpleQueue[AnyJob]) -> None:
        time.sleep(FIRST_PAINT_SECONDS)
        while True:
            self._run(queue.get())

    def _run(self, job: AnyJob) -> None:
        with self.lock:
            self.running += not self.closing
            if self.closing:
                return
        job.run()
        with self.lock:
            self.running -= 1

    def end(self) -> None:
        """Stop the jobs before the interpreter ends.

        Python stops a thread where it next asks for the interpreter's lock, and inside torch's C++ that aborts the
        process. Where a job does not stop in time, the process therefore exits at once.
        """
        with self.lock:
            self.closing = True
            for job in self._jobs.values():
                job.stop.set()
        deadline = time.monotonic() + END_SECONDS
        while self.running and time.monotonic() < deadline:
            time.sleep(0.02)
        if self.running:
            logging.shutdown()
            for stream in (sys.stdout, sys.stderr):
                with suppress(OSError, ValueError):
                    stream.flush()
            os._exit(0)


_making = threading.Lock()
_made: list[Workers] = []


def workers() -> Workers:
    """The one registry of this process: no cache, since any browser may have Streamlit's caches cleared."""
    with _making:
        if not _made:
            _made.append(Workers())
        return _made[0]


def start(
    key: str, work: Callable[[Report], T], title: str, *, long: bool = False, again: bool = False, apart: bool = False
) -> Job[T]:
    """Start work that someone asked for; see `Workers.start`. A failed or cancelled job is started again."""
    return workers().start(key, work, title, long=long, again=again, apart=apart)


def ensure(key: str, work: Callable[[Report], T], title: str) -> Job[T]:
    """The job with this key whatever its state, started where there is none: a failed one stays failed."""
    return find(key) or start(key, work, title)


def restart(job: AnyJob) -> None:
    """Run the work of a failed or cancelled job again."""
    if job.work is not None:
        start(job.key, job.work, job.title, long=job.long)


def submit_done(key: str, title: str, result: T) -> Job[T]:
    """A job whose result is known already."""
    return workers().submit_done(key, title, result)


def find(key: str) -> AnyJob | None:
    return workers().find(key)


def discard(key: str) -> None:
    """Stop and forget a job that nobody waits for."""
    workers().discard(key)


def result_of(job: Job[T] | None) -> T | None:
    """The result of a finished job; None for any other, and for no job."""
    return job.result if job is not None else None


def wait_briefly(job: AnyJob, seconds: float) -> None:
    """Wait a moment for a job that is nearly done, so that its picture is drawn without a bar first."""
    end = time.monotonic() + seconds
    while job.active and time.monotonic() < end:
        time.sleep(0.02)
