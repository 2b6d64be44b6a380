"""The run folders on disk, which are the truth: `runs/<id>/` with spec.json, state.json, metrics.jsonl, log.txt.

Whoever changes a run's state holds the lock on its folder; a worker holds it as long as it lives. Readers take no lock.
"""

from __future__ import annotations

import builtins
import os
import re
import secrets
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from upvit_core.errors import RunError
from upvit_core.runs.files import append_line, locked, read_lines, write_atomically
from upvit_core.runs.process import ProcessIdentity
from upvit_core.runs.spec import RESUMABLE, RunSpec, RunState

RUN_ID = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,78}[a-z0-9])?")
NEVER_STARTED_AFTER = 60.0
LOG_TAIL_BYTES = 65536
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

    def lock(self, timeout: float | None = 0.0) -> AbstractContextManager[bool]:
        return locked(self.folder / "lock", timeout)

    def write_state(self, state: RunState) -> None:
        write_atomically(self.folder / "state.json", state.model_dump_json(indent=1).encode())

    def append_metrics(self, row: dict[str, Any]) -> None:
        append_line(self.metrics, row)


@dataclass(frozen=True)
class RunSummary:
    """A line of the list of runs; where a folder cannot be read, `problem` says why and `spec` is None."""

    id: str
    state: RunState
    spec: RunSpec | None = None
    problem: str = ""

    @property
    def name(self) -> str:
        return self.spec.name if self.spec else self.id


class RunStore:
    """All runs under one folder. Several servers and workers may use it at once."""

    def __init__(self, root: str | Path = "runs"):
        self.root = Path(root).resolve()

    def create(self, spec: RunSpec) -> Run:
        """Write a new run's folder; it is queued until an executor takes it up.

        Paths that exist are made absolute, so that the run can be resumed from any working directory.
        """
        self.root.mkdir(parents=True, exist_ok=True)
        with locked(self.root / ".lock", timeout=30.0) as held:
            if not held:
                raise RunError(f"{self.root} has been locked by another process for 30 s; try again.")
            for leftover in self.root.glob(".new-*"):  # of a process killed in here
                shutil.rmtree(leftover, ignore_errors=True)
            newest = max((run.spec.created for run in self._readable()), default=0)
            places = {key: _absolute(getattr(spec, key)) for key in ("teacher", "student", "data", "data_root")}
            spec = spec.model_copy(update=places | {"created": max(time.time_ns(), newest + 1)})
            stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime(spec.created / 1e9))
            slug = re.sub(r"[^a-z0-9]+", "-", spec.name.lower()).strip("-")[:40].strip("-") or spec.kind
            folder = self.root / f"{stamp}-{slug}-{secrets.token_hex(3)}"
            temporary = self.root / f".new-{secrets.token_hex(8)}"
            try:
                (temporary / "checkpoints").mkdir(parents=True)
                run = Run(temporary, spec)
                write_atomically(temporary / "spec.json", spec.model_dump_json(indent=1).encode())
                run.write_state(RunState(state="queued", epochs=spec.epochs))
                temporary.rename(folder)
            except OSError as error:
                shutil.rmtree(temporary, ignore_errors=True)
                raise RunError(
                    f"The run could not be written to {self.root} ({error}); make room or choose another folder."
                ) from error
        return Run(folder, spec)

    def folder(self, run_id: str) -> Path:
        """The folder of a run id. Raises RunError for whatever is not a plain id of a run under this root."""
        if not RUN_ID.fullmatch(run_id):
            raise RunError(f"{run_id[:80]!r} is not the id of a run; ids are lower-case letters, digits and hyphens.")
        folder = self.root / run_id
        if folder.is_symlink() or not folder.is_dir():
            raise RunError(f"There is no run {run_id} in {self.root}; `runs` lists those there are.")
        return folder

    def get(self, run_id: str) -> Run:
        """Raises RunError where there is no such run, or its spec cannot be read."""
        folder = self.folder(run_id)
        return Run(folder, RunSpec.from_json(_read_small(folder / "spec.json"), f"spec.json of run {run_id}"))

    def list(self) -> list[RunSummary]:
        """Every run, newest first. Never raises because of one broken folder."""
        summaries = []
        for run_id in self._ids():
            try:
                run = self.get(run_id)
                summaries.append(RunSummary(run_id, self._true_state(run), run.spec))
            except RunError as error:
                summaries.append(RunSummary(run_id, RunState(state="failed", error=str(error)), problem=str(error)))
        waiting = {run_id: place for queue in _queues(summaries).values() for place, run_id in enumerate(queue, 1)}
        placed = [
            s if s.id not in waiting
            else RunSummary(s.id, s.state.model_copy(update={"position": waiting[s.id]}), s.spec)
            for s in summaries
        ]  # fmt: skip
        return sorted(placed, key=lambda s: (s.spec.created if s.spec else 0, s.id), reverse=True)

    def state(self, run_id: str) -> RunState:
        """Where a run stands now: an active run whose worker is gone is `interrupted`."""
        state = self._true_state(self.get(run_id))
        if state.state == "queued":
            return next((s.state for s in self.list() if s.id == run_id), state)
        return state

    def next_in_queue(self, device: str) -> str | None:
        """Id of the run whose turn it is on a device, among queued runs whose worker is alive."""
        summaries = []
        for run in self._readable():
            state = self._true_state(run)
            if state.state == "queued" and state.pid is not None:
                summaries.append(RunSummary(run.id, state, run.spec))
        return next(iter(_queues(summaries).get(device, [])), None)

    def read_metrics(self, run_id: str, offset: int = 0) -> tuple[builtins.list[dict[str, Any]], int]:
        """Rows written since byte `offset`, and the offset to ask from next time."""
        return read_lines(self.folder(run_id) / "metrics.jsonl", offset)

    def tail_log(self, run_id: str, n: int = 30) -> builtins.list[str]:
        """The last n lines of the log."""
        try:
            with (self.folder(run_id) / "log.txt").open("rb") as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(max(size - LOG_TAIL_BYTES, 0))
                return file.read().decode(errors="replace").splitlines()[-n:]
        except FileNotFoundError:
            return []

    def cancel(self, run_id: str, grace: float = 10.0) -> RunState:
        """Ask the worker to stop; after `grace` seconds SIGTERM to its process group, after as many again SIGKILL.

        Returns when the run has stopped. Raises RunError where it is not active.
        """
        run = self.get(run_id)
        state = self._true_state(run)
        if not state.is_active:
            raise RunError(f"Run {run_id} is {state.state} and cannot be cancelled.")
        run.cancel_file.touch()  # not by way of a temporary, which a worker that starts now would sweep away
        for number in (None, signal.SIGTERM, signal.SIGKILL):
            worker = _worker_of(read_state(run.folder))
            if number is not None and worker is not None:
                worker.signal(number)
            with run.lock(grace if number is not signal.SIGKILL else 30.0) as free:
                if free:
                    state = read_state(run.folder)
                    if state.is_active:
                        run.write_state(state.model_copy(update={"state": "cancelled", "seconds_left": None}))
                    return read_state(run.folder)
        raise RunError(f"Run {run_id} could not be stopped; end its process {worker.pid if worker else ''} by hand.")

    def resume(self, run_id: str) -> Run:
        """Queue an interrupted, failed or cancelled run again; `submit` it to go on from its last checkpoint."""
        run = self.get(run_id)
        with run.lock() as held:
            state = self._true_state(run)
            if not held or state.state not in RESUMABLE:
                raise RunError(f"Run {run_id} is {state.state}; only {', '.join(RESUMABLE)} runs can be resumed.")
            run.cancel_file.unlink(missing_ok=True)
            run.write_state(state.model_copy(update={"state": "queued", "pid": None, "started": None, "error": ""}))
        return run

    def remove(self, run_id: str) -> None:
        """Delete the folder of a run that is not active."""
        folder = self.folder(run_id)
        with locked(folder / "lock") as held:
            if not held:
                raise RunError(f"Run {run_id} is active; cancel it before removing it.")
            doomed = self.root / f".gone-{secrets.token_hex(8)}"
            folder.rename(doomed)
        shutil.rmtree(doomed, ignore_errors=True)

    def _ids(self) -> Iterator[str]:
        with suppress(OSError), os.scandir(self.root) as entries:
            yield from sorted(e.name for e in entries if RUN_ID.fullmatch(e.name) and e.is_dir(follow_symlinks=False))

    def _readable(self) -> Iterator[Run]:
        for run_id in self._ids():
            with suppress(RunError):
                yield self.get(run_id)

    def _true_state(self, run: Run) -> RunState:
        state = read_state(run.folder)
        if not state.is_active:
            return state
        worker = _worker_of(state)
        if worker is not None:
            if worker.is_alive:
                return state
            state = read_state(run.folder)  # it may have ended between the two looks
            if not state.is_active or _worker_of(state) != worker:
                return state
            why = "Its process was killed, or the machine restarted; Resume goes on from the last checkpoint."
        elif abs(time.time() - _modified(run.folder / "state.json")) < NEVER_STARTED_AFTER:
            return state
        else:
            why = "It was never started; Resume starts it."
        return state.model_copy(update={"state": "interrupted", "error": why, "seconds_left": None})


