import json
import os
import random
import subprocess
import time
from pathlib import Path

import pytest

from tests.support.at_once import at_once
from tests.support.made_runs import this_process
from tests.support.small_run import any_spec
from upvit_core.errors import RunError
from upvit_core.runs import RunSpec, RunState, RunStore
from upvit_core.runs.executors import executor_for
from upvit_core.runs.pid import ProcessIdentity
from upvit_core.runs.spec import LATEST
from upvit_core.runs.store import Run


def set_state(run: Run, **values: object) -> None:
    run.write_state(RunState(**values))


def test_a_run_is_written_and_found_again(store: RunStore) -> None:
    run = store.create(any_spec(group="sweep", epochs=7))
    again = RunStore(store.root).get(run.id)
    assert again == run
    assert again.spec.created > 0
    assert store.state(run.id).state == "queued"
    assert [s.id for s in store.list()] == [run.id]
    assert sorted(os.listdir(run.folder)) == ["checkpoints", "spec.json", "state.json"]
    assert not [name for name in os.listdir(store.root) if name.startswith(".new")]


def test_order_is_that_of_creation_even_when_the_clock_goes_back(
    store: RunStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([10**18, 10**18 - 10**15, 10**18 + 5, 1])
    monkeypatch.setattr("upvit_core.runs.store.time.time_ns", lambda: next(clock))
    made = [store.create(any_spec(name=f"r{i}")).id for i in range(4)]
    assert [s.id for s in store.list()] == made[::-1]
    created = [store.get(run_id).spec.created for run_id in made]
    assert created == sorted(set(created))


def test_runs_created_at_once_are_all_there(store: RunStore) -> None:
    at_once(lambda number: store.create(any_spec()), 12)
    listed = store.list()
    assert len({s.id for s in listed}) == 12
    assert len({s.spec.created for s in listed if s.spec}) == 12
    assert sorted(s.state.position or 0 for s in listed) == list(range(1, 13))


@pytest.mark.parametrize(
    "bad",
    ["", ".", "..", "../x", "a/b", "/etc", "a\\b", "A", "-a", "a-", "a\n", "a" * 81, "a\x00b", ".leases", "é", " a"],
)
def test_ids_that_are_no_ids_are_refused(store: RunStore, bad: str) -> None:
    store.create(any_spec())
    for ask in (store.get, store.state, store.tail_log, store.read_metrics, store.cancel, store.resume, store.remove):
        with pytest.raises(RunError):
            ask(bad)


def test_a_link_out_of_the_root_is_not_followed(store: RunStore, tmp_path: Path) -> None:
    run = store.create(any_spec())
    elsewhere = tmp_path / "elsewhere"
    run.folder.rename(elsewhere)
    (store.root / "linked").symlink_to(elsewhere)
    assert store.list() == []
    (tmp_path / "a-model").mkdir()
    with pytest.raises(RunError, match="no run's folder"):
        RunStore(tmp_path).get("a-model")
    with pytest.raises(RunError, match="no run linked"):
        store.get("linked")


def test_a_broken_folder_does_not_hide_the_others(store: RunStore) -> None:
    good = store.create(any_spec(name="good"))
    broken = {name: store.create(any_spec(name=name)) for name in ("torn", "newer", "gone", "deep", "odd-state")}
    (broken["torn"].folder / "spec.json").write_text('{"name": "to')
    newer = json.loads((broken["newer"].folder / "spec.json").read_text()) | {"version": 2}
    (broken["newer"].folder / "spec.json").write_text(json.dumps(newer))
    (broken["gone"].folder / "spec.json").unlink()
    (broken["deep"].folder / "spec.json").write_text("[" * 200_000)
    (broken["odd-state"].folder / "state.json").write_text('{"state": "asleep"}')
    (store.root / "a-file").write_text("")
    listed = {s.name: s for s in store.list()}
    assert len(listed) == 6
    assert listed["good"].problem == ""
    for name in ("torn", "newer", "gone", "deep"):
        (summary,) = [s for s in listed.values() if s.id == broken[name].id]
        assert summary.spec is None
        assert broken[name].id in summary.problem
    assert listed["odd-state"].state.state == "interrupted"
    assert store.get(good.id).spec.name == "good"


@pytest.mark.parametrize("version", [0, 2, "first"])
def test_a_spec_of_another_version_is_refused_with_a_sentence_and_listed(store: RunStore, version: object) -> None:
    run, other = store.create(any_spec()), store.create(any_spec())
    record = json.loads((run.folder / "spec.json").read_text())
    (run.folder / "spec.json").write_text(json.dumps({**record, "version": version}))
    with pytest.raises(RunError, match=r"written by another version of this program.*start it again here\.$"):
        store.get(run.id)
    listed = {summary.id: summary for summary in store.list()}
    assert listed[other.id].problem == ""
    assert "another version" in listed[run.id].problem


def test_random_garbage_in_a_spec_is_one_sentence(store: RunStore) -> None:
    run = store.create(any_spec())
    content = (run.folder / "spec.json").read_bytes()
    rng = random.Random(0)
    for _ in range(500):
        garbage = bytearray(content)
        for _ in range(rng.randint(1, 8)):
            place = rng.randrange(len(garbage))
            if rng.random() < 0.5:
                garbage[place] = rng.randrange(256)
            else:
                del garbage[place : place + rng.randint(1, 40)]
        (run.folder / "spec.json").write_bytes(garbage)
        (summary,) = store.list()
        assert summary.spec is not None or run.id in summary.problem


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"student": None}, "either student"),
        ({"plan": {}}, "either student"),
        ({"epochs": 0}, "epochs"),
        ({"epochs": 10**9}, "epochs"),
        ({"device": "cuda:0; rm"}, "device"),
        ({"name": "x" * 201}, "name"),
        ({"settings": {"lr": -1}}, "settings.lr"),
        ({"surprise": 1}, "surprise"),
    ],
)
def test_illegal_orders_are_refused_by_name(values: dict[str, object], message: str) -> None:
    text = json.dumps(json.loads(any_spec().model_dump_json()) | values)
    with pytest.raises(RunError, match=message):
        RunSpec.from_json(text)


