"""TensorBoard's files hold what metrics.jsonl holds, once, whatever happened to the run."""

import os
import sys
from pathlib import Path

import pytest

from tests.support.small_run import fork_worker, run_to_end, spec_for, wait_until, weights_of
from upvit_core.errors import RunError
from upvit_core.runs import RunStore
from upvit_core.runs.tensorboard import FOLDER, EventLog

loader = pytest.importorskip("tensorboard.backend.event_processing.event_file_loader")


def points(folder: Path) -> list[tuple[str, int, float]]:
    """All points of all files, duplicates kept."""
    return sorted(
        (value.tag, event.step, value.tensor.float_val[0])
        for path in folder.glob("events.*")
        for event in loader.EventFileLoader(str(path)).Load()
        for value in event.summary.value
    )


def expected(store: RunStore, run_id: str) -> list[tuple[str, int, float]]:
    return sorted(
        (f"{row['phase']}/{key}", row["step"], pytest.approx(value, rel=1e-6))  # float32
        for row in store.read_metrics(run_id)[0]
        for key, value in row.items()
        if key != "step" and isinstance(value, int | float)
    )


def test_a_killed_run_has_every_point_once(home: Path, tmp_path: Path) -> None:
    store = RunStore(tmp_path / "runs")
    settings = {"checkpoint_minutes": 1e-6, "epochs": 4}
    plain = store.create(spec_for(home, **settings))
    run_to_end(store, plain)
    run = store.create(spec_for(home, tensorboard=True, **settings))
    pid = fork_worker(run)
    wait_until(lambda: store.state(run.id).step >= 7)
    os.kill(pid, 9)
    os.waitpid(pid, 0)
    newest = max((run.folder / FOLDER).glob("events.*"), key=lambda path: path.stat().st_mtime)
    newest.write_bytes(newest.read_bytes()[:-20])  # as a machine that loses power leaves it
    store.resume(run.id)
    run_to_end(store, run)
    found = points(run.folder / FOLDER)
    assert len(found) == len(set(found)) > 100
    assert [(tag, step) for tag, step, _ in found] == [(tag, step) for tag, step, _ in expected(store, run.id)]
    assert found == expected(store, run.id)
    assert weights_of(run) == weights_of(plain)


def test_without_the_package_there_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(RunError, match="pip install tensorboard"):
        EventLog(tmp_path, [])
