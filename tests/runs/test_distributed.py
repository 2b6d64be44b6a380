"""Two processes (gloo) against one, at the same global batch."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Literal

import psutil
import pytest

from tests.support import ROOT
from tests.support.small_run import fork_worker, run_to_end, spec_for, wait_for, wait_until
from upvit_core.runs import Run, RunStore
from upvit_core.runs.checkpoints import list_checkpoints
from upvit_core.runs.devices import lease

SCRIPT = """
import json, sys
import torch
torch.set_num_threads(1)
from tests.support.small_run import CFG, half_plan
from tests.support.tiny import tiny
from accelerate import Accelerator
from upvit_core.data import open_images
from upvit_core.training.distillation import Distillation, distill, make_accelerator
from upvit_core.records.plan import PruningPlan
from upvit_core.training.settings import DistillSettings
from upvit_core.pruning.surgery import prune
from upvit_core.training.batches import TrainingBatches, batch_source
teacher, shape = tiny("class token", torch.float32)
student = prune(teacher, shape, PruningPlan.from_json(json.dumps(half_plan(shape))))
accelerator = make_accelerator("cpu", "no")
settings = DistillSettings(batch_size=8, drop_path=0.0, mixup=0.2)
train = open_images(sys.argv[2], "train", pretrained_cfg=CFG)
batches = TrainingBatches(
    batch_source(train, CFG, seed=0, workers=0), batch_size=8, seed=0,
    rank=accelerator.process_index, processes=accelerator.num_processes,
)
job = Distillation(student, teacher, batches, settings, epochs=4, num_classes=5, accelerator=accelerator)
rows = []
distill(job, report=rows.append, after_step=lambda job: None)
if accelerator.is_main_process:
    print("ROWS", json.dumps([accelerator.num_processes, [[r["loss"], r["ce"], r["kl"]] for r in rows]]))
"""


def curve(tmp_path: Path, images: Path, processes: int) -> list[list[float]]:
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command = [*launcher, str(script), str(ROOT), str(images)]
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith("ROWS")]
    assert lines, done.stderr[-2000:]
    count, rows = json.loads(lines[0].removeprefix("ROWS"))
    assert count == processes
    return rows


def test_two_processes_follow_the_curve_of_one(home: Path, tmp_path: Path) -> None:
    one, two = (curve(tmp_path, home / "images", processes) for processes in (1, 2))
    assert len(one) == len(two) == 20
    for a, b in zip(one, two, strict=True):
        assert a == pytest.approx(b, rel=2e-4, abs=1e-5)


def follower_of(pid: int) -> psutil.Process | None:
    """The second process of a run, once it trains."""
    found = [p for p in psutil.Process(pid).children() if "upvit_core.runs.worker" in " ".join(p.cmdline())]
    return found[0] if found else None


def start(run: Run, past: int = 0) -> tuple[int, psutil.Process]:
    """Start a worker of two processes; returns once it has saved a step after `past` and after those saved before."""

    def saved() -> int:
        return max((int(path.stem[5:]) for path in list_checkpoints(run.checkpoints)), default=0)

    past = max(past, saved())
    pid = fork_worker(run)
    wait_until(lambda: saved() > past, 180)
    follower = follower_of(pid)
    assert follower is not None
    return pid, follower


@pytest.mark.parametrize("asked", [None, "pause"])
def test_a_process_that_dies_before_they_have_met_ends_the_run(
    home: Path, store: RunStore, asked: Literal["pause"] | None
) -> None:
    run = store.create(spec_for(home).model_copy(update={"processes": 2}))
    pid = fork_worker(run)
    wait_until(lambda: follower_of(pid) is not None)
    follower = follower_of(pid)
    assert follower is not None
    if asked:
        run.ask(asked, "me")
    follower.kill()
    died = time.monotonic()
    wait_for(pid)
    assert time.monotonic() - died < 15
    state = store.state(run.id)
    assert state.state == ("paused" if asked else "interrupted"), store.tail_log(run.id)
    assert asked or "Another process of the run ended" in state.error
    assert not follower.is_running()
    assert run.request is None
    for held in (run.lock(), lease("cpu")):
        with held as free:
            assert free


def curve_of(store: RunStore, run: Run) -> list[list[float]]:
    keys = ("step", "loss", "ce", "kl", "top1", "kl_teacher", "images")
    rows: list[dict[str, Any]] = store.read_metrics(run.id)[0]
    return [[row[key] for key in keys if key in row] for row in rows]


@pytest.mark.slow
def test_a_run_of_two_processes_survives_the_death_of_either_and_follows_one(home: Path, tmp_path: Path) -> None:
    store = RunStore(tmp_path / "runs")
    settings = {"epochs": 12, "drop_path": 0.0, "checkpoint_minutes": 1e-6}
    one = store.create(spec_for(home, **settings))
    run_to_end(store, one)
    run = store.create(spec_for(home, **settings).model_copy(update={"processes": 2}))

    pid, follower = start(run, 3)
    follower.kill()
    assert wait_for(pid) == 0
    assert store.state(run.id).state == "interrupted", store.tail_log(run.id)
    assert "Another process of the run ended" in store.state(run.id).error

    store.resume(run.id)
    pid, follower = start(run)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    wait_until(lambda: not follower.is_running())

    store.resume(run.id)
    pid, follower = start(run)
    os.kill(pid, signal.SIGTERM)  # to the first alone: both stop after the same step
    assert wait_for(pid) == 0
    assert store.state(run.id).state == "interrupted"
    assert not follower.is_running()

    store.resume(run.id)
    run_to_end(store, run)
    expected, found = curve_of(store, one), curve_of(store, run)
    assert len(expected) == len(found) > 70
    for a, b in zip(expected, found, strict=True):
        assert a == pytest.approx(b, rel=1e-3, abs=1e-4)


def test_torchrun_starts_distill(home: Path, tmp_path: Path) -> None:
    """The command of a machine with several GPUs, on two CPU processes."""
    store = RunStore(tmp_path / "runs")
    first = store.create(spec_for(home, epochs=1))
    run_to_end(store, first)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    order = ["--teacher", str(home / "teacher"), "--student", str(first.model), "--data", str(home / "images")]
    order += ["--epochs", "2", "--batch-size", "8", "--device", "cpu", "--out", str(store.root)]
    done = subprocess.run(
        [*launcher, "-m", "upvit_core", "distill", *order], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    folder = Path(done.stdout.split()[0])
    run = store.get(folder.name)
    assert store.state(run.id).state == "done"
    assert store.state(run.id).step == 10
    assert "training" in done.stderr
    assert "training" in run.log.read_text()
    final = store.read_metrics(run.id)[0][-1]
    assert (final["phase"], final["images"]) == ("final", 20)
