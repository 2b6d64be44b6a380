"""The promises of every executor, tested on each: `pytest -m slow tests/runs/test_stop_and_go.py`."""

import time
from pathlib import Path

import pytest

from tests.support.small_run import run_to_end, spec_for, wait_until, weights_of
from upvit_core.errors import RunError
from upvit_core.runs import Run, RunSpec, RunState, RunStore
from upvit_core.runs.executors import executor_for
from upvit_core.runs.spec import SlurmSettings

SECONDS = 240.0
pytestmark = pytest.mark.slow


@pytest.fixture(params=["local", "slurm"])
def changes(request: pytest.FixtureRequest) -> dict[str, object]:
    """The part of a spec that asks for the executor; skips where there is none."""
    if request.param == "slurm":
        request.getfixturevalue("cluster")
        return {"executor": "slurm", "slurm": SlurmSettings(minutes=10)}
    return {"executor": "local"}


def submit(store: RunStore, spec: RunSpec) -> Run:
    run = store.create(spec)
    executor_for(store, spec).submit(run)
    return run


def resume(store: RunStore, run: Run) -> None:
    again = store.resume(run.id)
    executor_for(store, again.spec).submit(again)


def wait_for_state(store: RunStore, run: Run, *wanted: str) -> RunState:
    deadline = time.monotonic() + SECONDS
    while (state := store.state(run.id)).state not in wanted:
        assert time.monotonic() < deadline, (state, store.tail_log(run.id))
        time.sleep(0.1)
    return state


def test_stop_and_go_on_ends_as_if_never_stopped(changes: dict[str, object], home: Path, store: RunStore) -> None:
    settings = {"epochs": 60, "drop_path": 0.1}
    whole = store.create(spec_for(home, **settings))
    run_to_end(store, whole)
    run = submit(store, spec_for(home, **settings).model_copy(update=changes))
    assert store.state(run.id).is_active
    with pytest.raises(RunError, match=r"already has a worker|is queued|is running"):
        resume(store, run)
    with pytest.raises(RunError, match="is active"):
        store.remove(run.id)
    wait_until(lambda: store.state(run.id).step > 3, SECONDS)
    assert store.state(run.id).state == "running"

    assert store.cancel(run.id).state == "cancelled"
    assert store.state(run.id).state == "cancelled"
    cancelled = store.state(run.id).step
    with pytest.raises(RunError, match="cannot be cancelled"):
        store.cancel(run.id)

    resume(store, run)
    wait_until(lambda: store.state(run.id).step > cancelled + 3, SECONDS)
    assert store.pause(run.id).state == "paused"

    resume(store, run)
    done = wait_for_state(store, run, "done", "failed", "interrupted")
    assert done.state == "done", (done.error, store.tail_log(run.id))
    assert done.attempt == 3
    assert weights_of(run) == weights_of(whole)
    with pytest.raises(RunError, match="is done"):
        executor_for(store, run.spec).submit(run)
    steps = [(row["phase"], row["step"]) for row in store.read_metrics(run.id)[0]]
    assert steps == [(row["phase"], row["step"]) for row in store.read_metrics(whole.id)[0]]
    store.remove(run.id)
    assert [summary.id for summary in store.list()] == [whole.id]


def test_a_run_that_cannot_be_done_fails_with_a_sentence(
    changes: dict[str, object], home: Path, store: RunStore
) -> None:
    run = submit(store, spec_for(home).model_copy(update={**changes, "teacher": "/nowhere"}))
    state = wait_for_state(store, run, "failed", "interrupted", "done")
    assert state.state == "failed"
    assert "/nowhere" in state.error
    assert any("Traceback" in line for line in store.tail_log(run.id, 200))
