"""The store of runs: folders `runs/<id>/` with spec.json, state.json, metrics.jsonl and log.txt, which are the truth.

Whoever changes a run's state holds the lock on its folder; a worker holds it as long as it lives. Readers take no lock.
"""

import builtins
import os
import re
import secrets
import shutil
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from upvit_core.atomic import locked, open_plain, read_lines, write_atomically
from upvit_core.errors import RunError
from upvit_core.runs import slurm
from upvit_core.runs.folder import (
    NAME_BYTES,
    OUTCOMES,
    Request,
    Run,
    RunSummary,
    changing,
    end,
    is_here,
    name_of,
    priority_of,
    read_small,
    read_state,
    true_state,
    worker_of,
)
from upvit_core.runs.index import RUN_ID, Entry, Index
from upvit_core.runs.queue import last_turn_by_owner, queues
from upvit_core.runs.spec import HIGHEST, LATEST, LOWEST, RESUMABLE, RunSpec, RunState, absolute

LOG_TAIL_BYTES = 65536
GRACE_SECONDS: dict[Request, float] = {"cancel": 10.0, "pause": 120.0}  # the second: it may be saving
KILL_SECONDS = 30.0


class RunStore:
    """All runs under one folder. Several servers and workers may use it at once."""

    def __init__(self, root: str | Path = "runs"):
        self.root = Path(root).resolve()
        self.index = Index(self.root, self._read)

    def create(self, spec: RunSpec) -> Run:
        """Write a new run's folder; it is queued until an executor takes it up.

        Paths that exist are made absolute, so that the run can be resumed from any working directory.
        """
        with changing(self.root):
            return self._create(spec)

    def _create(self, spec: RunSpec) -> Run:
        self.root.mkdir(parents=True, exist_ok=True)
        with locked(self.root / ".lock", timeout=30.0) as held:
            if not held:
                raise RunError(f"{self.root} has been locked by another process for 30 s; try again.")
            for leftover in self.root.glob(".new-*"):  # of a process killed in here
                shutil.rmtree(leftover, ignore_errors=True)
            known = (entry.spec.created for entry in self.index.entries().values() if entry.spec)
            now, newest = time.time_ns(), max((created for created in known if created < LATEST), default=0)
            sources = {key: absolute(getattr(spec, key)) for key in ("teacher", "student", "data", "data_root")}
            spec = spec.model_copy(update=sources | {"created": max(now, newest + 1)})
            stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime(now / 1e9))
            slug = re.sub(r"[^a-z0-9]+", "-", spec.name.lower()).strip("-")[:40].strip("-") or spec.kind
            folder = self.root / f"{stamp}-{slug}-{secrets.token_hex(3)}"
            temporary = self.root / f".new-{secrets.token_hex(8)}"
            try:
                (temporary / "checkpoints").mkdir(parents=True)
                run = Run(temporary, spec)
                write_atomically(temporary / "spec.json", spec.model_dump_json(indent=1).encode())
                run.write_state(RunState(state="queued", epochs=spec.epochs))
                temporary.rename(folder)
            except OSError:
                shutil.rmtree(temporary, ignore_errors=True)
                raise
        return Run(folder, spec)

    def folder(self, run_id: str) -> Path:
        """The folder of a run id. Raises RunError where it is not the plain id of a run under this root."""
        if not RUN_ID.fullmatch(run_id):
            raise RunError(f"{run_id[:80]!r} is not the id of a run; ids are lower-case letters, digits and hyphens.")
        folder = self.root / run_id
        if folder.is_symlink() or not folder.is_dir():
            raise RunError(f"There is no run {run_id} in {self.root}; `runs` lists those there are.")
        return folder

    def get(self, run_id: str) -> Run:
        """Raises RunError where there is no such run, or its spec cannot be read."""
        folder = self.folder(run_id)
        if not (folder / "spec.json").exists():
            raise RunError(f"{folder} is no run's folder (it has no spec.json); `runs` lists those there are.")
        spec = RunSpec.from_json(read_small(folder / "spec.json"), f"spec.json of run {run_id}")
        name = name_of(folder)
        return Run(folder, spec if name is None else spec.model_copy(update={"name": name}))

    def list(self) -> list[RunSummary]:
        """Every run, newest first. Never raises because of one broken folder."""
        summaries = self._summaries()
        positions: dict[str, int] = {}
        for queue in queues(summaries).values():
            for position, run_id in enumerate(queue, 1):  # of several devices, the one that takes longest
                positions[run_id] = max(position, positions.get(run_id, 0))
        summaries = [
            replace(s, state=s.state.model_copy(update={"position": positions[s.id]})) if s.id in positions else s
            for s in summaries
        ]
        return sorted(summaries, key=lambda s: (s.spec.created if s.spec else 0, s.id), reverse=True)

    def state(self, run_id: str) -> RunState:
        """The state of a run now: an active run whose worker is gone is `interrupted`."""
        state = true_state(self.get(run_id).folder)
        if state.state == "queued":
            return next((s.state for s in self.list() if s.id == run_id), state)
        return state

    def next_in_queue(self, device: str) -> str | None:
        """Id of the run whose turn it is on a device, among queued runs whose worker is alive."""
        summaries = [s for s in self._summaries() if s.state.state != "queued" or s.state.pid is not None]
        return next(iter(queues(summaries).get(device, [])), None)

    def next_turn(self, device: str) -> int:
        """The number of the turn that begins now; only the process that holds the device may ask."""
        return 1 + max(last_turn_by_owner(self._summaries()).get(device, {}).values(), default=0)

    def prioritise(self, run_id: str, priority: int) -> None:
        """Change the priority of a run in its queue. Raises RunError where it is out of range."""
        run = self.get(run_id)
        if not LOWEST <= priority <= HIGHEST:
            raise RunError(f"{priority} is not a priority; give a whole number from {LOWEST} to {HIGHEST}.")
        with changing(run.folder):
            write_atomically(run.folder / "priority", str(priority).encode())

    def rename(self, run_id: str, name: str) -> None:
        """Give a run another name. Raises RunError where it is empty, too long or not printable."""
        folder, name = self.folder(run_id), " ".join(name.split())
        if not name or len(name) > NAME_BYTES or not name.isprintable():
            raise RunError(f"{name[:40]!r} is not a name of a run; give 1 to {NAME_BYTES} characters.")
        with changing(folder):
            write_atomically(folder / "name", name.encode())

    def read_metrics(self, run_id: str, offset: int = 0) -> tuple[builtins.list[dict[str, Any]], int]:
        """Rows written since byte `offset`, and the offset to ask from next time."""
        return read_lines(self.folder(run_id) / "metrics.jsonl", offset)

    def tail_log(self, run_id: str, n: int = 30) -> builtins.list[str]:
        """The last n lines of the log."""
        folder = self.folder(run_id)
        lines = _tail(folder / "log.txt", n)
        job = read_state(folder).job
        if not lines and job.isdecimal():  # it ended before this program began
            lines = _tail(folder / "slurm" / f"{job}_0_log.out", n)
        return lines

    def cancel(self, run_id: str, grace: float | None = None, by: str = "") -> RunState:
        """Ask the worker to stop; after `grace` seconds SIGTERM to its process group, after as many again SIGKILL.

        `by` is who asks. Returns when the run has stopped. Raises RunError where it is not active.
        """
        return self.finish(self.ask(run_id, "cancel", by), "cancel", grace)

    def pause(self, run_id: str, grace: float | None = None, by: str = "") -> RunState:
        """Ask the worker to save and end, so that its device is free; `resume` goes on from there.

        `by` is who asks. Returns when the run has stopped; after `grace` seconds the worker is sent SIGTERM, and never
        killed, since it may be saving. Raises RunError where the run is not active, or has not stopped after as many
        seconds again.
        """
        return self.finish(self.ask(run_id, "pause", by), "pause", grace)

    def ask(self, run_id: str, request: Request, by: str = "") -> Run:
        """The first half of `pause` and `cancel`: leave the request to the worker, and return at once."""
        run = self.get(run_id)
        state = true_state(run.folder)
        if not state.is_active:
            raise RunError(f"Run {run_id} is {state.state}; only queued and running runs can be {OUTCOMES[request]}.")
        run.ask(request, by)
        return run

    def finish(self, run: Run, request: Request, grace: float | None = None) -> RunState:
        """The second half: wait until the worker has stopped as it was asked to, and end it where it does not."""
        grace = GRACE_SECONDS[request] if grace is None else grace
        steps: list[tuple[signal.Signals | None, float]] = [(None, grace), (signal.SIGTERM, grace)]
        if request == "cancel":
            steps.append((signal.SIGKILL, KILL_SECONDS))
        job = read_state(run.folder).job
        if job:
            slurm.end(job, lambda: read_state(run.folder).is_active, steps[0][1])
        for number, seconds in steps:
            state = read_state(run.folder)
            worker = worker_of(state) if is_here(state) else None  # elsewhere its pid is another process's
            if number is not None and worker is not None:
                worker.signal(number)
            with changing(run.folder), run.lock(seconds) as free:
                if free:
                    return end(run, read_state(run.folder), run.request or request)
        process = f"process {state.pid}" if state.pid else "process"
        raise RunError(f"Run {run.id} has not stopped yet; wait, or end its {process}{_at(state)} by hand.")

    def resume(self, run_id: str) -> Run:
        """Queue a paused, interrupted, failed or cancelled run again; `submit` it to go on from its last checkpoint."""
        run = self.get(run_id)
        dying = true_state(run.folder).state in RESUMABLE  # yet a killed one may hold its lock a moment
        with changing(run.folder), run.lock(10.0 if dying else 0.0) as held:
            state = true_state(run.folder)
            if not held and state.state in RESUMABLE:
                raise RunError(f"Run {run_id} is locked by a process that works on it{_at(state)}; wait until it ends.")
            if state.state not in RESUMABLE:
                raise RunError(f"Run {run_id} is {state.state}; only {', '.join(RESUMABLE)} runs can be resumed.")
            run.forget_requests()
            queued = {"state": "queued", "pid": None, "started": None, "host": "", "job": "", "error": ""}
            run.write_state(state.model_copy(update=queued | {"place": "", "stopped_by": ""}))
        return run

    def remove(self, run_id: str) -> None:
        """Delete the folder of a run that is not active."""
        folder = self.folder(run_id)
        with changing(folder), locked(folder / "lock") as held:
            state = true_state(folder)
            started = state.is_active and (state.job or worker_of(state) is not None)
            if not held or started:  # a worker that starts now has no lock yet
                raise RunError(f"Run {run_id} is active; cancel it before removing it.")
            doomed = self.root / f".gone-{secrets.token_hex(8)}"
            folder.rename(doomed)
        shutil.rmtree(doomed, ignore_errors=True)

    def _read(self, run_id: str) -> Entry:
        """The index entry of a folder."""
        try:
            run = self.get(run_id)
        except RunError as error:
            return Entry(None, RunState(state="failed", error=str(error)), problem=str(error))
        return Entry(run.spec.brief(), read_state(run.folder), priority_of(run))

    def _summaries(self) -> builtins.list[RunSummary]:
        return [
            RunSummary(
                run_id, e.state if e.problem else true_state(self.root / run_id, e.state), e.spec, e.problem, e.priority
            )
            for run_id, e in self.index.entries().items()
        ]


def _at(state: RunState) -> str:
    return "" if is_here(state) else f" on {state.host}"


def _tail(path: Path, n: int) -> builtins.list[str]:
    try:
        with open_plain(path) as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(size - LOG_TAIL_BYTES, 0))
            return file.read().decode(errors="replace").splitlines()[-n:]
    except OSError:
        return []
