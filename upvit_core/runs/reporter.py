"""How a job tells where it stands and learns that it should stop; and its last word as one sentence."""

from __future__ import annotations

import errno
import os
import sys
import time
from contextlib import suppress
from pathlib import Path
from shutil import disk_usage
from typing import IO, TYPE_CHECKING, Any

from upvit_core.atomic import read_lines
from upvit_core.errors import Cancelled, LimitError, UPViTError
from upvit_core.limits import Limits
from upvit_core.runs.folder import Run
from upvit_core.runs.spec import RunState

if TYPE_CHECKING:
    from upvit_core.runs.tensorboard import EventLog

STATE_SECONDS = 1.0
SPARE_BYTES = 1 << 16  # kept free for the last word of a run that fills the disk


class Terminated(UPViTError):
    """The process was asked to end, and the run was not: it can go on later."""


class Paused(UPViTError):
    """The device is wanted for something else; the run goes on when it is resumed."""


class Control:
    """How a job tells where it stands, and learns that it should stop."""

    def __init__(self, run: Run, state: RunState):
        self.run, self.state = run, state
        self.terminated = False
        self.agreed = False  # that all processes of the run stop
        self.events: EventLog | None = None  # receives the rows too
        self.echo: IO[str] | None = None  # where lines of the log are shown too
        self.parts = 1  # in which a new run's batches are trained
        self.longest = Limits.of(os.environ).longest_run_hours
        self._before = state.busy_seconds
        self._began: float | None = None
        self._written = 0.0
        self._seen = {(row.get("phase"), row.get("step")) for row in read_lines(run.metrics)[0]}

    def log(self, message: str) -> None:
        for file in filter(None, (sys.stdout, self.echo)):
            with suppress(OSError):  # a full disk must not end a run by way of its log
                print(time.strftime("%H:%M:%S"), message, flush=True, file=file)

    @property
    def stopping(self) -> bool:
        return self.terminated or self.run.cancel_asked or self.run.pause_asked or self.overdue

    @property
    def overdue(self) -> bool:
        """Whether the run, all attempts together, has had the device as long as the host allows."""
        return self.longest is not None and self.busy_seconds > 3600 * self.longest

    @property
    def busy_seconds(self) -> float:
        return self._before + (0.0 if self._began is None else time.monotonic() - self._began)

    def has_device(self, turn: int) -> None:
        self._began = time.monotonic()
        self.update(now=True, state="running", error="", turn=turn)

    def stop(self) -> None:
        """Stop, since this process or another one of the run was asked to, and all know."""
        self.terminated = self.agreed = True
        self.check()

    def check(self) -> None:
        """Raises Cancelled, Paused or Terminated where the run should stop, LimitError where it has had its time."""
        if self.run.cancel_asked:
            raise Cancelled("The run was cancelled.")
        if self.run.pause_asked:
            raise Paused("The run was paused.")
        if self.overdue:
            raise LimitError(
                f"This host allows a run {self.longest:g} hours on a device (UPVIT_LONGEST_RUN_HOURS); its last "
                "checkpoint is kept."
            )
        if self.terminated:
            raise Terminated

    def update(self, *, now: bool = False, **changes: Any) -> None:
        """Change fields of the state; on disk at most once a second unless `now`."""
        self.state = self.state.model_copy(update={"busy_seconds": round(self.busy_seconds, 1), **changes})
        if now or time.monotonic() - self._written > STATE_SECONDS:
            self.run.write_state(self.state)
            self._written = time.monotonic()

    def stage(self, name: str) -> None:
        self.check()
        self.log(name)
        self.update(now=True, stage=name)

    def note(self, sentence: str) -> None:
        """Something a person should know though the run goes on; the app shows it with the run."""
        self.log(sentence)
        self.update(now=True, note=sentence)

    def has_row(self, phase: str, step: int) -> bool:
        """Whether an earlier attempt wrote this row already; a run that goes on writes none twice."""
        return (phase, step) in self._seen

    def row(self, row: dict[str, Any]) -> None:
        key = row["phase"], row["step"]
        if key not in self._seen:
            self.run.append_metrics(row)
            self._seen.add(key)
            if self.events is not None:
                self.events.write(row)


def error_message(error: BaseException, folder: Path) -> str:
    """One sentence for a person; the log has the rest."""
    if isinstance(error, UPViTError):
        return str(error)
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    if full or (isinstance(error, RuntimeError) and "writ" in str(error) and disk_usage(folder).free < SPARE_BYTES):
        return "The disk is full; free some space and resume the run."
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return "The device ran out of memory; free memory on it, and resume the run."
    first = str(error).strip().splitlines()
    return f"Unexpected {type(error).__name__}{': ' + first[0] if first else ''}; the log has the details."


def peer_lost(error: BaseException) -> bool:
    """Whether the error says that another process of the run is gone, by its name or as gloo and NCCL put it."""
    if type(error).__name__ in ("DistBackendError", "DistNetworkError", "DistStoreError"):
        return True
    return isinstance(error, RuntimeError) and any(name in str(error) for name in ("gloo", "NCCL", "onnection closed"))
