"""The contract of executors: one suite, run on each. A subclass gives the executor, and how its workers are found.

class TestLocal(ExecutorContract):
    def executor(self, store): return LocalExecutor(store)
"""

import os
import signal
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from tests.support.small_run import device_taken, run_to_end, spec_for, weights_of
from upvit_core.errors import RunError
from upvit_core.runs import Run, RunSpec, RunStore
from upvit_core.runs.executors import Executor
from upvit_core.runs.pid import ProcessIdentity

SECONDS = 300.0  # a starved machine takes its time to start Python


class ExecutorContract:
    """Tests that need nothing but the executor; runs are those of `small_run`, a second of training each."""

    executor_name = "local"

    def executor(self, store: RunStore) -> Executor:
        raise NotImplementedError

    def spec(self, home: Path, **settings: object) -> RunSpec:
        spec = spec_for(home, **{"checkpoint_minutes": 1e-6, **settings})
        return spec.model_copy(update={"executor": self.executor_name})

    def taken(self, store: RunStore) -> AbstractContextManager[object]:
        """Somebody else meanwhile holds all that this executor gives runs."""
        return device_taken(store)

    def are_waiting(self, store: RunStore, runs: list[Run]) -> bool:
        """True if the runs are shown as waiting, in the order in which they came."""
        return [store.state(run.id).position for run in runs] == [1, 2]

    def worker_of(self, store: RunStore, run: Run) -> int:
        """Pid of the process that does the run."""
        pid = store.state(run.id).pid
        assert pid is not None
        return pid

    def wait(self, store: RunStore, run: Run, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + SECONDS
        while not condition():
            assert time.monotonic() < deadline, (store.state(run.id), store.tail_log(run.id))
            time.sleep(0.05)

    def test_from_order_to_folder(self, home: Path, store: RunStore, tmp_path: Path) -> None:
        """Returns at once; the state is the truth all along; the result is that of a worker run by hand."""
        reference = RunStore(tmp_path / "reference")
        whole = reference.create(spec_for(home, checkpoint_minutes=1e-6))
        run_to_end(reference, whole)
        run = store.create(self.spec(home))
        self.executor(store).submit(run)
        assert store.state(run.id).is_active
        with pytest.raises(RunError, match=f"Run {run.id}"):
            self.executor(store).submit(run)
        self.wait(store, run, lambda: not store.state(run.id).is_active)
        assert store.state(run.id).state == "done", store.tail_log(run.id)
        assert weights_of(run) == weights_of(whole)
        self.wait(store, run, lambda: store.tail_log(run.id)[-1].endswith("done"))
        assert store.state(run.id).attempt == 1
        with pytest.raises(RunError, match="is done"):
            self.executor(store).submit(run)

    def test_killed_pause_resume_cancel(self, home: Path, store: RunStore) -> None:
        """A run of many steps is killed, goes on, is paused, goes on, is cancelled; steps are never lost."""
        run = store.create(self.spec(home, epochs=2000))
        self.executor(store).submit(run)
        self.wait(store, run, lambda: store.state(run.id).step >= 3)
        os.kill(self.worker_of(store, run), signal.SIGKILL)
        self.wait(store, run, lambda: store.state(run.id).state == "interrupted")
        assert "Resume" in store.state(run.id).error
        reached = store.state(run.id).step
        for stop, state in ((store.pause, "paused"), (store.cancel, "cancelled")):
            self.executor(store).submit(store.resume(run.id))
            self.wait(store, run, lambda reached=reached: store.state(run.id).step > reached)  # type: ignore[misc]
            worker = ProcessIdentity.of(self.worker_of(store, run))
            assert stop(run.id).state == state
            assert store.state(run.id).step >= reached
            reached = store.state(run.id).step
            self.wait(store, run, lambda worker=worker: worker is None or not worker.is_alive)  # type: ignore[misc]
        assert store.state(run.id).attempt == 3
        steps = [row["step"] for row in store.read_metrics(run.id)[0] if row["phase"] == "train"]
        assert steps == sorted(set(steps))

    @pytest.mark.slow
    def test_stop_and_go_on_ends_as_if_never_stopped(self, home: Path, store: RunStore) -> None:
        settings = {"epochs": 60, "drop_path": 0.1}
        whole = store.create(spec_for(home, **settings))
        run_to_end(store, whole)
        run = store.create(self.spec(home, **settings))
        for stop in (store.cancel, store.pause, None):
            self.executor(store).submit(run)
            with pytest.raises(RunError, match="is active"):
                store.remove(run.id)
            if stop is None:
                break
            reached = store.state(run.id).step
            self.wait(store, run, lambda reached=reached: store.state(run.id).step > reached + 3)  # type: ignore[misc]
            stop(run.id)
            with pytest.raises(RunError, match=r"can be cancelled|is paused"):
                stop(run.id)
            store.resume(run.id)
        self.wait(store, run, lambda: not store.state(run.id).is_active)
        assert store.state(run.id).state == "done", store.tail_log(run.id)
        assert weights_of(run) == weights_of(whole)
        rows = [[(row["phase"], row["step"]) for row in store.read_metrics(each.id)[0]] for each in (run, whole)]
        assert rows[0] == rows[1]

    def test_waiting_runs_are_queued_and_can_be_cancelled(self, home: Path, store: RunStore) -> None:
        with self.taken(store):
            runs = [store.create(self.spec(home)) for _ in range(2)]
            for run in runs:
                self.executor(store).submit(run)
            self.wait(store, runs[0], lambda: self.are_waiting(store, runs))
            assert [store.cancel(run.id).state for run in runs] == ["cancelled", "cancelled"]
        for run in runs:
            assert store.state(run.id).state == "cancelled"

    def test_what_cannot_be_done_fails_in_a_sentence(self, home: Path, store: RunStore) -> None:
        run = store.create(self.spec(home).model_copy(update={"data": "/nowhere"}))
        self.executor(store).submit(run)
        self.wait(store, run, lambda: not store.state(run.id).is_active)
        state = store.state(run.id)
        assert state.state == "failed"
        assert "/nowhere" in state.error
        assert any("Traceback" in line for line in store.tail_log(run.id, 200))
