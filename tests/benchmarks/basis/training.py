"""One epoch of Eq. 2 from a given start."""

from __future__ import annotations

import time

from torch import nn

from tests.benchmarks.basis.setting import Setting
from upvit_core.training.distillation import Distillation, distill, make_accelerator
from upvit_core.training.settings import PRESETS

# For a fair comparison: large steps, which a ruined start needs, on the images as they are, which short runs prefer.
RECIPES = {**PRESETS, "unmixed": PRESETS["demo"].model_copy(update={"cutmix": 0.0})}


def train(
    setting: Setting, student: nn.Module, epochs: int, seed: int, recipe: str, lr: float | None = None
) -> tuple[int, float]:
    """Train the student in place by a recipe; returns steps and seconds. It ends with its averaged weights."""
    own = RECIPES[recipe]
    settings = own.model_copy(update={"seed": seed, "lr": lr or own.lr})
    student.requires_grad_(True)
    run = Distillation.on_images(
        student,
        setting.loaded.model,
        setting.train,
        setting.loaded.pretrained_cfg,
        settings,
        epochs=epochs,
        num_classes=setting.loaded.shape.num_classes,
        accelerator=make_accelerator("cpu", "no"),
    )
    start = time.perf_counter()
    result = distill(run, report=lambda row: None, after_step=lambda run: None)
    student.load_state_dict(result.state_dict())
    return run.total_steps, time.perf_counter() - start
