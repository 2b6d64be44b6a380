"""The state of a run's Slurm job, from `squeue` and `scontrol` alone: many clusters keep no accounts for `sacct`.

The run folder says what the worker did; Slurm says whether there will still be a worker. Imports neither torch nor
submitit, so that a page can ask.
"""

import re
import shutil
import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from upvit_core.errors import RunError
from upvit_core.runs.reason import GO_ON
from upvit_core.runs.spec import RunState

POLL_SECONDS = 2.0
COMMAND_SECONDS = 15.0
KILL_SECONDS = 60.0
WAITING = {
    "PENDING",
    "CONFIGURING",
    "REQUEUED",
    "REQUEUE_FED",
    "REQUEUE_HOLD",
    "SPECIAL_EXIT",
    "SUSPENDED",
    "PREEMPTED",
}
AGAIN = "Slurm will start it again"


@dataclass(frozen=True)
class SlurmJob:
    """A line of `squeue`: `state` in Slurm's words, the reason why it waits, the nodes it runs on."""

    id: str
    name: str
    state: str
    why: str
    nodes: str


class _Listing:
    """All jobs of this user; Slurm is asked at most every two seconds, however many pages are open."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.jobs: dict[str, SlurmJob] = {}
        self.at = float("-inf")

    def find(self, job: str, *, fresh: bool = False) -> SlurmJob | None:
        with self.lock:
            if fresh or time.monotonic() - self.at > POLL_SECONDS:
                lines = _run("squeue", "--me", "--noheader", "--format=%i|%j|%T|%r|%N").splitlines()
                found = (
                    SlurmJob(*(part.strip() for part in line.split("|", 4))) for line in lines if line.count("|") >= 4
                )
                self.jobs, self.at = {job.id: job for job in found}, time.monotonic()
            return self.jobs.get(job)


_listing = _Listing()


def available() -> bool:
    """True if this machine can ask a Slurm."""
    return shutil.which("sbatch") is not None and shutil.which("squeue") is not None


def _run(*command: str) -> str:
    """The command's output. Raises RunError with Slurm's message, or because it does not answer."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=COMMAND_SECONDS, check=True, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise RunError(
            f"Slurm does not answer ({command[0]}: {error}); try again, or ask its administrator."
        ) from error
    except subprocess.CalledProcessError as error:
        lines = error.stderr.strip().splitlines()
        raise RunError(
            f"Slurm refused ({lines[-1] if lines else command[0]}); change the settings or try again."
        ) from error
    return done.stdout


def state_of(folder: Path, state: RunState, latest: Callable[[], RunState]) -> RunState:
    """The state of an active run, corrected by that of its job; `latest` reads the state again."""
    if not available():
        return _stopped(state, f"Its Slurm job {state.job} cannot be asked after from this machine.")
    try:
        job = _listing.find(state.job) or _listing.find(state.job, fresh=True)
    except RunError as error:
        return state.model_copy(update={"place": str(error)})
    if job is not None and job.name == folder.name:
        if job.state in WAITING:
            why = f"Slurm job {job.id} waits ({job.why})"
            return state.model_copy(update={"state": "queued", "place": why, "seconds_left": None})
        return state.model_copy(update={"place": f"Slurm job {job.id} on {job.nodes}, {job.state.lower()}"})
    now = latest()  # it may have ended in between
    if not now.is_active or now.job != state.job:
        return now
    return _stopped(state, f"Its Slurm job {state.job} is over ({_how_it_ended(state.job)}).")


def _stopped(state: RunState, why: str) -> RunState:
    error = f"{why} {GO_ON}"
    return state.model_copy(update={"state": "interrupted", "error": error, "stage": "", "seconds_left": None})


def _how_it_ended(job: str) -> str:
    """`FAILED, NonZeroExitCode`, while Slurm remembers the job."""
    try:
        words = _shown(job, "JobState", "Reason")
    except RunError:
        return "Slurm no longer knows it"
    return ", ".join(word for word in words if word != "None") or "Slurm does not say why"


def _shown(job: str, *keys: str) -> list[str]:
    """Values that `scontrol` shows of a job, under those of the keys that it has."""
    shown = _run("scontrol", "--oneliner", "show", "job", job)
    matches = (re.search(rf"\b{key}=(\S+)", shown) for key in keys)
    return [word[1] for word in matches if word]


def is_wanted(job: str) -> bool:
    """True if Slurm still counts this job as running: it was ended to make room, and nobody cancelled it."""
    with suppress(RunError):
        return _shown(job, "JobState") == ["RUNNING"]
    return False


def end(job: str, is_active: Callable[[], bool], grace: float) -> None:
    """End a job whose worker was asked to stop through the run folder, by Slurm where it has not after `grace` seconds.

    Returns when no task is left. Raises RunError where Slurm does not answer or does not end it.
    """
    listed = _listing.find(job, fresh=True)
    deadline = time.monotonic() + (grace if listed is not None and listed.state == "RUNNING" else 0.0)
    while time.monotonic() < deadline and is_active():
        time.sleep(0.1)
    if is_active():
        with suppress(RunError):  # it ended in between
            _run("scancel", job)
    deadline = time.monotonic() + KILL_SECONDS
    while _listing.find(job, fresh=True) is not None:
        if time.monotonic() > deadline:
            raise RunError(f"Slurm has not ended job {job} within {KILL_SECONDS:.0f} s; look at it with squeue.")
        time.sleep(0.2)


def requeue(job: str) -> None:
    """Have Slurm start this job again, as it does by itself with one that it killed to make room."""
    _run("scontrol", "requeue", job)
