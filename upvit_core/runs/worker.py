"""The process of one run: `python -m upvit_core.runs.worker RUN_FOLDER`.

It holds the lock on its folder as long as it lives, waits for its device, does the job, and leaves a state that says
how it ended. SIGTERM without a request to cancel (a machine going down, a cluster's pre-emption) saves and ends as
`interrupted`. torch is imported only once the device is free, so that waiting costs next to nothing.

Several processes train one run together where `torchrun` or `accelerate launch` starts this module several times, or
where the spec asks for `processes`: the first one is this worker, the others help it (runs/helper_ranks.py).
"""

import argparse
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import IO

from upvit_core.atomic import sweep_temporaries
from upvit_core.errors import LimitError, RunError, UPViTError
from upvit_core.ranks import process_count, rank
from upvit_core.runs import slurm
from upvit_core.runs.devices import devices_named, leases, show_only
from upvit_core.runs.folder import Run, read_state, stopped
from upvit_core.runs.helper_ranks import FAULT_FILE, PeerLost, fault_of, helpers, run_helper
from upvit_core.runs.memory_check import check_memory
from upvit_core.runs.pid import ProcessIdentity
from upvit_core.runs.queue import candidates_of
from upvit_core.runs.reason import PEER_LOST, SPARE_BYTES, TERMINATED, TOO_SHORT, error_message, is_peer_lost, reason_of
from upvit_core.runs.reporter import Reporter
from upvit_core.runs.store import RunStore

QUEUE_POLL_SECONDS = 0.3
SPARE_FILE = ".spare"


@contextmanager
def device_held(reporter: Reporter, store: RunStore) -> Iterator[tuple[str, ...]]:
    """Wait until the run is first in the queues of as many free devices as it needs, then hold them; yields them.

    A Slurm job has been given its devices by Slurm.
    """
    spec, run_id = reporter.run.spec, reporter.run.id
    names, count = candidates_of(spec)
    if spec.executor == "slurm":
        yield names
        return
    waiting = False
    while True:
        reporter.check()
        mine = [name for name in names if store.next_in_queue(name) == run_id]
        with leases(mine, count) as held:
            if held and all(store.next_in_queue(name) == run_id for name in held):
                yield held
                return
        if not waiting:
            reporter.log(f"waiting for {', '.join(names)}")
            waiting = True
        time.sleep(QUEUE_POLL_SECONDS)


def warn_of_memory(reporter: Reporter, names: Sequence[str]) -> None:
    """Note where the run will hardly fit. Raises RunError where the CPU has no room: Linux kills what tries."""
    check = check_memory(reporter.run.spec, devices_named(names))
    if check is None or not check.sentence:
        return
    if check.parts is None and check.device.name == "cpu":
        raise RunError(check.sentence)
    reporter.note(check.sentence)
    reporter.parts = check.parts or 1


def train(run: Run, store: RunStore, reporter: Reporter) -> None:
    """Wait for the device and train on it, with the other processes that the spec asks for."""
    first_step = reporter.state.step
    reporter.update(now=True, stage="waiting for the device")
    with device_held(reporter, store) as held:
        reporter.has_device(held, max(map(store.next_turn, held)))
        warn_of_memory(reporter, held)
        if process_count() == 1:
            show_only(held)
        (run.folder / FAULT_FILE).unlink(missing_ok=True)
        with helpers(reporter, lambda: leave(reporter, ending(PeerLost(), reporter, first_step))):
            from upvit_core.runs.train import TrainingRun

            TrainingRun(run, reporter).execute()


def ending(error: Exception, reporter: Reporter, first_step: int) -> dict[str, object]:
    """The changes of the state by which a run ends that an error stopped; its attempt began at `first_step`."""
    run, state = reporter.run, reporter.state
    if (request := run.request) is not None:
        return stopped(run, request)
    if isinstance(error, LimitError):
        return {"state": "failed", "error": str(error)}
    if reporter.terminated and state.job:
        if reporter.out_of_time and state.step <= first_step:
            return {"state": "failed", "error": TOO_SHORT}
        return {"state": "queued", "error": "", "stage": slurm.AGAIN}
    if reporter.terminated:
        return {"state": "interrupted", "error": TERMINATED}
    if not fault_of(run) and (isinstance(error, PeerLost) or is_peer_lost(error)):
        return {"state": "interrupted", "error": PEER_LOST}
    with suppress(OSError):
        traceback.print_exception(error)
    return {"state": "failed", "error": fault_of(run) or error_message(error, run.folder)}


