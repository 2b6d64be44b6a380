"""Background jobs: sharing, restarting, threads that use them at once, and the end of the server."""

import subprocess
import sys
from collections.abc import Callable

import pytest

from pages.services import imports, jobs
from tests.support import ROOT
from tests.support.at_once import at_once
from upvit_core.errors import Cancelled, UPViTError
from upvit_core.importance.criterion import Progress

SERVER = """
import threading, time, torch
from pages.services import imports, jobs

jobs.FIRST_PAINT_SECONDS = 0
imports.import_heavy = lambda step: None
torch.set_num_threads(1)
computing = threading.Event()

def work(report):
    a = torch.randn(300, 300)
    while True:
        for _ in range(20):
            a = (a @ a).tanh()
        computing.set()
        if {listens}:
            report(0.5)

workers = jobs.Workers()
jobs_started = [workers.start(str(long), work, "work", long=long) for long in (True, False)]
computing.wait(60)
time.sleep(0.2)
print("stopping", flush=True)
"""


@pytest.fixture
def workers(monkeypatch: pytest.MonkeyPatch) -> jobs.Workers:
    """Jobs that run when they are started, in the thread of the test."""
    monkeypatch.setattr(imports, "import_heavy", lambda step: None)
    return jobs.Workers(submit=jobs.Job.run)


def fail(report: jobs.Report) -> int:
    raise UPViTError("There are no weights.")


def cancel(report: jobs.Report) -> int:
    raise Cancelled("Cancelled.")


@pytest.mark.parametrize(("total", "words"), [(1200, "1,000 of 1,200 images"), (2e6, "1,000 of 2,000,000 images")])
def test_a_job_tells_how_far_it_is(workers: jobs.Workers, total: float, words: str) -> None:
    job = workers.start("key", lambda report: report(Progress(1000, total, "images", "Scoring", 9.0)), "Scoring")
    assert (job.detail, job.seconds_left) == (words, 9.0)
    assert workers.start("many", lambda report: report(Progress(2e6, 3e6, "steps", "")), "Many").detail == ""


def test_finished_jobs_are_shared_and_again_starts_anew(workers: jobs.Workers) -> None:
    first = workers.start("key", lambda report: 1, "One")
    assert (first.state, first.result) == ("done", 1)
    assert workers.start("key", lambda report: 2, "Two") is first
    anew = workers.start("key", lambda report: 2, "Two", again=True)
    assert (anew.state, anew.result) == ("done", 2)
    assert workers.find("key") is anew


@pytest.mark.parametrize(
    ("work", "state", "error"), [(fail, "failed", "There are no weights."), (cancel, "cancelled", "")]
)
@pytest.mark.parametrize("again", [False, True])
def test_failed_and_cancelled_jobs_restart(
    workers: jobs.Workers, work: Callable[[jobs.Report], int], state: str, error: str, again: bool
) -> None:
    first = workers.start("key", work, "Work")
    assert (first.state, first.error, first.result) == (state, error, None)
    assert workers.start("key", lambda report: 2, "Work", again=again).result == 2


@pytest.mark.parametrize("again", [False, True])
def test_an_active_job_is_shared(again: bool) -> None:
    workers = jobs.Workers(submit=lambda job: None)
    job = workers.start("key", fail, "Work")
    assert workers.start("key", fail, "Work", again=again) is job


def test_only_an_explicit_start_repeats_a_failed_job(workers: jobs.Workers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "workers", lambda: workers)
    tries: list[int] = []

    def work(report: jobs.Report) -> int:
        tries.append(1)
        if len(tries) == 1:
            raise UPViTError("Not yet.")
        return 7

    job = jobs.ensure("key", work, "Work")
    assert jobs.ensure("key", work, "Work") is job
    assert (job.error, len(tries)) == ("Not yet.", 1)
    jobs.restart(job)
    assert jobs.ensure("key", work, "Work").result == 7


def test_threads_may_use_the_jobs_at_once() -> None:
    """More than are remembered, half of them unfinished, so that room is made by a walk over all of them."""
    workers = jobs.Workers(submit=lambda job: None)
    for number in range(jobs.MOST_REMEMBERED):
        workers.start(f"active {number}", fail, "Work")

    def use(name: int) -> None:
        for number in range(1500):
            key = f"{name} {number}"
            workers.submit_done(key, "Work", number)
            workers.start(f"{key} new", fail, "Work")
            workers.all()
            workers.discard(f"{key} new")
            workers.discard(key)

    at_once(use, 4)
    assert len(workers.all()) == jobs.MOST_REMEMBERED


@pytest.mark.parametrize("listens", [True, False])
def test_no_abort_while_torch_computes(listens: bool) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", SERVER.format(listens=listens)], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert ended.stdout == "stopping\n"
    assert "terminate" not in ended.stderr
    assert ended.returncode == 0
