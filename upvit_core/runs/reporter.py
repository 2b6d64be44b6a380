"""The worker's line to the run folder: it writes state, rows and log, and reads whether the run should stop."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from typing import IO, TYPE_CHECKING

from upvit_core.atomic import read_lines
from upvit_core.errors import Cancelled, LimitError, UPViTError
from upvit_core.limits import Limits
from upvit_core.runs.folder import OUTCOMES, Run
from upvit_core.runs.spec import RunState

if TYPE_CHECKING:
    from upvit_core.runs.tensorboard import EventLog

STATE_SECONDS = 1.0


class Terminated(UPViTError):
    """The process was asked to end, and the run was not: it can go on later."""


class Paused(UPViTError):
    """The device is wanted for something else; the run goes on when it is resumed."""


class Reporter:
    """Reports a run's progress and checks whether it should stop.

    `echo` receives the log's lines, `events` the rows, too. `clock` counts seconds.
    """

    clock: Callable[[], float] = staticmethod(time.monotonic)

    def __init__(self, run: Run, state: RunState, echo: IO[str] | None = None):
        self.run, self.state, self.echo = run, state, echo
        self.terminated = False  # by a signal
        self.out_of_time = False  # as Slurm's signal says
        self.agreed = False  # that all processes of the run stop
        self.events: EventLog | None = None
        self.parts = 1  # in which a new run's batches are trained
        self.longest = Limits.of(os.environ).longest_run_hours
        self._earlier_seconds = state.busy_seconds
        self._began: float | None = None
        self._written = 0.0
        self._rows = {(row.get("phase"), row.get("step")) for row in read_lines(run.metrics)[0]}

    def log(self, message: str) -> None:
        for file in filter(None, (sys.stdout, self.echo)):
            with suppress(OSError):  # a full disk must not end a run by way of its log
                print(time.strftime("%H:%M:%S"), message, flush=True, file=file)

    @property
    def stopping(self) -> bool:
        return self.terminated or self.run.request is not None or self.overdue

    @property
    def overdue(self) -> bool:
        """True if the run, all attempts together, has had the device as long as the host allows."""
        return self.longest is not None and self.busy_seconds > 3600 * self.longest

    @property
    def busy_seconds(self) -> float:
        return self._earlier_seconds + (0.0 if self._began is None else self.clock() - self._began)

    def has_device(self, names: tuple[str, ...], turn: int) -> None:
        self._began = self.clock()
        self.update(now=True, state="running", error="", turn=turn, devices=names)

    def stop(self) -> None:
        """Stop, since this process or another one of the run was asked to, and all know."""
        self.terminated = self.agreed = True
        self.check()

    def check(self) -> None:
        """Raises Cancelled, Paused or Terminated where the run should stop, LimitError where it has had its time.

        Raises SystemExit where the run's folder is gone: nothing can be written any more.
        """
        if not self.run.folder.is_dir():
            raise SystemExit(f"The folder of run {self.run.id} is gone.")
        if (request := self.run.request) is not None:
            raise (Cancelled if request == "cancel" else Paused)(f"The run was {OUTCOMES[request]}.")
        if self.overdue:
            raise LimitError(
                f"This host allows a run {self.longest:g} hours on a device (UPVIT_LONGEST_RUN_HOURS); its checkpoints "
                "are kept."
            )
        if self.terminated:
            raise Terminated

    def update(self, *, now: bool = False, **changes: object) -> None:
        """Change fields of the state; on disk at most once a second unless `now`."""
        self.state = self.state.model_copy(update={"busy_seconds": round(self.busy_seconds, 1), **changes})
        if now or self.clock() - self._written > STATE_SECONDS:
            self.run.write_state(self.state)
            self._written = self.clock()

    def stage(self, name: str) -> None:
        self.check()
        self.log(name)
        self.update(now=True, stage=name)

    def note(self, sentence: str) -> None:
        """Something a person should know though the run goes on; the app shows it with the run."""
        self.log(sentence)
        if sentence not in self.state.note:
            self.update(now=True, note=f"{self.state.note} {sentence}".strip())

    def has_row(self, phase: str, step: int) -> bool:
        """True if an earlier attempt wrote this row already; a run that goes on writes none twice."""
        return (phase, step) in self._rows

    def row(self, row: dict[str, object]) -> None:
        key = row["phase"], row["step"]
        if key not in self._rows:
            self.run.append_metrics(row)
            self._rows.add(key)
            if self.events is not None:
                self.events.write(row)