def _absolute(place: str | None) -> str | None:
    return os.path.abspath(place) if place and place != "demo" and os.path.exists(place) else place


def _read_small(path: Path) -> bytes:
    try:
        if path.stat().st_size > SMALL_FILE_BYTES:
            raise RunError(
                f"{path.name} of run {path.parent.name} is larger than {SMALL_FILE_BYTES >> 20} MB and is not read."
            )
        return path.read_bytes()
    except OSError as error:
        raise RunError(
            f"{path.name} of run {path.parent.name} cannot be read ({error.strerror}); remove the folder."
        ) from error


def read_state(folder: Path) -> RunState:
    """The state as last written; whether its worker lives is not looked at."""
    try:
        return RunState.model_validate_json(_read_small(folder / "state.json"))
    except (RunError, ValidationError, RecursionError):
        return RunState(
            state="interrupted", error="Its state.json cannot be read; Resume goes on from the last checkpoint."
        )


def _worker_of(state: RunState) -> ProcessIdentity | None:
    if state.pid is None or state.started is None:
        return None
    return ProcessIdentity(state.pid, state.started, state.boot)


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _queues(summaries: list[RunSummary]) -> dict[str, list[str]]:
    """Ids of waiting runs by device, first come first."""
    from upvit_core.runs.devices import lease_name

    queues: dict[str, list[str]] = {}
    waiting = [s for s in summaries if s.spec is not None and s.state.state == "queued"]
    for summary in sorted(waiting, key=lambda s: (s.spec.created if s.spec else 0, s.id)):
        assert summary.spec is not None
        queues.setdefault(lease_name(summary.spec.device), []).append(summary.id)
    return queues
