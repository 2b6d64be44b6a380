"""One run folder: its files, its state as written and as it is, and how it ends.

What is asked of a worker is a file beside the others: `cancel`, `pause`; `priority` holds one that was changed later.
"""

from __future__ import annotations

import time
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from upvit_core.atomic import append_line, locked, open_plain, write_atomically
from upvit_core.errors import RunError
from upvit_core.runs import slurm
from upvit_core.runs.pid import ProcessIdentity
from upvit_core.runs.spec import HIGHEST, LOWEST, RunSpec, RunState, StateName

NEVER_STARTED_AFTER = 8.0  # seconds; an executor starts the process as soon as the folder is there
SMALL_FILE_BYTES = 64 << 20


@dataclass(frozen=True)
class Run:
    """One run folder, with the paths of its files."""

    folder: Path
    spec: RunSpec

    @property
    def id(self) -> str:
        return self.folder.name

    @property
    def metrics(self) -> Path:
        return self.folder / "metrics.jsonl"

    @property
    def log(self) -> Path:
        return self.folder / "log.txt"

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    @property
    def model(self) -> Path:
        """The distilled model's folder, there once the run is done."""
        return self.folder / "model"

    @property
    def cancel_file(self) -> Path:
        return self.folder / "cancel"

    @property
    def cancel_asked(self) -> bool:
        return self.cancel_file.exists()

    @property
    def pause_file(self) -> Path:
        return self.folder / "pause"

    @property
    def pause_asked(self) -> bool:
        return self.pause_file.exists()

    def forget_requests(self) -> None:
        """Whatever was asked of an earlier worker does not hold for the next."""
        for file in (self.cancel_file, self.pause_file):
            file.unlink(missing_ok=True)

    def lock(self, timeout: float | None = 0.0) -> AbstractContextManager[bool]:
        return locked(self.folder / "lock", timeout)

    def write_state(self, state: RunState) -> None:
        write_atomically(self.folder / "state.json", state.model_dump_json(indent=1).encode())

    def append_metrics(self, row: dict[str, Any]) -> None:
        append_line(self.metrics, row)


@dataclass(frozen=True)
class RunSummary:
    """A line of the list of runs; where a folder cannot be read, `problem` says why and `spec` is None.

    The spec is brief: of the plan it holds what was asked for, no channels; `RunStore.get` reads all of it.
    """

    id: str
    state: RunState
    spec: RunSpec | None = None
    problem: str = ""
    priority: int = 0

    @property
    def name(self) -> str:
        return self.spec.name if self.spec else self.id


def read_small(path: Path) -> bytes:
    """All of a file of a run folder. Raises RunError where it is a link, or none of the sizes that such files have."""
    try:
        with open_plain(path) as file:
            content = file.read(SMALL_FILE_BYTES + 1)
    except OSError as error:
        raise RunError(
            f"{path.name} of run {path.parent.name} cannot be read ({error.strerror}); remove the folder."
        ) from error
    if len(content) > SMALL_FILE_BYTES:
        raise RunError(
            f"{path.name} of run {path.parent.name} is larger than {SMALL_FILE_BYTES >> 20} MB and is not read."
        )
    return content


def read_state(folder: Path) -> RunState:
    """The state as last written; whether its worker lives is not looked at."""
    try:
        return RunState.model_validate_json(read_small(folder / "state.json"))
    except (RunError, ValidationError, RecursionError):
        return RunState(
            state="interrupted", error="Its state.json cannot be read; Resume goes on from the last checkpoint."
        )


def worker_of(state: RunState) -> ProcessIdentity | None:
    if state.pid is None or state.started is None:
        return None
    return ProcessIdentity(state.pid, state.started, state.boot)


def modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def priority_of(run: Run) -> int:
    """As changed later, else as ordered."""
    try:
        with open_plain(run.folder / "priority") as file:
            return min(max(int(file.read(8)), LOWEST), HIGHEST)
    except (OSError, ValueError):
        return run.spec.priority


def true_state(folder: Path, state: RunState | None = None) -> RunState:
    """`state` (else as last written), and `interrupted` where it is an active one whose worker is gone."""
    state = read_state(folder) if state is None else state
    if not state.is_active:
        return state
    if state.job:
        return slurm.state_of(folder, state, lambda: read_state(folder))
    worker = worker_of(state)
    if worker is not None:
        if worker.is_alive:
            return state
        state = read_state(folder)  # it may have ended between the two looks
        if not state.is_active or worker_of(state) != worker:
            return state
        why = "Its process was killed, or the machine restarted; Resume goes on from the last checkpoint."
    elif abs(time.time() - modified(folder / "state.json")) < NEVER_STARTED_AFTER:
        return state
    else:
        why = "It was never started; Resume starts it."
    return state.model_copy(update={"state": "interrupted", "error": why, "seconds_left": None})


def ended(run: Run, state: RunState, outcome: StateName) -> RunState:
    """The state after a stop, by who holds the lock: `outcome`, unless the worker had ended by itself."""
    if state.is_active:
        state = state.model_copy(update={"state": outcome, "seconds_left": None, "error": ""})
        run.write_state(state)
    run.forget_requests()
    return state
