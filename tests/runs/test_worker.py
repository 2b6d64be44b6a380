import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from tests.support import ROOT
from tests.support.made_runs import this_process
from tests.support.small_run import (
    MEASURED,
    device_taken,
    fork_worker,
    kill_after,
    run_to_end,
    small_home,
    spec_for,
    wait_for,
    wait_until,
    weights_of,
)
from upvit_core.data import open_images, proxy_indices
from upvit_core.errors import RunError
from upvit_core.evaluation import evaluate
from upvit_core.figures.evaluations import Points
from upvit_core.models.checkpoint import load_model
from upvit_core.models.predict import predict
from upvit_core.runs import LocalExecutor, Run, RunStore
from upvit_core.runs.checkpoints import list_checkpoints, load_newest
from upvit_core.runs.devices import lease
from upvit_core.runs.reporter import Reporter


def rows_of(store: RunStore, run: Run) -> list[dict[str, Any]]:
    return store.read_metrics(run.id)[0]


def reference(home: Path, tmp_path: Path, **settings: object) -> tuple[bytes, list[dict[str, Any]]]:
    """Weights and rows of an uninterrupted run."""
    store = RunStore(tmp_path / "reference")
    run = store.create(spec_for(home, **settings))
    run_to_end(store, run)
    return weights_of(run), rows_of(store, run)


def without_times(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if key not in MEASURED} for row in rows]


def test_a_run_from_order_to_folder(home: Path, store: RunStore) -> None:
    run = store.create(spec_for(home))
    run_to_end(store, run)
    rows = rows_of(store, run)
    phases = [row["phase"] for row in rows if row["phase"] != "train"]
    assert phases[:2] == ["teacher", "surgery"]
    assert phases[-1] == "final"
    assert phases.count("eval") >= 3
    assert [row["step"] for row in rows] == sorted(row["step"] for row in rows)
    for row in rows:
        if row["phase"] != "train":
            assert row["images_per_s"] > 0
            assert row["images"] == 20
    state = store.state(run.id)
    assert (state.step, state.total_steps, state.epoch, state.progress) == (15, 15, 3.0, 1.0)
    assert not run.checkpoints.exists()
    with lease("cpu") as free:
        assert free

    final = rows[-1]
    loaded = load_model(str(run.model))
    test = open_images(str(home / "images"), "val", pretrained_cfg=loaded.pretrained_cfg)
    measured = evaluate(loaded.model, test.batches(20))
    assert measured.top1 == pytest.approx(final["top1"]) == pytest.approx(state.top1)
    kept = run.answered
    assert kept is not None
    for answers, model in ((kept.before, load_model(str(home / "teacher")).model), (kept.after, loaded.model)):
        logits, labels = predict(model, test.batches(20))
        assert (answers, kept.labels) == (logits.argmax(1).tolist(), labels.tolist())
    stock = timm.create_model(f"local-dir:{run.model}", pretrained=True).eval()
    x = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        assert torch.equal(stock(x), loaded.model(x))
    teacher = next(row for row in rows if row["phase"] == "teacher")
    own = evaluate(load_model(str(home / "teacher")).model, test.batches(20))
    assert teacher["top1"] == pytest.approx(own.top1) == pytest.approx(final["teacher_top1"])


@pytest.mark.parametrize("seed", [0, 1])
def test_killed_at_three_random_steps_the_weights_are_the_same_bit_for_bit(
    home: Path, store: RunStore, tmp_path: Path, seed: int
) -> None:
    settings = {"drop_path": 0.2, "seed": seed, "epochs": 4, "checkpoint_minutes": 1e-6}
    expected, expected_rows = reference(home, tmp_path, **settings)
    run = store.create(spec_for(home, **settings))
    steps = sorted(random.Random(seed).sample(range(1, 20), 3))
    for step in steps:
        pid = fork_worker(run)
        wait_until(lambda step=step: store.state(run.id).step >= step or reached(run, step))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        assert store.state(run.id).state == "interrupted"
        store.resume(run.id)
    run_to_end(store, run)
    assert weights_of(run) == expected
    assert without_times(rows_of(store, run)) == without_times(expected_rows)