def test_an_active_run_without_its_process_is_interrupted(store: RunStore) -> None:
    run = store.create(any_spec())
    set_state(run, state="running", **this_process())
    assert store.state(run.id).state == "running"
    set_state(run, state="running", **(this_process() | {"started": 1}))
    assert store.state(run.id).state == "interrupted"
    assert "Resume" in store.state(run.id).error
    set_state(run, state="running", **(this_process() | {"boot": "before the restart"}))
    assert store.state(run.id).state == "interrupted"
    set_state(run, state="done", **(this_process() | {"started": 1}))
    assert store.state(run.id).state == "done"


def test_a_run_of_another_machine_lives_by_its_heartbeat(store: RunStore, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[object] = []
    monkeypatch.setattr("upvit_core.runs.store.KILL_SECONDS", 0.01)
    monkeypatch.setattr(ProcessIdentity, "signal", lambda *values: sent.append(values))
    run = store.create(any_spec())
    # The second has the pid, start and boot of a process here, as a copied run of a container's pid 1 may.
    for worker in (this_process() | {"boot": "another", "host": "node7"}, this_process() | {"host": "node7"}):
        set_state(run, state="running", **worker)
        with run.lock():
            os.utime(run.folder / "lock")
            state = store.state(run.id)
            assert state.state == "running"
            assert state.place.startswith("on node7, last heard of at 20") == (worker["boot"] == "another")
            with pytest.raises(RunError, match="is running"):
                store.resume(run.id)
            with pytest.raises(RunError, match=r"has not stopped yet; wait, or end its process .* on node7 by hand"):
                store.cancel(run.id, grace=0.01)
            assert not sent, "a signal reached a process of this machine"
        os.utime(run.folder / "lock", (1e9, 1e9))
        state = store.state(run.id)
        assert (state.state, state.error[:45]) == ("interrupted", "It ran on node7, last heard of at 2001-09-09 ")
    store.resume(run.id)


def test_no_time_of_another_run_bends_the_next(store: RunStore, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([4 * 10**18, time.time_ns(), time.time_ns(), time.time_ns()])
    monkeypatch.setattr("upvit_core.runs.store.time.time_ns", lambda: next(clock))
    made = [store.create(any_spec()) for _ in range(2)]
    for created in (10**19, 2**200):
        path = made[0].folder / "spec.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"created": created}))
        assert store.get(made[0].id).spec.created == LATEST
        made.append(store.create(any_spec()))
    year = time.strftime("%Y", time.gmtime())
    assert [run.id[:4] for run in made] == ["2096", year, year, year]
    assert [s.id for s in store.list()[1:]] == [run.id for run in reversed(made[1:])]


def test_a_read_only_folder_is_told_in_a_sentence(tmp_path: Path) -> None:
    root = tmp_path / "runs"
    root.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(root)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a read-only tmpfs needs root")
    try:
        store = RunStore(root)
        stopped, waiting = store.create(any_spec()), store.create(any_spec())
        set_state(stopped, state="paused")
        subprocess.run(["mount", "-o", "remount,ro", str(root)], check=True)
        for verb in (
            lambda: store.create(any_spec()),
            lambda: executor_for(store, waiting.spec).submit(waiting),
            lambda: store.resume(stopped.id),
            lambda: store.cancel(waiting.id),
            lambda: store.pause(waiting.id),
            lambda: store.remove(stopped.id),
            lambda: store.prioritise(waiting.id, 1),
        ):
            with pytest.raises(RunError, match=r"cannot be changed \(Read-only file system\); make room"):
                verb()
        assert {s.state.state for s in store.list()} == {"paused", "queued"}
    finally:
        subprocess.run(["umount", str(root)], check=True)


def test_a_run_that_nobody_started_says_so(store: RunStore) -> None:
    run = store.create(any_spec())
    assert store.state(run.id).state == "queued"
    os.utime(run.folder / "state.json", (1e9, 1e9))
    assert store.state(run.id).state == "interrupted"
    assert "never started" in store.state(run.id).error


def test_queues_are_by_device_and_first_come_first(store: RunStore) -> None:
    runs = [store.create(any_spec(device=d)) for d in ("cpu", "cuda:0", "cpu", "cuda:1", "cuda", "cpu")]
    positions = {s.id: s.state.position for s in store.list()}
    assert [positions[run.id] for run in runs] == [1, 1, 2, 1, 2, 3]
    assert store.next_in_queue("cpu") is None  # none has a worker yet
    for run in runs[2:]:
        set_state(run, state="queued", **this_process())
    assert store.next_in_queue("cpu") == runs[2].id
    assert store.next_in_queue("cuda:0") == runs[4].id
    set_state(runs[2], state="running", **this_process())
    assert store.next_in_queue("cpu") == runs[5].id
    assert store.state(runs[5].id).position == 2


def test_cancelling_a_run_without_a_worker(store: RunStore) -> None:
    run = store.create(any_spec())
    assert store.cancel(run.id).state == "cancelled"
    with pytest.raises(RunError, match="is cancelled; only queued and running runs can be cancelled"):
        store.cancel(run.id)
    assert store.resume(run.id) == run
    assert store.state(run.id).state == "queued"
    assert run.request is None


def test_only_stopped_runs_can_be_resumed(store: RunStore) -> None:
    run = store.create(any_spec())
    for state in ("queued", "running", "done"):
        set_state(run, state=state, **this_process())
        with pytest.raises(RunError, match=f"is {state}"):
            store.resume(run.id)
    for state in ("failed", "cancelled", "interrupted"):
        set_state(run, state=state)
        store.resume(run.id)


def test_removal_is_refused_while_a_worker_lives(store: RunStore) -> None:
    run = store.create(any_spec())
    with run.lock() as held:
        assert held
        with pytest.raises(RunError, match="active"):
            store.remove(run.id)
    store.remove(run.id)
    assert store.list() == []
    assert not any(path.is_dir() for path in store.root.iterdir())


def test_metrics_and_log(store: RunStore) -> None:
    run = store.create(any_spec())
    assert store.tail_log(run.id) == []
    run.log.write_bytes(b"\xff\n" + b"\n".join(b"line %d" % i for i in range(100_000)))
    assert store.tail_log(run.id, 2) == ["line 99998", "line 99999"]
    run.append_metrics({"step": 1, "phase": "train"})
    rows, offset = store.read_metrics(run.id)
    run.append_metrics({"step": 2, "phase": "train"})
    assert [row["step"] for row in rows + store.read_metrics(run.id, offset)[0]] == [1, 2]


def test_progress() -> None:
    assert RunState(state="queued").progress == 0
    assert RunState(state="running", step=3, total_steps=12).progress == 0.25
    assert RunState(state="done").progress == 1
