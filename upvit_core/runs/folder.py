"""One run folder: its files, its state as written and as it really is.

A request to the worker is a file beside the others, `cancel` or `pause`; `priority` and `name` hold what was changed
later.
"""

import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, Field, ValidationError, model_validator

from upvit_core.atomic import append_line, locked, open_plain, write_atomically
from upvit_core.errors import RunError
from upvit_core.records.by_class import Answered
from upvit_core.runs import slurm
from upvit_core.runs.pid import ProcessIdentity
from upvit_core.runs.reason import GO_ON, KILLED, NEVER_STARTED, UNREADABLE, reason_of
from upvit_core.runs.spec import HIGHEST, LOWEST, RunSpec, RunState, StateName

NEVER_STARTED_AFTER = 8.0  # seconds; an executor starts the process as soon as the folder is there
HEARTBEAT_SECONDS, LOST_SECONDS = 10.0, 90.0  # a worker's lock is touched as often; older, another machine's is dead
SMALL_FILE_BYTES = 64 << 20
NAME_BYTES = 200
Request = Literal["cancel", "pause"]
OUTCOMES: dict[Request, StateName] = {"cancel": "cancelled", "pause": "paused"}


Picture = Annotated[str, Field(pattern=r"^data:image/png;base64,[A-Za-z0-9+/=]*$")]


class Answers(BaseModel):
    """Examples of a run: images, the right answer to each, and those given at a moment: `teacher`, `surgery` or `start`
    (before any training) and `now`, of the latest evaluation."""

    images: list[Picture] = []
    right: list[str] = []
    answers: dict[str, list[str]] = {}

    @model_validator(mode="after")
    def _one_an_image(self) -> "Answers":
        if any(len(given) != len(self.images) for given in (self.right, *self.answers.values())):
            raise ValueError("give one answer an image")
        return self


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
    def answers(self) -> Answers:
        """The run's examples so far; none where it has none, or they cannot be read."""
        try:
            return Answers.model_validate_json(read_small(self.folder / "examples.json"))
        except (RunError, ValidationError, RecursionError):
            return Answers()

    @property
    def answered(self) -> Answered | None:
        """The answers at the latest evaluation; None where there are none, or they cannot be read."""
        try:
            return Answered.model_validate_json(read_small(self.folder / "classes.json"))
        except (RunError, ValidationError, RecursionError):
            return None

    @property
    def request(self) -> Request | None:
        """The request to the worker, if there is one."""
        return next((request for request in OUTCOMES if (self.folder / request).exists()), None)

    def ask(self, request: Request, by: str) -> None:
        """Ask the worker to stop, for `by`; not atomically, as a worker that starts sweeps temporaries away."""
        path = self.folder / request
        with changing(self.folder):
            path.touch()
        with suppress(OSError):  # a full disk has room for the request, not for the name
            path.write_text(by, encoding="utf-8")

    def asked_by(self, request: Request) -> str:
        """The name of the person who asked, as far as it is known."""
        try:
            with open_plain(self.folder / request) as file:
                name = file.read(NAME_BYTES).decode(errors="replace")
        except OSError:
            return ""
        return "".join(filter(str.isprintable, name))

    def forget_requests(self) -> None:
        """Requests to an earlier worker do not hold for the next."""
        for request in OUTCOMES:
            (self.folder / request).unlink(missing_ok=True)

    def lock(self, timeout: float | None = 0.0) -> AbstractContextManager[bool]:
        return locked(self.folder / "lock", timeout)

    @contextmanager
    def heartbeat(self) -> Iterator[None]:
        """Touch the lock now and then while inside, so that other machines see that this worker lives."""
        over = threading.Event()

        def beat() -> None:
            while True:
                with suppress(OSError):
                    os.utime(self.folder / "lock")
                if over.wait(HEARTBEAT_SECONDS):
                    return

        threading.Thread(target=beat, daemon=True).start()
        try:
            yield
        finally:
            over.set()

    def write_state(self, state: RunState) -> None:
        write_atomically(self.folder / "state.json", state.model_dump_json(indent=1).encode())

    def append_metrics(self, row: dict[str, object]) -> None:
        """Append a row, but for numbers that are NaN (top-1 without labels): JSON has none."""
        append_line(self.metrics, {key: value for key, value in row.items() if value == value})


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

    @property
    def reason(self) -> str:
        """The reason why it stopped; empty while it is active."""
        return reason_of(self.state)


