"""Settings of a run (Eq. 2 and the recipe around it, or fine-tuning), and presets by name. Imports no torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from upvit_core.records.family import FAMILIES

RELEASED_KL_WEIGHT, RELEASED_BATCH_PER_GPU = 0.2, 32


class DistillSettings(BaseModel):
    """Everything that decides what a run computes, beside its model, data and epochs.

    alpha weighs the KL term, whose reduction is the mean over the batch, in nats, times temperature². The defaults are
    the recipe of the letter's released script; `cutmix` and `mixup` are the alphas of their Beta distributions (0:
    off). `batch_size` is the global one, over all processes; the warm-up takes at most a quarter of the run.
    `eval_every` is a share of an epoch (0.25: four times an epoch; None: spread over the run); `eval_images` limits
    the evaluations along the way; the end is measured on those images and once more on all. `checkpoint_minutes`
    bounds the work that a kill can lose. `teacher_top_k` stores that many of the teacher's logits for every
    augmented image, for other runs on the same images with the same seed (teacher_store.py); `tensorboard` writes
    the metrics as event files too. `from_scratch` keeps the student's shape and draws fresh weights, for the
    baseline. `layer_decay` multiplies the learning rate once more for each layer further from the head (timm's
    rule); `head_only` trains nothing but the head. `feature_weight` adds that many times the mean square by which
    the student's last feature, through a linear map that is learnt with it, misses the teacher's (0: off).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    alpha: Annotated[float, Field(ge=0, le=1e4, allow_inf_nan=False)] = 1.0
    temperature: Annotated[float, Field(gt=0, le=100, allow_inf_nan=False)] = 1.0
    lr: Annotated[float, Field(gt=0, le=10, allow_inf_nan=False)] = 1e-3
    min_lr: Annotated[float, Field(ge=0, le=10, allow_inf_nan=False)] = 1e-5
    weight_decay: Annotated[float, Field(ge=0, le=10, allow_inf_nan=False)] = 1e-3
    warmup_epochs: Annotated[float, Field(ge=0, le=1e4, allow_inf_nan=False)] = 2.0
    batch_size: Annotated[int, Field(ge=2, le=65536)] = 256
    cutmix: Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)] = 1.0
    mixup: Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)] = 0.0
    mix_probability: Annotated[float, Field(ge=0, le=1)] = 1.0
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.9998
    drop_path: Annotated[float, Field(ge=0, lt=1)] = 0.1
    clip_grad: Annotated[float | None, Field(gt=0, allow_inf_nan=False)] = None
    augmentation: Literal["auto", "none"] = "auto"
    amp: Literal["auto", "no", "bf16", "fp16"] = "auto"
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    threads: Annotated[int | None, Field(ge=1, le=1024)] = None
    workers: Annotated[int | None, Field(ge=0, le=256)] = None
    eval_every: Annotated[float | None, Field(gt=0, allow_inf_nan=False)] = None
    eval_images: Annotated[int | None, Field(ge=1)] = None
    teacher_top_k: Annotated[int | None, Field(ge=1, le=1 << 20)] = None
    tensorboard: bool = False
    checkpoint_minutes: Annotated[float, Field(gt=0, le=24 * 60, allow_inf_nan=False)] = 5.0
    from_scratch: bool = False
    layer_decay: Annotated[float | None, Field(gt=0, le=1)] = None
    head_only: bool = False
    feature_weight: Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False)] = 0.0


PRESETS: dict[str, DistillSettings] = {
    "letter": DistillSettings(),
    # KL summed over a GPU's batch, times 0.2, beside a mean CE: at 32 images a GPU 6.4 times the mean KL.
    "released_code": DistillSettings(alpha=RELEASED_KL_WEIGHT * RELEASED_BATCH_PER_GPU),
    # Minutes on two CPU cores: small batches, a short warm-up, no stochastic depth for so short a run.
    "demo": DistillSettings(
        batch_size=64, warmup_epochs=0.25, drop_path=0.0, ema_decay=0.998, weight_decay=0.02, checkpoint_minutes=0.5
    ),
    # The demo's, for a start that repair left near the teacher: small steps and unmixed images, so as not to undo it.
    "repaired": DistillSettings(
        batch_size=64, lr=1e-4, min_lr=1e-6, warmup_epochs=0.1, cutmix=0.0, drop_path=0.0, ema_decay=0.998,
        weight_decay=0.02, checkpoint_minutes=0.5,
    ),
    # A small language model: nothing is mixed, gradients are clipped as is usual there.
    "language": DistillSettings(
        batch_size=32, lr=2e-3, min_lr=1e-4, weight_decay=0.05, warmup_epochs=0.1, cutmix=0.0, ema_decay=0.99,
        drop_path=0.0, clip_grad=1.0, checkpoint_minutes=0.5, eval_images=400,
    ),
}  # fmt: skip

# Without a teacher, on other data: DeiT's way of fine-tuning, with steps that grow smaller towards the first layers.
FINETUNE_PRESETS: dict[str, DistillSettings] = {
    "finetune": DistillSettings(
        batch_size=128, lr=5e-4, weight_decay=0.05, warmup_epochs=1.0, label_smoothing=0.1, ema_decay=0.9995,
        drop_path=0.1, layer_decay=0.75,
    ),
    # Minutes on two CPU cores.
    "demo": DistillSettings(
        batch_size=64, warmup_epochs=0.25, cutmix=0.0, label_smoothing=0.1, drop_path=0.0, ema_decay=0.998,
        weight_decay=0.05, checkpoint_minutes=0.5,
    ),
}  # fmt: skip


def usual_preset(family: str = "vit", *, repaired: bool, small: bool = False) -> str:
    """Name of the preset for a start: small steps where repair left it near the teacher, as large ones would undo that.

    `family` is that of the model's shape; `small`: a model and images that a CPU trains in minutes.
    """
    if FAMILIES[family].preset:
        return FAMILIES[family].preset
    if repaired:
        return "repaired"
    return "demo" if small else "letter"


def evaluation_steps(total_steps: int, steps_per_epoch: int, eval_every: float | None) -> tuple[int, ...]:
    """After which steps to evaluate, ascending, the last step not included (it gets the final evaluation).

    Without `eval_every` (a share of an epoch), eight times in a short run and once an epoch in a long one.
    """
    if total_steps < 2:
        return ()
    if eval_every is None:
        count = max(8, min(round(total_steps / steps_per_epoch), 300))
        interval = total_steps / count
    else:
        interval = max(steps_per_epoch * eval_every, 1.0)
    count = int((total_steps - 1) / interval)
    return tuple(sorted({min(max(round(interval * i), 1), total_steps - 1) for i in range(1, count + 1)}))
