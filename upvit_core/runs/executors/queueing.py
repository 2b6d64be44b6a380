"""The checks and states around the start of a worker, shared by executors."""

from collections.abc import Iterator
from contextlib import contextmanager

from upvit_core.errors import RunError
from upvit_core.runs.folder import Run, changing, read_state, worker_of
from upvit_core.runs.spec import RunState


@contextmanager
def queued(run: Run) -> Iterator[RunState]:
    """The run's lock is held and its state is `queued` while inside; it is `failed` where the inside raises RunError.

    Raises RunError where the run has a worker already, or is not queued.
    """
    with changing(run.folder), run.lock() as held:
        if not held:
            raise RunError(f"Run {run.id} already has a worker; cancel it first.")
        before = read_state(run.folder)
        if before.state != "queued":
            remedy = "start a new run instead" if before.state == "done" else "resume it first"
            raise RunError(f"Run {run.id} is {before.state}; {remedy}.")
        started = worker_of(before)
        if before.job or (started is not None and started.is_alive):  # and has not come to take the lock
            raise RunError(f"Run {run.id} already has a worker; cancel it first.")
        cleared = {"pid": None, "started": None, "host": "", "job": "", "stage": "", "error": "", "seconds_left": None}
        changes = {"state": "queued", "attempt": before.attempt + 1, "epochs": run.spec.epochs}
        state = before.model_copy(update=cleared | changes)
        run.write_state(state)
        try:
            yield state
        except RunError as error:
            run.write_state(state.model_copy(update={"state": "failed", "error": str(error)}))
            raise
