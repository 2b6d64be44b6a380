"""The index against the folders: after every kind of change and damage the list is what reading each folder gives."""

import json
import random
import shutil
import sqlite3
from pathlib import Path

import pytest

from tests.support.at_once import at_once
from tests.support.small_run import any_spec
from upvit_core.runs import RunState, RunStore
from upvit_core.runs.folder import true_state
from upvit_core.runs.index import Index


def settle(store: RunStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Take files as settled however young they are, so that the index is really used, and as young for ever."""
    monkeypatch.setattr("upvit_core.runs.index.SETTLED_SECONDS", -1.0)
    monkeypatch.setattr("upvit_core.runs.folder.NEVER_STARTED_AFTER", float("inf"))


def truth(store: RunStore) -> dict[str, object]:
    """Every folder read by itself."""
    found = {}
    for folder in store.root.iterdir():
        if folder.is_dir() and not folder.name.startswith("."):
            found[folder.name] = (store.get(folder.name).spec.brief(), true_state(folder))
    return found


def listed(store: RunStore) -> dict[str, object]:
    return {s.id: (s.spec, s.state.model_copy(update={"position": None})) for s in store.list()}


def test_the_list_follows_the_folders_through_random_changes(store: RunStore, monkeypatch: pytest.MonkeyPatch) -> None:
    settle(store, monkeypatch)
    rng = random.Random(0)
    states = ("queued", "running", "paused", "done", "failed", "cancelled", "interrupted")
    for turn in range(150):
        runs = list(store.list())
        act = rng.random()
        if act < 0.4 or not runs:
            store.create(any_spec(name=f"r{turn}", owner=rng.choice("abc"), priority=rng.randint(-2, 2)))
        elif act < 0.7:
            run = store.get(rng.choice(runs).id)
            run.write_state(RunState(state=rng.choice(states), step=turn))  # type: ignore[arg-type]
        elif act < 0.8:
            store.remove(rng.choice(runs).id)
        elif act < 0.9:
            other = RunStore(store.root.parent / "elsewhere")
            moved = other.create(any_spec(name="copied"))
            shutil.move(moved.folder, store.root)
        elif act < 0.95:
            store.index.forget()
        else:
            content = bytearray(store.index.path.read_bytes())
            for _ in range(200):
                content[rng.randrange(len(content))] = rng.randrange(256)
            store.index.path.write_bytes(content)
        assert listed(store) == truth(store)


def test_only_what_changed_is_read_again(store: RunStore, monkeypatch: pytest.MonkeyPatch) -> None:
    settle(store, monkeypatch)
    runs = [store.create(any_spec()) for _ in range(20)]
    for run in runs:
        run.write_state(RunState(state="done"))
    store.list()
    read: list[str] = []
    again = RunStore(store.root)
    own = again.index.read

    def watched(run_id: str) -> object:
        read.append(run_id)
        return own(run_id)

    again.index.read = watched
    assert len(again.list()) == 20
    assert read == []
    runs[7].write_state(RunState(state="failed"))
    assert {s.id: s.state.state for s in again.list()}[runs[7].id] == "failed"
    assert read == [runs[7].id]


def test_a_young_file_is_not_relied_on(store: RunStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("upvit_core.runs.index.SETTLED_SECONDS", 1e9)
    store.create(any_spec())
    store.list()
    with sqlite3.connect(store.index.path) as connection:
        assert connection.execute("SELECT count(*) FROM runs").fetchone() == (0,)
    connection.close()


@pytest.mark.parametrize("damage", ["locked", "torn", "not a database", "older", "a folder", "read-only"])
def test_a_damaged_index_costs_time_and_nothing_else(
    store: RunStore, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    settle(store, monkeypatch)
    monkeypatch.setattr("upvit_core.runs.index.BUSY_SECONDS", 0.01)
    made = [store.create(any_spec(name=f"r{i}")).id for i in range(3)]
    store.list()
    connection = sqlite3.connect(store.index.path, isolation_level=None)
    if damage == "locked":
        connection.execute("PRAGMA locking_mode=EXCLUSIVE")
        connection.execute("BEGIN EXCLUSIVE")
        connection.execute("DELETE FROM runs")
    elif damage == "older":
        connection.execute("UPDATE about SET layout = 0")
    elif damage == "torn":
        connection.close()
        store.index.path.write_bytes(store.index.path.read_bytes()[:700])
    elif damage == "not a database":
        connection.close()
        store.index.forget()
        store.index.path.write_bytes(b"hello" * 1000)
    elif damage == "a folder":
        connection.close()
        store.index.forget()
        store.index.path.mkdir()
    else:
        connection.close()
        store.index.path.chmod(0o400)
    for _ in range(2):
        assert [s.id for s in store.list()] == made[::-1]
    made.append(store.create(any_spec(name="after")).id)
    assert [s.id for s in store.list()] == made[::-1]
    connection.close()


def test_an_index_of_another_boot_is_built_anew(store: RunStore, monkeypatch: pytest.MonkeyPatch) -> None:
    settle(store, monkeypatch)
    run = store.create(any_spec())
    store.list()
    with sqlite3.connect(store.index.path) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        connection.execute("UPDATE about SET boot = 'before'")
        connection.execute("UPDATE runs SET state = ?", (RunState(state="done").model_dump_json(),))
    connection.close()
    assert store.state(run.id).state == "queued"
    assert store.list()[0].state.state == "queued"


def test_many_readers_and_writers_at_once(store: RunStore, monkeypatch: pytest.MonkeyPatch) -> None:
    settle(store, monkeypatch)
    runs = [store.create(any_spec()) for _ in range(8)]
    wrong: list[object] = []

    def work(number: int) -> None:
        own = RunStore(store.root)
        for step in range(15):
            runs[number].write_state(RunState(state="done", step=step))
            seen = {s.id: s.state for s in own.list()}
            if len(seen) != 8 or seen[runs[number].id].step != step:
                wrong.append((number, step, seen))

    at_once(work, 8)
    assert not wrong


def test_a_summary_has_no_channels_and_get_has(store: RunStore) -> None:
    plan = {"version": 1, "residual": {"keep": [0]}, "blocks": [], "basis": "channels", "requested": {"residual": 0.5}}
    run = store.create(any_spec(student=None, plan=plan))
    (summary,) = store.list()
    assert summary.spec is not None
    assert summary.spec.plan == {"version": 1, "basis": "channels", "requested": {"residual": 0.5}}
    assert store.get(run.id).spec.plan == plan
    assert "keep" not in json.dumps([summary.spec.model_dump()])


def test_the_name_is_a_plain_file_of_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: "../../evil host")
    path = Index(tmp_path, lambda run_id: None).path  # type: ignore[arg-type, return-value]
    assert path.parent == tmp_path
