"""Processes of a run beside the first: they train with it, write nothing, and end with it."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType

from upvit_core.atomic import write_atomically
from upvit_core.errors import Cancelled, UPViTError
from upvit_core.ranks import die_with_parent, local_rank, process_count, rank
from upvit_core.runs.devices import leases
from upvit_core.runs.folder import Run, read_state
from upvit_core.runs.queue import candidates_of
from upvit_core.runs.reason import error_message
from upvit_core.runs.reporter import Paused, Reporter, Terminated

FAULT_FILE = "fault.txt"
POLL_SECONDS = 0.3
END_SECONDS = 10.0
NOTICE_SECONDS = 6.0  # in which the first process may notice by itself that another one has died
LEADER = "UPVIT_LEADER"  # environment: pid of the worker that started this process


class PeerLost(UPViTError):
    """Another process of the run died."""


class SilentReporter(Reporter):
    """Writes nothing, since the first process does."""

    @property
    def stopping(self) -> bool:
        return self.terminated

    def check(self) -> None:
        if self.terminated:
            raise Terminated

    def log(self, message: str) -> None:
        pass

    def update(self, *, now: bool = False, **changes: object) -> None:
        pass

    def stage(self, name: str) -> None:
        pass

    def note(self, sentence: str) -> None:
        pass

    def row(self, row: dict[str, object]) -> None:
        pass


def run_helper(run: Run) -> int:
    """Wait until the first process has the device, then train with it. Returns the exit status."""
    if leader := os.environ.get(LEADER):
        die_with_parent(int(leader))
    reporter = SilentReporter(run, read_state(run.folder))

    def on_signal(number: int, frame: FrameType | None) -> None:
        reporter.terminated = True

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR2):
        signal.signal(number, on_signal)
    while (state := read_state(run.folder).state) == "queued" and not reporter.terminated:
        time.sleep(POLL_SECONDS)
    if state not in ("queued", "running") or reporter.terminated:
        return int(bool(leader))  # who may wait for this process
    try:
        with _machine_held(run, reporter):
            from upvit_core.runs.train import TrainingRun

            TrainingRun(run, reporter).execute()
    except (Terminated, Cancelled):
        return 0 if reporter.agreed else 1
    except Exception as error:
        with suppress(OSError):
            traceback.print_exc()
            fault = run.folder / FAULT_FILE
            if not fault.exists():
                sentence = f"Process {rank() + 1} of {process_count()}: {error_message(error, run.folder)}"
                write_atomically(fault, sentence.encode())
        return 1
    return 0


@contextmanager
def _machine_held(run: Run, reporter: Reporter) -> Iterator[None]:
    """Hold this machine's devices where the first process is on another machine, and holds only its own."""
    if local_rank() or LEADER in os.environ or run.spec.executor == "slurm":
        yield
        return
    while True:
        reporter.check()
        with leases(*candidates_of(run.spec)) as held:
            if held:
                yield
                return
        time.sleep(POLL_SECONDS)


def fault_of(run: Run) -> str:
    """The sentence that another process of the run left before it ended; empty where none did."""
    try:
        return (run.folder / FAULT_FILE).read_text()
    except (OSError, ValueError):
        return ""


@contextmanager
def helpers(reporter: Reporter, on_loss: Callable[[], None]) -> Iterator[None]:
    """Start the other processes that the spec asks for on this machine, unless a launcher has started them already.

    They belong to this process's group and end when it ends, however it ends. Where one of them dies, this process
    ends too: by an error where it trains with them, else after `on_loss`, since it may wait for them inside torch.
    """
    run, count = reporter.run, reporter.run.spec.processes
    if count == 1 or "WORLD_SIZE" in os.environ:
        yield
        return
    common: dict[str, object] = {
        "WORLD_SIZE": count,
        "LOCAL_WORLD_SIZE": count,
        LEADER: os.getpid(),
        "RANK": 0,
        "LOCAL_RANK": 0,
    }
    common |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    os.environ.update({key: str(value) for key, value in common.items()})
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // count)))
    started: list[subprocess.Popen[bytes]] = []
    patience = 0.0
    over = threading.Event()
    ending = threading.Lock()
    try:
        for number in range(1, count):
            environment = {**os.environ, "RANK": str(number), "LOCAL_RANK": str(number)}
            command = [sys.executable, "-m", "upvit_core.runs.worker", str(run.folder)]
            started.append(subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL))
        threading.Thread(target=_watch, args=(started, over, ending, on_loss), daemon=True).start()
        yield
        patience = END_SECONDS
    except (Cancelled, Paused, Terminated):
        patience = END_SECONDS if reporter.agreed else 0.0
        raise
    finally:
        with ending:
            over.set()
        deadline = time.monotonic() + patience
        for process in started:
            with suppress(subprocess.TimeoutExpired):
                process.wait(max(deadline - time.monotonic(), 0))
            if process.poll() is None:
                process.kill()
                process.wait()
        for key in common:
            os.environ.pop(key)


def _watch(
    started: Sequence[subprocess.Popen[bytes]],
    over: threading.Event,
    ending: threading.Lock,
    on_loss: Callable[[], None],
) -> None:
    """End this process once one of `started` has died, unless it is `over` by then or soon after."""
    while not over.wait(POLL_SECONDS):
        if any(process.poll() for process in started):
            break
    if over.wait(NOTICE_SECONDS):
        return
    with ending:
        if not over.is_set():
            for process in started:
                process.kill()
            with suppress(OSError):
                on_loss()
            os._exit(1)


def free_port() -> int:
    """A port on which nobody listens now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
