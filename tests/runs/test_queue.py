"""Turns in the queue: owners, priorities, turns; pause and what it gives back."""

import itertools
import random
from pathlib import Path

import pytest

from tests.support.made_runs import this_process
from tests.support.small_run import (
    any_spec,
    device_taken,
    fork_worker,
    run_to_end,
    spec_for,
    wait_for,
    wait_until,
    weights_of,
)
from upvit_core.errors import RunError
from upvit_core.runs import LocalExecutor, RunState, RunStore
from upvit_core.runs.checkpoints import load_newest
from upvit_core.runs.devices import lease, lease_names, leases
from upvit_core.runs.folder import RunSummary
from upvit_core.runs.queue import QueuedRun, fair_order, queues


def waiting(text: str) -> list[QueuedRun]:
    """`a0 b1` is a run of owner a at priority 0, then one of b at 1, in order of creation."""
    return [QueuedRun(f"{word}.{i}", word[0], int(word[1:]), i) for i, word in enumerate(text.split())]


@pytest.mark.parametrize(
    ("queue", "turns", "order"),
    [
        ("a0 a0 a0", {}, "0 1 2"),
        ("a0 a0 a0 b0 b0", {}, "0 3 1 4 2"),
        ("a0 a0 b0 c0", {"a": 5}, "2 3 0 1"),
        ("a0 b0 c0", {"a": 3, "b": 1, "c": 2}, "1 2 0"),
        ("a0 a1 b0", {}, "1 2 0"),
        ("a-1 a0 b-2", {"a": 9}, "1 0 2"),
        ("a0 b0 b1", {"b": 4, "a": 3}, "2 0 1"),
        ("", {}, ""),
    ],
)
def test_order(queue: str, turns: dict[str, int], order: str) -> None:
    assert [name.partition(".")[2] for name in fair_order(waiting(queue), turns)] == order.split()


def test_no_owner_waits_for_two_turns_of_another() -> None:
    """However long the others' queues are, between two turns of one owner each waiting owner has had one."""
    rng = random.Random(0)
    for _ in range(200):
        queue = waiting(" ".join(f"{rng.choice('abcd')}0" for _ in range(rng.randint(1, 30))))
        turns = {owner: rng.randint(1, 50) for owner in "abcd" if rng.random() < 0.5}
        order = [name[0] for name in fair_order(queue, turns)]
        assert sorted(fair_order(queue, turns)) == sorted(run.id for run in queue)
        for owner in "abcd":
            places = [place for place, other in enumerate(order) if other == owner]
            for first, second in itertools.pairwise(places):
                between = order[first + 1 : second]
                still_waiting = {other for other in "abcd" if other != owner and other in order[second:]}
                assert still_waiting <= set(between)


def test_the_first_of_the_order_is_served_and_goes_behind(store: RunStore) -> None:
    """Serving one after another gives the order that was promised, since each turn is counted."""
    for owner in "aaabbc":
        run = store.create(any_spec(owner=owner, device="cpu"))
        run.write_state(RunState(state="queued", **this_process()))
    promised = [s.id for s in sorted(store.list(), key=lambda s: s.state.position or 0)]
    assert [s.spec.owner for i in promised for s in store.list() if s.id == i and s.spec] == list("abcaba")
    served = []
    while (turn := store.next_in_queue("cpu")) is not None:
        served.append(turn)
        store.get(turn).write_state(RunState(state="done", turn=store.next_turn("cpu")))
    assert served == promised


def test_priority_can_be_changed_while_waiting(store: RunStore) -> None:
    first, second = (store.create(any_spec(owner=owner)) for owner in "ab")
    assert store.state(first.id).position == 1
    store.prioritise(second.id, 1)
    assert (store.state(second.id).position, store.state(first.id).position) == (1, 2)
    store.prioritise(second.id, -1)
    assert store.state(second.id).position == 2
    with pytest.raises(RunError, match="99 is not a priority"):
        store.prioritise(second.id, 99)
    for content in (b"\xff", b"", b"9" * 100, b"1e9", b"-7"):
        (second.folder / "priority").write_bytes(content)
        assert -2 <= {s.id: s.priority for s in store.list()}[second.id] <= 2


