"""Runs on a real Slurm, started on loopback: submit, watch, cancel, pre-empt and requeue, two tasks."""

import re
import subprocess
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from tests.support.executor_contract import ExecutorContract
from tests.support.small_run import run_to_end, spec_for, wait_until, weights_of
from upvit_core.errors import RunError
from upvit_core.runs import Run, RunSpec, RunState, RunStore
from upvit_core.runs.checkpoints import list_checkpoints
from upvit_core.runs.executors import executor_for
from upvit_core.runs.executors.slurm import SlurmExecutor
from upvit_core.runs.spec import SlurmSettings

SECONDS = 240.0


def order(home: Path, *, processes: int = 1, slurm: dict[str, object] | None = None, **settings: object) -> RunSpec:
    asked = SlurmSettings(**{"minutes": 10, "partition": "idle", **(slurm or {})})
    changes = {"executor": "slurm", "slurm": asked, "processes": processes}
    return spec_for(home, **settings).model_copy(update=changes)


def submit(store: RunStore, spec: RunSpec) -> Run:
    run = store.create(spec)
    executor_for(store, spec).submit(run)
    return run


def command(*words: str) -> str:
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout


@contextmanager
def nodes_taken(cluster: dict[str, str]) -> Iterator[None]:
    """An urgent job has both nodes meanwhile."""
    said = command("sbatch", "--partition=urgent", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap=sleep 600")
    job = re.findall(r"\d+", said)[-1]
    wait_until(lambda: command("squeue", "--noheader", f"--jobs={job}", "--format=%T").strip() == "RUNNING", 60)
    try:
        yield
    finally:
        command("scancel", job)


def wait_for_state(store: RunStore, run: Run, *wanted: str) -> RunState:
    deadline = time.monotonic() + SECONDS
    while (state := store.state(run.id)).state not in wanted:
        assert time.monotonic() < deadline, (state, store.tail_log(run.id))
        time.sleep(0.2)
    return state


def saved_past(run: Run, step: int) -> bool:
    return any(int(path.stem[5:]) > step for path in list_checkpoints(run.checkpoints))


def local_weights(home: Path, store: RunStore, **settings: object) -> bytes:
    run = store.create(spec_for(home, **settings))
    run_to_end(store, run)
    return weights_of(run)


def test_what_slurm_refuses_is_a_sentence(cluster: dict[str, str], home: Path, store: RunStore) -> None:
    with pytest.raises(RunError, match=r"Slurm refused the run .*partition"):
        submit(store, order(home, slurm={"partition": "nowhere"}))
    (summary,) = store.list()
    assert summary.state.state == "failed"
    assert "partition" in summary.state.error


def test_a_waiting_job_says_what_it_waits_for_and_can_be_cancelled(
    cluster: dict[str, str], home: Path, store: RunStore
) -> None:
    with nodes_taken(cluster):
        run = submit(store, order(home))
        state = store.state(run.id)
        assert state.state == "queued"
        assert state.job.isdecimal()
        wait_until(lambda: re.search(rf"Slurm job {state.job} waits \(\w+", store.state(run.id).place), 30)
        assert store.state(run.id).position is None
        with pytest.raises(RunError, match="is queued"):
            store.resume(run.id)
        assert store.cancel(run.id).state == "cancelled"
        assert command("squeue", "--noheader", "--partition=idle") == ""
    assert store.state(run.id).state == "cancelled"


@pytest.mark.slow
def test_a_job_does_what_a_local_run_does(cluster: dict[str, str], home: Path, store: RunStore) -> None:
    expected = local_weights(home, store, epochs=2)
    run = submit(store, order(home, epochs=2))
    running = wait_for_state(store, run, "running", "done")
    if running.state == "running":
        assert re.match(rf"Slurm job {running.job} on n\d, running", running.place)
    done = wait_for_state(store, run, "done", "failed", "interrupted")
    assert done.state == "done", (done.error, store.tail_log(run.id))
    assert weights_of(run) == expected
    assert done.job == running.job
    assert any("training" in line for line in store.tail_log(run.id))


@pytest.mark.slow
@pytest.mark.parametrize("partition", ["idle", "patient"])
def test_a_preempted_job_starts_again_and_loses_nothing(
    cluster: dict[str, str], home: Path, store: RunStore, partition: str
) -> None:
    """idle: killed at once; patient: SIGTERM first, a minute to save."""
    settings = {"epochs": 60, "drop_path": 0.1, "checkpoint_minutes": 1e-6 if partition == "idle" else 5.0}
    expected = local_weights(home, store, **settings)
    run = submit(store, order(home, slurm={"partition": partition}, **settings))
    job = store.state(run.id).job
    wait_until(lambda: store.state(run.id).step > 5 or saved_past(run, 5), SECONDS)
    with nodes_taken(cluster):
        wait_until(lambda: store.state(run.id).state == "queued", 60)
        wait_until(lambda: "waits" in store.state(run.id).place, 60)  # once Slurm has seen it end
        saved = max(int(path.stem[5:]) for path in list_checkpoints(run.checkpoints))
        assert 5 <= saved < 300
    done = wait_for_state(store, run, "done", "failed", "interrupted")
    assert done.state == "done", (done.error, store.tail_log(run.id))
    assert (done.job, done.attempt) == (job, 2)
    assert f"going on from step {saved}" in run.log.read_text()
    assert weights_of(run) == expected


@pytest.mark.slow
def test_a_job_that_runs_out_of_time_is_queued_again(cluster: dict[str, str], home: Path, store: RunStore) -> None:
    """Slurm's warning before the limit is SIGUSR2 to every task; here it comes early."""
    expected = local_weights(home, store, epochs=60)
    run = submit(store, order(home, epochs=60))
    wait_until(lambda: store.state(run.id).step > 5, SECONDS)
    command("scancel", "--signal=USR2", store.state(run.id).job)
    wait_until(lambda: "going on from step" in run.log.read_text(), SECONDS)
    done = wait_for_state(store, run, "done", "failed", "interrupted")
    assert done.state == "done", (done.error, store.tail_log(run.id))
    assert weights_of(run) == expected


@pytest.mark.slow
def test_a_job_ended_by_hand_is_interrupted_and_resume_goes_on(
    cluster: dict[str, str], home: Path, store: RunStore
) -> None:
    run = submit(store, order(home, epochs=400))
    wait_until(lambda: store.state(run.id).step > 5, SECONDS)
    first = store.state(run.id).job
    command("scancel", first)
    state = wait_for_state(store, run, "interrupted")
    assert f"Slurm job {first} is over (CANCELLED" in state.error
    executor_for(store, run.spec).submit(store.resume(run.id))
    wait_until(lambda: store.state(run.id).step > state.step, SECONDS)
    assert store.state(run.id).job != first
    assert store.cancel(run.id).state == "cancelled"
    assert store.state(run.id).state == "cancelled"


@pytest.mark.slow
def test_two_tasks_on_two_nodes_follow_one_process(cluster: dict[str, str], home: Path, store: RunStore) -> None:
    settings = {"epochs": 4, "drop_path": 0.0}
    one = store.create(spec_for(home, **settings))
    run_to_end(store, one)
    two = submit(store, order(home, slurm={"nodes": 2}, **settings))
    done = wait_for_state(store, two, "done", "failed", "interrupted")
    assert done.state == "done", (done.error, store.tail_log(two.id))
    expected, found = (
        [[row[key] for key in ("step", "loss", "ce", "kl")] for row in store.read_metrics(run.id)[0] if "kl" in row]
        for run in (one, two)
    )
    assert len(expected) == len(found) == 20
    for a, b in zip(expected, found, strict=True):
        assert a == pytest.approx(b, rel=1e-3, abs=1e-4)


def test_a_folder_of_another_machines_job_opens_without_slurm(
    home: Path, store: RunStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = store.create(order(home))
    run.write_state(RunState(state="running", job="12", step=3, total_steps=10))
    monkeypatch.setenv("PATH", "/nowhere")
    state = store.state(run.id)
    assert state.state == "interrupted"
    assert "Slurm job 12 cannot be asked after from this machine" in state.error
    assert store.list()[0].state.state == "interrupted"


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.usefixtures("cluster")
class TestContract(ExecutorContract):
    """The executors' contract, on a real Slurm."""

    executor_name = "slurm"

    def executor(self, store: RunStore) -> SlurmExecutor:
        return SlurmExecutor(store)

    def spec(self, home: Path, **settings: object) -> RunSpec:
        asked = SlurmSettings(minutes=10, partition="idle")
        return super().spec(home, **settings).model_copy(update={"slurm": asked})

    def taken(self, store: RunStore) -> AbstractContextManager[object]:
        return nodes_taken({})

    def are_waiting(self, store: RunStore, runs: list[Run]) -> bool:
        """Slurm orders them by itself, and says what they wait for."""
        states = [store.state(run.id) for run in runs]
        return all(state.state == "queued" and state.job and state.place for state in states)
