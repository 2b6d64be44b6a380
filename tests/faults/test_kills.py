"""Kills of anything at any time: nothing lost, nothing twice, nothing left behind.

A handful of kills run with every test; `-m slow` runs more than two hundred.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.support import ROOT
from tests.support.small_run import (
    MEASURED,
    device_taken,
    fork_worker,
    half_plan,
    kill_after,
    run_to_end,
    spec_for,
    wait_for,
    weights_of,
    write_images,
    write_teacher,
)
from tests.support.tiny import TensorProxy, images, tiny
from upvit_core.errors import RunError
from upvit_core.importance.kl import KL
from upvit_core.models.build import adapt
from upvit_core.models.checkpoint import load_model, save_model
from upvit_core.pruning.surgery import prune
from upvit_core.records.plan import PruningPlan
from upvit_core.records.scores import ImportanceScores
from upvit_core.records.shape import ModelShape
from upvit_core.runs import Run, RunSpec, RunStore
from upvit_core.runs.devices import lease

few_and_many = pytest.mark.parametrize(
    "kills",
    [pytest.param(4, id="few"), pytest.param(60, id="many", marks=[pytest.mark.slow, pytest.mark.timeout(3600)])],
)


def forked(work: Callable[[], object]) -> int:
    """Do something in a copy of this process; returns its pid."""
    pid = os.fork()
    if not pid:
        status = 1
        try:
            work()
            status = 0
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
        finally:
            os._exit(status)
    return pid


def check_rest(store: RunStore, run: Run) -> None:
    """Checks that hold whenever no worker is alive."""
    state = store.state(run.id)
    assert state.state in ("queued", "interrupted", "done"), state
    with run.lock() as held:
        assert held, "the lock outlived its worker"
    with lease("cpu") as held:
        assert held, "the device's lease outlived its worker"
    keys = [(row["phase"], row["step"]) for row in store.read_metrics(run.id)[0]]
    assert len(keys) == len(set(keys)), "a row was written twice"
    assert not store.list()[0].problem


def stable(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if key not in MEASURED} for row in rows]


@few_and_many
def test_distillation(home: Path, tmp_path: Path, kills: int) -> None:
    rng = random.Random(kills)
    settings = {"epochs": 4, "checkpoint_minutes": 1e-6, "drop_path": 0.1}
    store = RunStore(tmp_path / "runs")
    whole = store.create(spec_for(home, **settings))
    began = time.monotonic()
    run_to_end(store, whole)
    length = time.monotonic() - began
    expected = weights_of(whole), stable(store.read_metrics(whole.id)[0])
    done = 0
    while done < kills:
        run = store.create(spec_for(home, **settings))
        for _ in range(8):  # of one run; then let it end
            if not kill_after(fork_worker(run), rng.uniform(0, length)):
                break
            done += 1
            check_rest(store, run)
            if store.state(run.id).state == "done":
                break
            if store.state(run.id).state == "interrupted":
                store.resume(run.id)
        if store.state(run.id).state != "done":
            run_to_end(store, run)
        check_rest(store, run)
        assert (weights_of(run), stable(store.read_metrics(run.id)[0])) == expected
        kept = {"classes.json", "examples.json", "lock", "log.txt", "metrics.jsonl", "model", "spec.json", "state.json"}
        assert {path.name for path in run.folder.iterdir()} == kept


@few_and_many
def test_queue(home: Path, tmp_path: Path, kills: int) -> None:
    rng = random.Random(kills)
    store = RunStore(tmp_path / "runs")
    expected = None
    done = 0
    while done < kills:
        runs = [store.create(spec_for(home, epochs=2, checkpoint_minutes=1e-6)) for _ in range(3)]
        workers = {run.id: fork_worker(run) for run in runs}
        while workers:
            time.sleep(rng.uniform(0, 0.4))
            states = {run.id: store.state(run.id).state for run in runs}
            assert list(states.values()).count("running") <= 1, states
            for run_id, pid in list(workers.items()):
                if os.waitpid(pid, os.WNOHANG)[0]:
                    del workers[run_id]
            if workers and done < kills:
                victim = rng.choice(sorted(workers))
                os.kill(workers[victim], signal.SIGKILL)
                os.waitpid(workers.pop(victim), 0)
                done += 1
                with suppress(RunError):  # it was done, or killed before it had written its pid
                    store.resume(victim)
                if store.state(victim).state != "done":
                    workers[victim] = fork_worker(store.get(victim))
        for run in runs:
            assert store.state(run.id).state == "done", store.tail_log(run.id)
            check_rest(store, run)
            expected = expected or weights_of(run)
            assert weights_of(run) == expected


@few_and_many
def test_creation_and_submission(tmp_path: Path, kills: int) -> None:
    """A server killed while it creates runs leaves whole runs or none."""
    rng = random.Random(kills)
    store = RunStore(tmp_path / "runs")
    spec = RunSpec(name="r", teacher="demo", student="x", data="demo", epochs=1)

    def create_on() -> None:
        while True:
            store.create(spec)

    for _ in range(kills):
        kill_after(forked(create_on), rng.uniform(0, 0.05))
        assert all(not summary.problem for summary in store.list())
    store.create(spec)
    assert not list(store.root.glob(".new-*"))
    created = [s.spec.created for s in store.list() if s.spec]
    assert len(set(created)) == len(created)


@few_and_many
def test_scoring(tmp_path: Path, kills: int) -> None:
    rng = random.Random(kills)
    model, shape = tiny("class token", torch.float32)
    proxy = TensorProxy(images(24, torch.float32))
    journal, out = tmp_path / "journal.jsonl", tmp_path / "scores.safetensors"

    def score() -> None:
        KL(image_batch=2, journal=journal).attribute(adapt(model, shape), proxy).save(out)

    began = time.monotonic()
    score()
    length = time.monotonic() - began
    expected = ImportanceScores.load(out)
    done = 0
    while done < kills:
        for leftover in (*tmp_path.glob("journal*"), out):
            leftover.unlink(missing_ok=True)
        while kill_after(forked(score), rng.uniform(0, length)):
            done += 1
            if out.exists():
                ImportanceScores.load(out)
            if done % 5 == 0:
                assert wait_for(forked(score)) == 0
                break
        record = ImportanceScores.load(out)
        for key, values in expected.values.items():
            np.testing.assert_allclose(record.values[key], values, rtol=1e-6, atol=1e-9)


@few_and_many
def test_surgery_and_saving(tmp_path: Path, kills: int) -> None:
    rng = random.Random(kills)
    model, shape = tiny("class token", torch.float32)
    plan = PruningPlan.from_json(json.dumps(half_plan(shape)))
    thin = prune(model, shape, plan)
    folder = tmp_path / "student"

    def cut_and_save() -> None:
        student = prune(model, shape, plan)
        save_model(student, folder, shape=plan.shape_after, pretrained_cfg={}, name="thin", plan_json=plan.to_json())

    def again_and_again() -> None:
        while True:
            cut_and_save()

    cut_and_save()
    expected = list(thin.state_dict().values())
    for _ in range(kills):
        kill_after(forked(again_and_again), rng.uniform(0, 0.3))
        loaded = list(load_model(folder).model.state_dict().values())
        assert all(torch.equal(a, b) for a, b in zip(expected, loaded, strict=True))


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_export(tmp_path: Path) -> None:
    import onnxruntime

    from upvit_core.export import export_onnx

    kills = 10
    rng = random.Random(kills)
    model, shape = tiny("class token", torch.float32)
    path = tmp_path / "model.onnx"
    began = time.monotonic()
    export_onnx(model, shape, path)
    length = time.monotonic() - began
    content = path.read_bytes()
    for _ in range(kills):
        killed = kill_after(forked(lambda: export_onnx(model, shape, path)), rng.uniform(0, length))
        onnxruntime.InferenceSession(path.read_bytes())
        assert killed <= (path.read_bytes() == content) or path.stat().st_size == len(content)


def test_data_loading_processes_die_with_their_worker(tmp_path: Path) -> None:
    write_teacher(tmp_path / "teacher")
    write_images(tmp_path / "images", side=40)
    store = RunStore(tmp_path / "runs")
    spec = spec_for(tmp_path, epochs=50, workers=2)
    model, shape = big_tiny()  # images of more than 32 pixels are fed one by one, by processes of their own
    save_model(model, tmp_path / "teacher", shape=shape, pretrained_cfg={"input_size": (3, 40, 40)}, name="larger")
    run = store.create(spec.model_copy(update={"plan": half_plan(shape)}))
    pid = fork_worker(run)
    deadline = time.monotonic() + 60
    while len(group_of(pid)) < 3:
        assert time.monotonic() < deadline, store.tail_log(run.id)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    assert store.state(run.id).state == "interrupted"
    store.resume(run.id)  # the lock is free at once, though they may still be there
    deadline = time.monotonic() + 120  # a starved one may still be importing before it looks for its parent
    while group_of(pid):
        assert time.monotonic() < deadline, "orphans are left"
        time.sleep(0.1)


def big_tiny() -> tuple[torch.nn.Module, ModelShape]:
    import timm

    from upvit_core.models.checkpoint import shape_of

    model = timm.create_model(
        "deit_tiny_patch16_224", img_size=40, patch_size=8, embed_dim=16, depth=2, num_heads=4, num_classes=5
    )
    return model, shape_of(model, "larger")


def group_of(pid: int) -> list[int]:
    """Living processes of a process group."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError, ValueError):
            fields = path.read_bytes().rpartition(b") ")[2].split()
            if int(fields[2]) == pid and fields[0] not in (b"Z", b"X"):
                found.append(int(path.parent.name))
    return found