def reached(run: Run, step: int) -> bool:
    newest = next(iter(list_checkpoints(run.checkpoints)), None)
    return newest is not None and int(newest.stem.partition("-")[2]) >= step


def test_sigterm_saves_and_interrupts(home: Path, store: RunStore, tmp_path: Path) -> None:
    expected, _ = reference(home, tmp_path)
    run = store.create(spec_for(home))  # checkpoints every five minutes: only the first step and SIGTERM save
    pid = fork_worker(run)
    wait_until(lambda: any(row["phase"] == "train" for row in rows_of(store, run)))
    os.kill(pid, signal.SIGTERM)
    assert wait_for(pid) == 0
    state = store.state(run.id)
    assert state.state == "interrupted"
    saved = load_newest(run.checkpoints)
    assert saved is not None
    assert saved["step"] == state.step > 0
    store.resume(run.id)
    run_to_end(store, run)
    assert f"going on from step {saved['step']}" in run.log.read_text()
    assert weights_of(run) == expected


def test_cancel_stops_a_running_worker_and_resume_goes_on(home: Path, store: RunStore) -> None:
    run = store.create(spec_for(home, epochs=200))
    pid = fork_worker(run)
    wait_until(lambda: any(row["phase"] == "train" for row in rows_of(store, run)))
    began = time.monotonic()
    assert store.cancel(run.id, by="a test").state == "cancelled"
    assert time.monotonic() - began < 10
    assert wait_for(pid) == 0
    (summary,) = store.list()
    saved = load_newest(run.checkpoints)
    assert saved is not None
    step = saved["step"]
    assert summary.reason == f"Cancelled by a test at step {step} of 1,000; Resume goes on from the last checkpoint."
    assert f"cancelled: {summary.reason}" in run.log.read_text()
    store.resume(run.id)
    pid = fork_worker(run)
    wait_until(lambda: store.state(run.id).step > step)
    store.cancel(run.id)
    wait_for(pid)


def test_cancel_kills_a_worker_that_does_not_listen(home: Path, store: RunStore) -> None:
    run = store.create(spec_for(home))
    pid = os.fork()
    if not pid:
        os.setsid()
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        from upvit_core.runs.store import read_state

        with run.lock():
            run.write_state(read_state(run.folder).model_copy(update={"state": "running", **this_process()}))
            time.sleep(600)
        os._exit(0)
    wait_until(lambda: store.state(run.id).state == "running")
    assert store.cancel(run.id, grace=0.3).state == "cancelled"
    assert wait_for(pid) == -signal.SIGKILL


def test_a_second_worker_on_one_run_goes_away(home: Path, store: RunStore) -> None:
    run = store.create(spec_for(home))
    with run.lock() as held:
        assert held
        with pytest.raises(RunError, match="already has a worker"):
            LocalExecutor(store).submit(run)


def test_runs_of_one_device_take_turns_first_come_first(home: Path, store: RunStore) -> None:
    runs = [store.create(spec_for(home, name=f"sweep {i}", epochs=1)) for i in range(3)]
    with device_taken(store):
        pids = [fork_worker(run) for run in reversed(runs)]
        wait_until(lambda: all("waiting for cpu" in "".join(store.tail_log(run.id)) for run in runs))
        assert [store.state(run.id).position for run in runs] == [1, 2, 3]
    running: list[str] = []
    while any(store.state(run.id).is_active for run in runs):
        now = [run.id for run in runs if store.state(run.id).state == "running"]
        assert len(now) <= 1
        if now and now[0] not in running:
            running += now
        time.sleep(0.02)
    assert [wait_for(pid) for pid in pids] == [0, 0, 0]
    assert [store.state(run.id).state for run in runs] == ["done"] * 3
    assert running == [run.id for run in runs]


def test_a_queued_run_can_be_cancelled(home: Path, store: RunStore) -> None:
    run = store.create(spec_for(home))
    with device_taken(store):
        pid = fork_worker(run)
        wait_until(lambda: "waiting for cpu" in "".join(store.tail_log(run.id)))
        assert store.state(run.id).state == "queued"
        assert store.state(run.id).position == 1
        assert store.cancel(run.id).state == "cancelled"
    assert wait_for(pid) == 0


