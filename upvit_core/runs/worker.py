"""The process of one run: `python -m upvit_core.runs.worker RUN_FOLDER`.

It holds the lock on its folder as long as it lives, waits for its device, does the job, and leaves a state that says
how it ended. SIGTERM without a request to cancel (a machine going down, a cluster's pre-emption) saves and ends as
`interrupted`. torch is imported only once the device is free, so that waiting costs next to nothing.
"""

from __future__ import annotations

import argparse
import errno
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from shutil import disk_usage
from types import FrameType
from typing import Any

from upvit_core.errors import Cancelled, RunError, UPViTError
from upvit_core.runs.devices import lease, lease_name, show_only
from upvit_core.runs.files import read_lines, sweep_temporaries
from upvit_core.runs.fit import fit
from upvit_core.runs.folder import Run, read_state
from upvit_core.runs.process import ProcessIdentity
from upvit_core.runs.spec import RunState
from upvit_core.runs.store import RunStore

QUEUE_POLL_SECONDS = 0.3
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
        self.parts = 1  # in which a new run's batches are trained
        self._written = 0.0
        self._seen = {(row.get("phase"), row.get("step")) for row in read_lines(run.metrics)[0]}

    def log(self, message: str) -> None:
        with suppress(OSError):  # a full disk must not end a run by way of its log
            print(time.strftime("%H:%M:%S"), message, flush=True)

    @property
    def stopping(self) -> bool:
        return self.terminated or self.run.cancel_asked or self.run.pause_asked

    def check(self) -> None:
        """Raises Cancelled, Paused or Terminated where the run should stop."""
        if self.run.cancel_asked:
            raise Cancelled("The run was cancelled.")
        if self.run.pause_asked:
            raise Paused("The run was paused.")
        if self.terminated:
            raise Terminated

    def update(self, *, now: bool = False, **changes: Any) -> None:
        """Change fields of the state; on disk at most once a second unless `now`."""
        self.state = self.state.model_copy(update=changes)
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


@contextmanager
def device_held(control: Control, store: RunStore) -> Iterator[None]:
    """Wait until the run is first in its device's queue and the device is free, then hold the device."""
    name = lease_name(control.run.spec.device)
    waiting = False
    while True:
        control.check()
        with lease(store.root, name) as held:
            if held and store.next_in_queue(name) == control.run.id:
                yield
                return
        if not waiting:
            control.log(f"waiting for {name}")
            waiting = True
        time.sleep(QUEUE_POLL_SECONDS)


def warn_of_memory(control: Control) -> None:
    """Say so where the run will hardly fit. Raises RunError where the CPU has no room: Linux kills what tries."""
    expected = fit(control.run.spec)
    if expected is None or not expected.sentence:
        return
    if expected.parts is None and expected.device.name == "cpu":
        raise RunError(expected.sentence)
    control.note(expected.sentence)
    control.parts = expected.parts or 1


def sentence_of(error: BaseException, folder: Path) -> str:
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


def work(run: Run, store: RunStore) -> RunState:
    """Do a run from where it stands; the caller holds its lock. Returns the state it ended in."""
    me = ProcessIdentity.of(os.getpid())
    assert me is not None
    state = read_state(run.folder).model_copy(
        update={"state": "queued", "pid": me.pid, "started": me.started, "boot": me.boot, "host": socket.gethostname()}
    )
    control = Control(run, state)

    def on_signal(number: int, frame: FrameType | None) -> None:
        control.terminated = True

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, on_signal)
    ended: dict[str, Any]
    spare = run.folder / ".spare"
    try:
        spare.write_bytes(bytes(SPARE_BYTES))
        control.update(now=True, stage="waiting for the device")
        with device_held(control, store):
            turn = store.next_turn(lease_name(run.spec.device))
            control.update(now=True, state="running", error="", turn=turn)
            warn_of_memory(control)
            show_only(run.spec.device)
            from upvit_core.runs.jobs import do_run

            do_run(run, control)
        ended = {"state": "done", "error": ""}
    except Exception as error:
        if run.cancel_asked:
            ended = {"state": "cancelled", "error": ""}
        elif run.pause_asked:
            ended = {"state": "paused", "error": ""}
        elif control.terminated:
            ended = {
                "state": "interrupted",
                "error": "Its process was asked to end; Resume goes on from the last checkpoint.",
            }
        else:
            ended = {"state": "failed", "error": sentence_of(error, run.folder)}
            with suppress(OSError):
                traceback.print_exc()
    spare.unlink(missing_ok=True)
    control.update(now=True, stage="", seconds_left=None, **ended)
    run.forget_requests()
    control.log(control.state.state + (f": {control.state.error}" if control.state.error else ""))
    return control.state


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m upvit_core.runs.worker", description=__doc__)
    parser.add_argument("folder", type=Path, help="a run folder, made by the app or by `distill`")
    folder = parser.parse_args(arguments).folder.resolve()
    try:
        store = RunStore(folder.parent)
        run = store.get(folder.name)
        with run.lock(timeout=30.0) as held:
            if not held:
                raise RunError(f"Run {run.id} already has a worker.")
            if not read_state(run.folder).is_active:
                return 0
            for place in (run.folder, run.checkpoints):
                sweep_temporaries(place)
            return 0 if work(run, store).state != "failed" else 1
    except UPViTError as error:
        with suppress(OSError):
            print(error, file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
