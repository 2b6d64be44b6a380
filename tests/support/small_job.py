"""A distillation small enough for tests."""

import copy
import json

import torch

from tests.support.small_run import CFG, half_plan
from tests.support.tiny import tiny
from upvit_core.data import ImageSet
from upvit_core.pruning.surgery import prune
from upvit_core.records.plan import PruningPlan
from upvit_core.training.batches import TrainingBatches, batch_source
from upvit_core.training.distillation import Distillation, make_accelerator
from upvit_core.training.settings import DistillSettings


def make_job(
    images: ImageSet,
    *,
    epochs: int = 3,
    student_ratio: float = 0.5,
    device: torch.device | None = None,
    without_teacher: bool = False,
    variant: str = "class token",
    **settings: object,
) -> Distillation:
    """device: in place of the CPU, where it is rehearsed."""
    teacher, shape = tiny(variant, torch.float32)
    plan = PruningPlan.from_json(json.dumps(half_plan(shape, student_ratio)))
    chosen = DistillSettings(**{"batch_size": 8, "warmup_epochs": 0.5, **settings})
    batches = TrainingBatches(batch_source(images, CFG, seed=chosen.seed, workers=0), batch_size=8, seed=chosen.seed)
    models = prune(teacher, shape, plan), copy.deepcopy(teacher)
    accelerator = make_accelerator("cpu", "no")
    if device is not None:
        accelerator.__class__ = type("Rehearsed", (type(accelerator),), {"device": device})
    student, original = models
    return Distillation(
        student,
        None if without_teacher else original,
        batches,
        chosen,
        epochs=epochs,
        num_classes=shape.classes or 0,
        accelerator=accelerator,
    )


def nothing(_: object) -> None:
    return None