def test_a_full_disk_is_told_and_survived(home: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)], capture_output=True).returncode:
        pytest.skip("mounting a small tmpfs needs root")
    try:
        reference = RunStore(tmp_path / "reference")
        whole = reference.create(spec_for(home, checkpoint_minutes=1e-6))
        run_to_end(reference, whole)

        store = RunStore(disk / "runs")
        run = store.create(spec_for(home, checkpoint_minutes=1e-6))
        pid = fork_worker(run)
        while not store.read_metrics(run.id)[0]:
            time.sleep(0.01)
        ballast = disk / "ballast"
        with suppress(OSError), ballast.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
        wait_for(pid)
        state = store.state(run.id)
        assert (state.state, state.error) == ("failed", "The disk is full; free some space and resume the run.")
        ballast.unlink()
        store.resume(run.id)
        run_to_end(store, run)
        assert weights_of(run) == weights_of(whole)
        assert stable(store.read_metrics(run.id)[0]) == stable(reference.read_metrics(whole.id)[0])
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_the_clock_may_go_backwards(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = RunStore(tmp_path / "runs")
    real, began = time.time, time.monotonic()
    monkeypatch.setattr(time, "time", lambda: real() - 86400 * (time.monotonic() - began))
    monkeypatch.setattr(time, "time_ns", lambda: int(time.time() * 1e9))
    runs = [store.create(spec_for(home, epochs=1)) for _ in range(3)]
    assert [s.id for s in store.list()] == [run.id for run in reversed(runs)]
    for run in runs:
        run_to_end(store, run)
    seconds = [row["seconds"] for row in store.read_metrics(runs[0].id)[0]]
    assert seconds == sorted(seconds)


def test_two_servers_on_one_folder(home: Path, tmp_path: Path) -> None:
    """Both create, start, cancel and resume at random; every run ends once, and ends well."""
    store = RunStore(tmp_path / "runs")

    def serve(seed: int) -> None:
        rng = random.Random(seed)
        own = RunStore(store.root)
        pids = []
        for _ in range(3):
            run = own.create(spec_for(home, epochs=1, checkpoint_minutes=1e-6))
            pids.append(fork_worker(run))
            for summary in own.list():
                with suppress(RunError):
                    if rng.random() < 0.2:
                        own.cancel(summary.id, grace=5)
                    elif summary.state.state in ("cancelled", "interrupted"):
                        pids.append(fork_worker(own.resume(summary.id)))
        for pid in pids:
            os.waitpid(pid, 0)

    servers = [forked(lambda seed=seed: serve(seed)) for seed in (1, 2)]
    assert [wait_for(pid) for pid in servers] == [0, 0]
    for summary in store.list():
        assert not summary.problem
        assert summary.state.state in ("done", "cancelled", "interrupted", "queued")
        if summary.state.state != "done":
            if summary.state.state != "queued":
                store.resume(summary.id)
            run_to_end(store, store.get(summary.id))
    outcomes = {weights_of(store.get(summary.id)) for summary in store.list()}
    assert len(store.list()) == 6
    assert len(outcomes) == 1
    for summary in store.list():
        check_rest(store, store.get(summary.id))


def test_killing_the_whole_server_leaves_its_runs_alone(home: Path, tmp_path: Path) -> None:
    store = RunStore(tmp_path / "runs")
    run = store.create(spec_for(home, epochs=2))
    code = (
        "import sys, time; from upvit_core.runs import *; s = RunStore(sys.argv[1]); "
        "LocalExecutor(s).submit(s.get(sys.argv[2])); print('up', flush=True); time.sleep(100)"
    )
    with device_taken(store):
        command = [sys.executable, "-c", code, str(store.root), run.id]
        server = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, start_new_session=True)
        assert server.stdout is not None
        assert server.stdout.readline() == b"up\n"
        os.killpg(server.pid, signal.SIGINT)
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()
        server.stdout.close()
        assert store.state(run.id).state == "queued"
    deadline = time.monotonic() + 240
    while store.state(run.id).is_active:
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert store.state(run.id).state == "done", store.tail_log(run.id)