def leave(reporter: Reporter, end: dict[str, object]) -> None:
    """Write the state in which the run ends, and why."""
    (reporter.run.folder / SPARE_FILE).unlink(missing_ok=True)
    reporter.update(now=True, **({"stage": "", "seconds_left": None} | end))
    reporter.run.forget_requests()
    state = reporter.state
    reporter.log(f"{state.state}: {reason_of(state)}" if state.state != "done" else "done")


def listen(reporter: Reporter) -> None:
    """Have signals stop the run after its step. SIGUSR2 is Slurm's warning that a job's time is almost over."""

    def on_signal(number: int, frame: FrameType | None) -> None:
        reporter.terminated = True
        reporter.out_of_time = reporter.out_of_time or number == signal.SIGUSR2

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, *([signal.SIGUSR2] if reporter.state.job else [])):
        signal.signal(number, on_signal)


def work(run: Run, store: RunStore, echo: IO[str] | None = None) -> int:
    """Do a run from where it stands; the caller holds its lock. Returns the exit status.

    `echo` receives the log's lines too. The status is 1 where other processes of the run may still wait for this one,
    so that their launcher ends them.
    """
    me = ProcessIdentity.of(os.getpid())
    assert me is not None
    before = read_state(run.folder)
    job = os.environ.get("SLURM_JOB_ID", "") if run.spec.executor == "slurm" else ""
    started = {
        "state": "queued",
        "pid": me.pid,
        "started": me.started,
        "boot": me.boot,
        "host": socket.gethostname(),
        "job": job,
        "note": "",
        "attempt": before.attempt + (1 if job and before.pid is not None else 0),
    }
    reporter = Reporter(run, before.model_copy(update=started), echo)
    listen(reporter)
    end: dict[str, object] = {"state": "done", "error": ""}
    try:
        (run.folder / SPARE_FILE).write_bytes(bytes(SPARE_BYTES))
        with run.heartbeat():
            train(run, store, reporter)
    except Exception as error:
        end = ending(error, reporter, before.step)
    wanted = end["state"] == "queued" and (reporter.out_of_time or slurm.is_wanted(job))
    leave(reporter, end)
    if wanted:  # a job that ends by itself, Slurm would count as done
        slurm.requeue(job)
    state = reporter.state
    together = state.state == "done" or reporter.agreed or process_count() == 1
    return 0 if together and state.state != "failed" else 1


def start(folder: Path, echo: IO[str] | None = None) -> int:
    """Do the run of a folder, or help the process that does. Returns the exit status."""
    try:
        store = RunStore(folder.parent)
        run = store.get(folder.name)
        if rank() > 0:
            return run_helper(run)
        with run.lock(timeout=30.0) as held:
            if not held:
                raise RunError(f"Run {run.id} already has a worker.")
            if not read_state(run.folder).is_active:
                return 0
            for folder in (run.folder, run.checkpoints):
                sweep_temporaries(folder)
            return work(run, store, echo)
    except UPViTError as error:
        with suppress(OSError):
            print(error, file=sys.stderr)
        return 2


@contextmanager
def output_to(path: Path) -> Iterator[IO[str]]:
    """Append what this process and its children print to a file; yields the stream that it went to before."""
    sys.stdout.flush()
    sys.stderr.flush()
    before = [os.dup(number) for number in (1, 2)]
    with path.open("ab") as file:
        for number in (1, 2):
            os.dup2(file.fileno(), number)
    try:
        with os.fdopen(os.dup(before[1]), "w", buffering=1) as shown:
            yield shown
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for number, descriptor in zip((1, 2), before, strict=True):
            os.dup2(descriptor, number)
            os.close(descriptor)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m upvit_core.runs.worker", description=__doc__)
    parser.add_argument("folder", type=Path, help="a run folder, made by the app or by `distill`")
    return start(parser.parse_args(arguments).folder.resolve())


if __name__ == "__main__":
    from upvit_core.runs import worker  # under its own name, so that its classes exist once

    sys.exit(worker.main())