@contextmanager
def changing(folder: Path) -> Iterator[None]:
    """Around changes of a folder of runs, or of one run. Raises RunError where the system refuses them."""
    try:
        yield
    except OSError as error:
        if any(place.is_file() for place in (folder, *folder.parents)):
            raise RunError(f"{folder} is a file, or lies below one; give a folder.") from error
        raise RunError(
            f"The folder {folder.name} cannot be changed ({error.strerror or error}); make room on its disk, or allow "
            "this account to write there."
        ) from error


def read_small(path: Path) -> bytes:
    """The content of a file of a run folder. Raises RunError where it is a link, or too large to be such a file."""
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
    """The state as last written, whether or not its worker still lives."""
    try:
        return RunState.model_validate_json(read_small(folder / "state.json"))
    except (RunError, ValidationError, RecursionError):
        return RunState(state="interrupted", error=UNREADABLE)


def worker_of(state: RunState) -> ProcessIdentity | None:
    if state.pid is None or state.started is None:
        return None
    return ProcessIdentity(state.pid, state.started, state.boot)


def is_here(state: RunState) -> bool:
    """True if the worker is one of this machine or container, as far as the state says."""
    return state.host in ("", socket.gethostname())


def modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def priority_of(run: Run) -> int:
    """The priority as changed later, else as the spec has it."""
    try:
        with open_plain(run.folder / "priority") as file:
            return min(max(int(file.read(8)), LOWEST), HIGHEST)
    except (OSError, ValueError):
        return run.spec.priority


def name_of(folder: Path) -> str | None:
    """The name that was given later; None where it is that of the spec."""
    try:
        with open_plain(folder / "name") as file:
            return file.read(4 * NAME_BYTES).decode(errors="replace")[:NAME_BYTES] or None
    except OSError:
        return None


def true_state(folder: Path, state: RunState | None = None) -> RunState:
    """`state` (else as last written), and `interrupted` where it is an active one whose worker is gone.

    A process of this machine is looked at; one of another machine (or container, whose pids mean nothing here) lives
    while it touches its lock.
    """
    state = read_state(folder) if state is None else state
    if not state.is_active:
        return state
    if state.job:
        return slurm.state_of(folder, state, lambda: read_state(folder))
    worker = worker_of(state)
    if worker is not None:
        here, heard = is_here(state), modified(folder / "lock")
        fresh = abs(time.time() - heard) < LOST_SECONDS
        if worker.is_alive and (here or fresh):
            return state
        where = f"on {state.host}, last heard of at {time.strftime('%Y-%m-%d %H:%M', time.localtime(heard))}"
        if fresh and not here:
            return state.model_copy(update={"place": where})
        state = read_state(folder)  # it may have ended in between
        if not state.is_active or worker_of(state) != worker:
            return state
        why = KILLED if here else f"It ran {where}; {GO_ON}"
    elif abs(time.time() - modified(folder / "state.json")) < NEVER_STARTED_AFTER:
        return state
    else:
        why = NEVER_STARTED
    return state.model_copy(update={"state": "interrupted", "error": why, "seconds_left": None})


def stopped(run: Run, request: Request) -> dict[str, object]:
    """The changes of a state by which a run ends as it was asked to."""
    return {"state": OUTCOMES[request], "error": "", "stopped_by": run.asked_by(request)}


def end(run: Run, state: RunState, request: Request) -> RunState:
    """The state after a stop, written by who holds the lock; as it was where the worker had ended by itself."""
    if state.is_active:
        state = state.model_copy(update={"seconds_left": None, **stopped(run, request)})
        run.write_state(state)
    run.forget_requests()
    return state
