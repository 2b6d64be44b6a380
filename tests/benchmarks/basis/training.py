"""Training for the tables: one epoch of Eq. 2 from a given start, and a small teacher for CIFAR-10."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from tests.benchmarks.basis.setting import Setting
from upvit_core.data import open_images
from upvit_core.evaluation import evaluate
from upvit_core.models.checkpoint import build_model, save_model
from upvit_core.records.shape import BlockShape, ModelShape
from upvit_core.training.batches import TrainingBatches, batch_source, shift_and_flip
from upvit_core.training.distillation import Distillation, distill, make_accelerator
from upvit_core.training.settings import PRESETS

CIFAR = ModelShape("cifar teacher", 96, (BlockShape(6, 96, 384),) * 6, (32, 32), (4, 4), 3, 10)
CIFAR_CFG: dict[str, Any] = {
    "mean": (0.4914, 0.4822, 0.4465), "std": (0.247, 0.2435, 0.2616), "crop_pct": 1.0, "interpolation": "bilinear",
}  # fmt: skip


# For a fair comparison: large steps, which a ruined start needs, on the images as they are, which short runs prefer.
RECIPES = {**PRESETS, "unmixed": PRESETS["demo"].model_copy(update={"cutmix": 0.0})}


def train(
    setting: Setting, student: nn.Module, epochs: int, seed: int, recipe: str, lr: float | None = None
) -> tuple[int, float]:
    """Train the student in place by a recipe; returns steps and seconds. It ends with its averaged weights."""
    own = RECIPES[recipe]
    settings = own.model_copy(update={"seed": seed, "lr": lr or own.lr})
    source = batch_source(setting.train, setting.loaded.pretrained_cfg, seed=seed)
    batches = TrainingBatches(source, batch_size=settings.batch_size, seed=seed)
    student.requires_grad_(True)
    run = Distillation(
        student, setting.loaded.model, batches, settings, epochs=epochs, num_classes=setting.loaded.shape.num_classes,
        accelerator=make_accelerator("cpu", "no"),
    )  # fmt: skip
    start = time.perf_counter()
    result = distill(run, report=lambda row: None, after_step=lambda run: None)
    student.load_state_dict(result.state_dict())
    return run.total_steps, time.perf_counter() - start


def train_teacher(data: str, out: Path, steps: int, seed: int) -> dict[str, Any]:
    """A small ViT of the demo's widths, trained with flips and shifts; writes a model folder, says how good it is."""
    cfg = {**CIFAR_CFG, "input_size": (3, 32, 32)}
    train, test = (open_images(data, split, pretrained_cfg=cfg, num_classes=10) for split in ("train", "val"))
    kept = list(train.batches(1000))
    pictures, labels = torch.cat([x for x, _ in kept]), torch.cat([y for _, y in kept])
    generator = torch.Generator().manual_seed(seed)
    model = build_model(CIFAR, seed=seed, weight_init="jax").train()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1.5e-3, total_steps=steps, pct_start=0.1)
    start = time.perf_counter()
    for _ in range(steps):
        chosen = torch.randint(len(labels), (64,), generator=generator)
        shifts = torch.randint(0, 9, (64, 2), generator=generator)
        x = shift_and_flip(pictures[chosen], shifts, torch.rand(64, generator=generator) < 0.5, 4)
        optimizer.zero_grad()
        F.cross_entropy(model(x), labels[chosen], label_smoothing=0.05).backward()
        optimizer.step()
        schedule.step()
    top1 = evaluate(model.eval(), test.batches(500)).top1
    save_model(model, out, shape=CIFAR, pretrained_cfg=cfg, name="cifar teacher", class_names=train.class_names)
    return {"top1": top1, "steps": steps, "test_images": len(test), "seconds": time.perf_counter() - start}
