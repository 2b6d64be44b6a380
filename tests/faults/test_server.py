"""A real server starts a run and is ended, its page closed, its worker killed: the page tells the truth within 10 s."""

import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from tests.support.server import server
from tests.support.session import Session
from tests.support.small_run import small_home, spec_for
from upvit_core.runs import RunState, RunStore
from upvit_core.runs.pid import ProcessIdentity

TRUTH_SECONDS = 10.0


def seen(session: Session, words: str, seconds: float) -> float:
    """Seconds until the page shows these words, asked as often as the browser's timer does."""
    began = time.monotonic()
    while True:
        session.rerun(next((name for name, interval in session.fragments.items() if interval >= 1), ""))
        if any(words in text for text in session.texts):
            return time.monotonic() - began
        assert time.monotonic() - began < seconds, (words, session.texts[-5:])
        time.sleep(1.0)


def until(condition: Callable[[], bool], seconds: float = 240.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("ending", ["SIGTERM", "SIGINT", "SIGKILL", "page closed"])
def test_a_run_of_the_page_goes_on_and_the_next_page_says_so(tmp_path: Path, ending: str) -> None:
    home = small_home(tmp_path)
    store = RunStore(tmp_path / "runs")
    run = store.create(spec_for(home, epochs=100_000, checkpoint_minutes=1e-6))
    run.write_state(RunState(state="interrupted", epochs=100_000))
    worker = None
    try:
        with suppress(ProcessLookupError), server(tmp_path) as (address, pid):
            page = Session(address, "runs")
            page.rerun()
            page.press("Resume")
            until(lambda: store.state(run.id).step > 2)
            worker = ProcessIdentity.of(store.state(run.id).pid or 0)
            assert worker is not None
            assert worker.pid in [child.pid for child in psutil.Process(pid).children(recursive=True)]
            if ending == "page closed":
                page.close()
            else:
                os.killpg(pid, signal.Signals[ending]) if os.getpgid(pid) == pid else os.kill(
                    pid, signal.Signals[ending]
                )
                with suppress(psutil.TimeoutExpired, psutil.NoSuchProcess):
                    psutil.Process(pid).wait(60)
        reached = store.state(run.id).step
        until(lambda: store.state(run.id).step > reached)
        assert worker.is_alive, "the run ended with the server"
        with server(tmp_path) as (address, pid):
            page = Session(address, "runs")
            page.rerun()
            assert seen(page, "running", TRUTH_SECONDS) < TRUTH_SECONDS
            os.kill(worker.pid, signal.SIGKILL)
            assert seen(page, "interrupted", TRUTH_SECONDS) < TRUTH_SECONDS
            page.rerun()
            page.press("Resume")
            until(lambda: store.state(run.id).state == "running")
            worker = ProcessIdentity.of(store.state(run.id).pid or 0)
            store.cancel(run.id)
            assert seen(page, "cancelled", TRUTH_SECONDS) < TRUTH_SECONDS
            assert not page.errors
        until(lambda: worker is None or not worker.is_alive)
        with run.lock(10.0) as held:
            assert held, "a process is left"
    finally:
        if worker is not None:
            worker.signal(signal.SIGKILL)
