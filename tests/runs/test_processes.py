"""Two processes (gloo) against one, at the same global batch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]
SCRIPT = """
import json, sys
sys.path[:0] = [sys.argv[1] + "/tests"]
import torch
torch.set_num_threads(1)
from small_run import CFG, half_plan
from tiny import tiny
from accelerate import Accelerator
from upvit_core.data import open_images
from upvit_core.distillation import Distillation, distill, make_accelerator
from upvit_core.planning.plan import PruningPlan
from upvit_core.recipe import DistillSettings
from upvit_core.surgery import prune
from upvit_core.training_batches import TrainingBatches, batch_source
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
    command = [*launcher, str(script), str(PROJECT), str(images)]
    environment = {
        "PATH": "/usr/bin:/bin",
        "PYTHONPATH": str(PROJECT),
        "OMP_NUM_THREADS": "1",
        "ACCELERATE_USE_CPU": "1",
    }
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
