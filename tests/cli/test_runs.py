"""Verbs for runs: each takes an id or a folder; `resume` follows the run to its end, as `distill` does."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.support.errors import refused
from tests.support.small_run import any_spec, small_home, spec_for
from tests.support.verbs import call
from upvit_core.cli import app
from upvit_core.errors import RunError
from upvit_core.runs import Run, RunState, RunStore

SPEC = any_spec()


def named(run: Run, by: str) -> list[object]:
    return [run.id, "--out", run.folder.parent] if by == "id" else [run.folder]


@pytest.mark.parametrize("by", ["id", "folder"])
def test_a_run_is_named_by_its_id_or_its_folder(store: RunStore, by: str) -> None:
    run = store.create(SPEC)
    assert call("prioritise", *named(run, by), 2) == {"run": run.id, "priority": 2, "position": 1}
    assert call("pause", *named(run, by)) == {"run": run.id, "state": "paused"}
    run.write_state(RunState(state="queued"))
    assert call("cancel", *named(run, by)) == {"run": run.id, "state": "cancelled"}


def test_a_relative_folder_is_enough(store: RunStore, monkeypatch: pytest.MonkeyPatch) -> None:
    run = store.create(SPEC)
    monkeypatch.chdir(store.root)
    assert call("pause", f"./{run.id}")["state"] == "paused"
    monkeypatch.chdir(run.folder)
    with pytest.raises(RunError, match="is paused"):
        call("pause", ".")


@pytest.mark.parametrize("name", ["no-such-run", "/nowhere/at-all"])
def test_a_run_that_is_not_there_is_one_sentence(store: RunStore, name: str) -> None:
    with refused(RunError, name):
        call("cancel", name, "--out", store.root)


@pytest.mark.parametrize("by", ["id", "folder"])
def test_resume_detached_returns_at_once(store: RunStore, by: str, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[str] = []

    class Starts:
        def submit(self, run: Run) -> None:
            started.append(run.id)

    monkeypatch.setattr("upvit_core.runs.executors.executor_for", lambda store, spec: Starts())
    run = store.create(SPEC)
    run.write_state(RunState(state="interrupted"))
    assert call("resume", *named(run, by), "--detach") == {"run": str(run.folder), "state": "queued"}
    assert started == [run.id]


def test_resume_follows_to_the_end(tmp_path: Path, store: RunStore) -> None:
    run = store.create(spec_for(small_home(tmp_path), epochs=1))
    run.write_state(RunState(state="interrupted"))
    result = CliRunner().invoke(app, ["resume", str(run.folder), "--json"], catch_exceptions=False)
    done = json.loads(result.stdout)
    final = store.read_metrics(run.id)[0][-1]
    assert done == {"run": str(run.folder), "top1": final["top1"], "state": "done"}
    assert "final" in result.stderr
