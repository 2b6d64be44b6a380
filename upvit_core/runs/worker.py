"""The process of one run: `python -m upvit_core.runs.worker RUN_FOLDER`.

It holds the lock on its folder as long as it lives, waits for its device, does the job, and leaves a state that says
how it ended. SIGTERM without a request to cancel (a machine going down, a cluster's pre-emption) saves and ends as
`interrupted`. torch is imported only once the device is free, so that waiting costs next to nothing.

Several processes train one run together where `torchrun` or `accelerate launch` starts this module several times, or
where the spec asks for `processes`: the first one is this worker, the others follow it (runs/followers.py).
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import IO, Any

from upvit_core.atomic import sweep_temporaries
from upvit_core.errors import LimitError, RunError, UPViTError
from upvit_core.ranks import process_count, rank
from upvit_core.runs import slurm
from upvit_core.runs.devices import leases, show_only
from upvit_core.runs.folder import Run, read_state
from upvit_core.runs.helper_ranks import FAULT_FILE, fault_of, follow, followers
from upvit_core.runs.memory_check import check_memory
from upvit_core.runs.pid import ProcessIdentity
from upvit_core.runs.queue import devices_of
from upvit_core.runs.reporter import SPARE_BYTES, Control, error_message, peer_lost
from upvit_core.runs.store import RunStore

QUEUE_POLL_SECONDS = 0.3


@contextmanager
def device_held(control: Control, store: RunStore) -> Iterator[None]:
    """Wait until the run is first in the queues of its devices and all are free, then hold them.

    A Slurm job has been given its devices by Slurm.
    """
    if control.run.spec.executor == "slurm":
        yield
        return
    names = devices_of(control.run.spec)
    waiting = False
    while True:
        control.check()
        with leases(store.root, names) as held:
            if held and all(store.next_in_queue(name) == control.run.id for name in names):
                yield
                return
        if not waiting:
            control.log(f"waiting for {', '.join(names)}")
            waiting = True
        time.sleep(QUEUE_POLL_SECONDS)


def warn_of_memory(control: Control) -> None:
    """Say so where the run will hardly fit. Raises RunError where the CPU has no room: Linux kills what tries."""
    expected = check_memory(control.run.spec)
    if expected is None or not expected.sentence:
        return
    if expected.parts is None and expected.device.name == "cpu":
        raise RunError(expected.sentence)
    control.note(expected.sentence)
    control.parts = expected.parts or 1


def before_slurm_ends_it(control: Control, out_of_time: bool, first_step: int) -> dict[str, Any]:
    """The state of a worker that Slurm told to end: its job will be queued again, or `squeue` will not know it."""
    if out_of_time and control.state.step <= first_step:
        limit = "The job's time is too short to get any further than the last checkpoint; give it more minutes."
        return {"state": "failed", "error": limit}
    return {"state": "queued", "error": "", "stage": slurm.AGAIN}


def work(run: Run, store: RunStore, echo: IO[str] | None = None) -> int:
    """Do a run from where it stands; the caller holds its lock. Returns the exit status.

    `echo` receives the log's lines too. The status is 1 where other processes of the run may still wait for this one,
    so that their launcher ends them.
    """
    me = ProcessIdentity.of(os.getpid())
    assert me is not None
    before = read_state(run.folder)
    job = os.environ.get("SLURM_JOB_ID", "") if run.spec.executor == "slurm" else ""
    state = before.model_copy(
        update={"state": "queued", "pid": me.pid, "started": me.started, "boot": me.boot, "host": socket.gethostname(),
                "job": job, "attempt": before.attempt + (1 if job and before.pid is not None else 0)}
    )  # fmt: skip
    control = Control(run, state)
    control.echo = echo

    out_of_time = again = False

    def on_signal(number: int, frame: FrameType | None) -> None:
        nonlocal out_of_time
        control.terminated = True
        out_of_time = out_of_time or number == signal.SIGUSR2

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, *([signal.SIGUSR2] if job else [])):
        signal.signal(number, on_signal)
    ended: dict[str, Any]
    spare = run.folder / ".spare"
    try:
        spare.write_bytes(bytes(SPARE_BYTES))
        control.update(now=True, stage="waiting for the device")
        with device_held(control, store):
            control.has_device(max(map(store.next_turn, devices_of(run.spec))))
            warn_of_memory(control)
            if process_count() == 1:
                show_only(run.spec.device, run.spec.processes)
            (run.folder / FAULT_FILE).unlink(missing_ok=True)
            with followers(control):
                from upvit_core.runs.train import do_run

                do_run(run, control)
        ended = {"state": "done", "error": ""}
    except Exception as error:
        if run.cancel_asked:
            ended = {"state": "cancelled", "error": ""}
        elif run.pause_asked:
            ended = {"state": "paused", "error": ""}
        elif isinstance(error, LimitError):
            ended = {"state": "failed", "error": str(error)}
        elif control.terminated and job:
            again = out_of_time or slurm.is_wanted(job)
            ended = before_slurm_ends_it(control, out_of_time, before.step)
        elif control.terminated:
            ended = {
                "state": "interrupted",
                "error": "Its process was asked to end; Resume goes on from the last checkpoint.",
            }
        elif not fault_of(run) and peer_lost(error):
            ended = {
                "state": "interrupted",
                "error": "Another process of the run ended; Resume goes on from the last checkpoint.",
            }
        else:
            ended = {"state": "failed", "error": fault_of(run) or error_message(error, run.folder)}
            with suppress(OSError):
                traceback.print_exc()
    spare.unlink(missing_ok=True)
    control.update(now=True, **({"stage": "", "seconds_left": None} | ended))
    run.forget_requests()
    control.log(control.state.state + (f": {control.state.error}" if control.state.error else ""))
    if again and control.state.state == "queued":  # a job that ends by itself, Slurm would count as done
        slurm.requeue(job)
    together = control.state.state == "done" or control.agreed or process_count() == 1
    return 0 if together and control.state.state != "failed" else 1


def start(folder: Path, echo: IO[str] | None = None) -> int:
    """Do the run of a folder, or follow the process that does. Returns the exit status."""
    try:
        store = RunStore(folder.parent)
        run = store.get(folder.name)
        if rank() > 0:
            return follow(run)
        with run.lock(timeout=30.0) as held:
            if not held:
                raise RunError(f"Run {run.id} already has a worker.")
            if not read_state(run.folder).is_active:
                return 0
            for place in (run.folder, run.checkpoints):
                sweep_temporaries(place)
            return work(run, store, echo)
    except UPViTError as error:
        with suppress(OSError):
            print(error, file=sys.stderr)
        return 2


@contextmanager
def output_to(path: Path) -> Iterator[IO[str]]:
    """What this process and its children print goes to the end of a file; yields where it went before."""
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
