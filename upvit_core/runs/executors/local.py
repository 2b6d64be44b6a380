"""Runs on this machine, each a process of its own session, so that neither a page nor a server takes it along.

A worker waits for its device itself; nothing has to watch it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import upvit_core
from upvit_core.errors import RunError
from upvit_core.runs.folder import Run, read_state, worker_of
from upvit_core.runs.process import ProcessIdentity
from upvit_core.runs.spec import RunState
from upvit_core.runs.store import RunStore

PROJECT = Path(upvit_core.__file__).resolve().parent.parent


class LocalExecutor:
    """Starts detached worker processes with this interpreter; `environment` is added to this process's own."""

    def __init__(self, store: RunStore, environment: Mapping[str, str] | None = None):
        self.store = store
        self.environment = dict(environment or {})

    def submit(self, run: Run) -> None:
        """Queue a run and start its worker, which goes on when this process ends.

        Raises RunError where the run has a worker already, is not queued, or no process can be started.
        """
        with run.lock() as held:
            if not held:
                raise RunError(f"Run {run.id} already has a worker; cancel it first.")
            before = read_state(run.folder)
            if before.state != "queued":
                what = "start a new run instead" if before.state == "done" else "resume it first"
                raise RunError(f"Run {run.id} is {before.state}; {what}.")
            started = worker_of(before)
            if started is not None and started.is_alive:  # and has not come to take the lock
                raise RunError(f"Run {run.id} already has a worker; cancel it first.")
            queued = before.model_copy(
                update={"state": "queued", "pid": None, "started": None, "error": "", "seconds_left": None,
                        "attempt": before.attempt + 1, "epochs": run.spec.epochs}
            )  # fmt: skip
            run.write_state(queued)
            try:
                self._start(run, queued)
            except OSError as error:
                failed = f"Its process could not be started ({error}); free memory or disk space and resume it."
                run.write_state(queued.model_copy(update={"state": "failed", "error": failed}))
                raise RunError(failed) from error

    def _start(self, run: Run, queued: RunState) -> None:
        with run.log.open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "upvit_core.runs.worker", str(run.folder)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONPATH": _python_path(), **self.environment},
            )
        worker = ProcessIdentity.of(process.pid)
        if worker is not None:
            run.write_state(
                queued.model_copy(update={"pid": worker.pid, "started": worker.started, "boot": worker.boot})
            )


def _python_path() -> str:
    """The worker finds this package wherever it is started from, and starts where relative paths were meant."""
    return os.pathsep.join(filter(None, [str(PROJECT), os.environ.get("PYTHONPATH", "")]))