def test_a_worker_whose_folder_is_gone_ends(home: Path, store: RunStore) -> None:
    run = store.create(spec_for(home))
    with device_taken(store):
        pid = fork_worker(run)
        wait_until(lambda: "waiting for cpu" in "".join(store.tail_log(run.id)))
        assert abs(time.time() - os.path.getmtime(run.folder / "lock")) < 60, "its heartbeat"
        shutil.rmtree(run.folder)
        wait_until(lambda: os.waitpid(pid, os.WNOHANG)[0], 5)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [({"teacher": "/nowhere"}, "/nowhere"), ({"data": "/nowhere"}, "/nowhere"), ({"device": "cuda:7"}, "no GPU")],
)
def test_what_fails_says_so_in_a_sentence(home: Path, store: RunStore, change: dict[str, Any], sentence: str) -> None:
    run = store.create(spec_for(home).model_copy(update=change))
    assert wait_for(fork_worker(run)) == 1
    state = store.state(run.id)
    assert state.state == "failed"
    assert sentence in state.error
    assert "Traceback" in run.log.read_text()


def test_a_torn_checkpoint_gives_way_to_the_one_before(home: Path, store: RunStore, tmp_path: Path) -> None:
    expected, _ = reference(home, tmp_path, checkpoint_minutes=1e-6)
    run = store.create(spec_for(home, checkpoint_minutes=1e-6))
    pid = fork_worker(run)
    wait_until(lambda: reached(run, 5))
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    newest = list_checkpoints(run.checkpoints)[0]
    newest.write_bytes(newest.read_bytes()[:1000])
    store.resume(run.id)
    run_to_end(store, run)
    assert f"{newest.name} cannot be read" in run.log.read_text()
    assert weights_of(run) == expected


def test_a_checkpoint_with_code_in_it_is_not_run(home: Path, store: RunStore, tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "owned"),)

    run = store.create(spec_for(home, epochs=1))
    torch.save({"step": 1, "evil": Evil()}, run.checkpoints / "step-000000001.pt")
    run_to_end(store, run)
    assert not (tmp_path / "owned").exists()
    assert "cannot be read" in run.log.read_text()


def test_from_scratch_keeps_the_shape_and_draws_fresh_weights(home: Path, store: RunStore) -> None:
    cut, scratch = (store.create(spec_for(home, from_scratch=fresh, epochs=1)) for fresh in (False, True))
    for run in (cut, scratch):
        run_to_end(store, run)
    assert load_model(str(cut.model)).shape.blocks == load_model(str(scratch.model)).shape.blocks
    assert weights_of(cut) != weights_of(scratch)


def test_evaluations_on_a_part_end_with_one_on_all(home: Path, store: RunStore) -> None:
    run = store.create(spec_for(home, epochs=1, eval_images=7))
    run_to_end(store, run)
    rows = rows_of(store, run)
    images = {row["phase"]: row["images"] for row in rows if "images" in row}
    assert images == {"teacher": 7, "surgery": 7, "eval": 7, "final": 20}
    line = Points(rows).evals
    assert line[-1]["step"] == rows[-1]["step"], "the line has an end on its own images"
    assert {row["images"] for row in line} == {7}
    loaded = load_model(str(run.model))
    chosen = proxy_indices(
        test := open_images(run.spec.data, "val", pretrained_cfg=loaded.pretrained_cfg), 7, run.spec.settings.seed
    )
    expected = evaluate(loaded.model, test.batches(7, indices=chosen))
    assert line[-1]["top1"] == pytest.approx(expected.top1)


def test_a_student_folder_is_distilled_too(home: Path, store: RunStore) -> None:
    first = store.create(spec_for(home, epochs=1))
    run_to_end(store, first)
    spec = spec_for(home, epochs=1).model_copy(update={"plan": None, "student": str(first.model)})
    second = store.create(spec)
    run_to_end(store, second)
    rows = rows_of(store, second)
    assert rows[1]["top1"] == pytest.approx(rows_of(store, first)[-1]["top1"])
    assert (second.model / "plan.json").read_text() == (first.model / "plan.json").read_text()


