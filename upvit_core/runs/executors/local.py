"""Runs on this machine, each a process of its own session, so that neither a page nor a server takes it along.

A worker waits for its device itself; nothing has to watch it.
"""

import os
import socket
import subprocess
import sys
from collections.abc import Mapping

from upvit_core.errors import RunError
from upvit_core.ranks import python_path
from upvit_core.runs.executors.queueing import queued
from upvit_core.runs.folder import Run
from upvit_core.runs.pid import ProcessIdentity
from upvit_core.runs.spec import RunState
from upvit_core.runs.store import RunStore


class LocalExecutor:
    """Starts detached worker processes with this interpreter; `environment` is added to this process's own."""

    def __init__(self, store: RunStore, environment: Mapping[str, str] | None = None):
        self.store = store
        self.environment = dict(environment or {})

    def submit(self, run: Run) -> None:
        """Queue a run and start its worker, which goes on when this process ends.

        Raises RunError where the run has a worker already, is not queued, or no process can be started.
        """
        with queued(run) as state:
            try:
                self._start(run, state)
            except OSError as error:
                raise RunError(
                    f"Its process could not be started ({error}); free memory or disk space and resume it."
                ) from error

    def _start(self, run: Run, state: RunState) -> None:
        with run.log.open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "upvit_core.runs.worker", str(run.folder)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONPATH": python_path(), **self.environment},
            )
        worker = ProcessIdentity.of(process.pid)
        if worker is not None:
            identity = {"pid": worker.pid, "started": worker.started, "boot": worker.boot}
            run.write_state(state.model_copy(update=identity | {"host": socket.gethostname()}))