def test_a_paused_run_keeps_its_checkpoint_and_gives_the_device_back(
    home: Path, store: RunStore, tmp_path: Path
) -> None:
    reference = RunStore(tmp_path / "reference")
    whole = reference.create(spec_for(home, epochs=6))
    run_to_end(reference, whole)
    run = store.create(spec_for(home, epochs=6))
    pid = fork_worker(run)
    wait_until(lambda: any(row["phase"] == "train" for row in store.read_metrics(run.id)[0]))
    assert store.pause(run.id).state == "paused"
    assert wait_for(pid) == 0
    saved = load_newest(run.checkpoints)
    assert saved is not None
    assert saved["step"] == store.state(run.id).step > 0
    with lease("cpu") as free:
        assert free
    with pytest.raises(RunError, match="is paused"):
        store.pause(run.id)
    with pytest.raises(RunError, match="is paused; resume it first"):
        LocalExecutor(store).submit(run)
    store.resume(run.id)
    assert run.request is None
    run_to_end(store, run)
    assert weights_of(run) == weights_of(whole)


def test_a_waiting_run_can_be_paused_and_others_go_on(home: Path, store: RunStore) -> None:
    paused, other = (store.create(spec_for(home, epochs=1)) for _ in range(2))
    with device_taken(store):
        pids = [fork_worker(run) for run in (paused, other)]
        wait_until(lambda: all("waiting for cpu" in "".join(store.tail_log(r.id)) for r in (paused, other)))
        assert store.state(other.id).position == 2
        assert store.pause(paused.id).state == "paused"
        assert store.state(other.id).position == 1
    assert [wait_for(pid) for pid in pids] == [0, 0]
    assert store.state(other.id).state == "done"
    assert store.state(paused.id).state == "paused"


def test_a_run_without_a_worker_is_paused_and_resumed(store: RunStore) -> None:
    run = store.create(any_spec())
    assert store.pause(run.id).state == "paused"
    assert sorted(path.name for path in run.folder.iterdir()) == ["checkpoints", "lock", "spec.json", "state.json"]
    store.resume(run.id)
    assert store.state(run.id).state == "queued"


def test_turns_are_written_by_the_workers(home: Path, store: RunStore) -> None:
    runs = [store.create(spec_for(home, epochs=1)) for _ in range(2)]
    for run in runs:
        run_to_end(store, run)
    assert [store.state(run.id).turn for run in runs] == [1, 2]


def gpu_order(*wanted: tuple[str, str, int], turns: dict[str, tuple[str, int, int]] | None = None) -> dict[str, object]:
    """Queues of runs (id, device, processes), each an owner's only one, in order of creation."""
    known = [
        RunSummary(name, RunState(state="queued"), any_spec(owner=name, device=device, processes=count, created=place))
        for place, (name, device, count) in enumerate(wanted)
    ]
    for name, (device, count, turn) in (turns or {}).items():
        past = any_spec(owner=name, device=device, processes=count)
        known.append(RunSummary(f"past-{name}", RunState(state="done", turn=turn), past))
    return queues(known)


def test_a_run_of_several_gpus_stands_in_every_queue() -> None:
    found = gpu_order(("a", "cuda:0", 1), ("b", "cuda", 2), ("c", "cuda:1", 1), ("d", "cuda:3", 1), ("e", "cpu", 4))
    assert found == {"cuda:0": ["a", "b"], "cuda:1": ["b", "c"], "cuda:3": ["d"], "cpu": ["e"]}


def test_runs_of_several_gpus_never_wait_in_a_circle() -> None:
    """Turns that each device counted by itself would put another run first on every one of them."""
    rng = random.Random(0)
    for _ in range(300):
        wanted = [(name, f"cuda:{rng.randrange(4)}", rng.randint(1, 4)) for name in "abcdefg"]
        turns = {name: (f"cuda:{rng.randrange(4)}", 1, rng.randint(1, 9)) for name in "abcdefg" if rng.random() < 0.7}
        left = list(wanted)
        while left:
            found = gpu_order(*left, turns=turns)
            free = [run for run in left if all(found[d][0] == run[0] for d in lease_names(run[1], run[2]))]
            assert free, (found, left)
            left = [run for run in left if run not in free]


def test_all_gpus_or_none(store: RunStore) -> None:
    names = ("cuda:0", "cuda:1", "cuda:2")
    with device_taken(store, "cuda:1"), leases(names) as held:
        assert not held
        with leases(("cuda:2", "cuda:0")) as others:
            assert others, "a run that waits keeps nothing"
    with leases(names) as held:
        assert held
        with lease("cuda:2") as taken:
            assert not taken