def test_a_detached_run_outlives_a_killed_server(tmp_path: Path) -> None:
    home = small_home(tmp_path)
    store = RunStore(tmp_path / "runs")
    run = store.create(spec_for(home))
    server = (
        "import os, signal, sys; from upvit_core.runs import *; s = RunStore(sys.argv[1]); "
        "LocalExecutor(s).submit(s.get(sys.argv[2])); os.kill(os.getpid(), signal.SIGKILL)"
    )
    ended = subprocess.run([sys.executable, "-c", server, str(store.root), run.id], cwd=ROOT, check=False)
    assert ended.returncode == -signal.SIGKILL
    assert store.state(run.id).is_active
    wait_until(lambda: not store.state(run.id).is_active, 240)
    assert store.state(run.id).state == "done", store.tail_log(run.id)


def test_kills_while_loading_lose_nothing(home: Path, store: RunStore) -> None:
    run = store.create(spec_for(home, epochs=1))
    for seconds in (0.0, 0.01, 0.05, 0.1):
        assert kill_after(fork_worker(run), seconds)
        assert store.state(run.id).state in ("queued", "interrupted")
    run_to_end(store, run)


def test_directions_and_repair_are_cut_by_the_worker(home: Path, store: RunStore) -> None:
    kl = {}
    for basis, repair in (("channels", False), ("channels", True), ("directions", True)):
        spec = spec_for(home, epochs=1)
        assert spec.plan is not None
        plan = {**spec.plan, "basis": basis}
        run = store.create(spec.model_copy(update={"plan": plan, "repair": repair, "calibration_images": 40}))
        run_to_end(store, run)
        kl[basis, repair] = next(row["kl_teacher"] for row in rows_of(store, run) if row["phase"] == "surgery")
    assert len(set(kl.values())) == 3
    assert kl["channels", True] < kl["channels", False]


def test_a_head_count_given_by_hand_reaches_the_teacher(home: Path, store: RunStore) -> None:
    spec = spec_for(home, epochs=1)
    run = store.create(spec.model_copy(update={"teacher": spec.teacher + "#heads=4"}))
    run_to_end(store, run)


def test_a_run_is_stopped_after_the_hours_that_the_host_allows(
    home: Path, store: RunStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = store.create(spec_for(home, epochs=3))
    run_to_end(store, run)
    assert store.state(run.id).busy_seconds > 0
    run = store.create(spec_for(home, epochs=200))

    def clock() -> float:
        """Ten hours pass in the run's first steps."""
        trained = [row for row in rows_of(store, run) if row["phase"] == "train"]
        return time.monotonic() + 36_000 * (len(trained) > 2)

    monkeypatch.setattr(Reporter, "clock", staticmethod(clock))
    monkeypatch.setenv("UPVIT_LONGEST_RUN_HOURS", "5")
    for _ in range(2):  # resuming does not begin anew
        assert wait_for(fork_worker(run)) == 1
        state = store.state(run.id)
        assert state.state == "failed"
        assert "5 hours on a device" in state.error
        saved = load_newest(run.checkpoints)
        assert saved is not None
        assert 0 < saved["step"] == state.step < 1000
        store.resume(run.id)


def test_a_student_equal_to_its_teacher_shows_no_kl_in_any_row(home: Path, store: RunStore) -> None:
    """In bf16, teacher, student and averaged weights are all run in it; a step this small changes no weight."""
    settings = {"amp": "bf16", "lr": 1e-20, "min_lr": 1e-20, "drop_path": 0.0, "ema_decay": 0.9}
    spec = spec_for(home, epochs=2, **settings)
    run = store.create(spec.model_copy(update={"plan": None, "student": spec.teacher}))
    run_to_end(store, run)
    rows = [row for row in store.read_metrics(run.id)[0] if "kl_teacher" in row]
    assert {"surgery", "eval", "final"} <= {row["phase"] for row in rows}
    assert [row["kl_teacher"] for row in rows] == pytest.approx([0.0] * len(rows), abs=1e-12)
    assert len({row["top1"] for row in store.read_metrics(run.id)[0] if row["phase"] in ("surgery", "teacher")}) == 1
