"""A distillation small enough for tests."""

from __future__ import annotations

import copy
from typing import Any

import torch

from tests.support.small_run import CFG, half_plan
from tests.support.tiny import tiny
from upvit_core.pruning.surgery import prune
from upvit_core.records.plan import PruningPlan
from upvit_core.training.batches import TrainingBatches, batch_source
from upvit_core.training.distillation import Distillation, make_accelerator
from upvit_core.training.settings import DistillSettings


def make_job(images: Any, *, epochs: int = 3, student_ratio: float = 0.5, **settings: Any) -> Distillation:
    teacher, shape = tiny("class token", torch.float32)
    import json

    plan = PruningPlan.from_json(json.dumps(half_plan(shape, student_ratio)))
    chosen = DistillSettings(**{"batch_size": 8, "warmup_epochs": 0.5, **settings})
    batches = TrainingBatches(batch_source(images, CFG, seed=chosen.seed, workers=0), batch_size=8, seed=chosen.seed)
    return Distillation(
        prune(teacher, shape, plan), copy.deepcopy(teacher), batches, chosen, epochs=epochs, num_classes=5,
        accelerator=make_accelerator("cpu", "no"),
    )  # fmt: skip


def nothing(_: Any) -> None:
    return None
