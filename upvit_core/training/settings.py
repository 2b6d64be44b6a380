"""Settings of a run (Eq. 2 and the recipe around it, or fine-tuning), and presets by name. Imports no torch."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from upvit_core.records.family import FAMILIES

RELEASED_KL_WEIGHT, RELEASED_BATCH_PER_GPU = 0.2, 32


class DistillSettings(BaseModel):
    """Everything that decides what a run computes, beside its model, data and epochs.

    The defaults are the recipe of the letter's released script.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    alpha: Annotated[float, Field(ge=0, le=1e4, allow_inf_nan=False)] = 1.0
    """Weight of the KL term: its mean over the batch, in nats, times temperature²."""
    temperature: Annotated[float, Field(gt=0, le=100, allow_inf_nan=False)] = 1.0
    """Temperature of teacher and student in the KL term."""
    lr: Annotated[float, Field(gt=0, le=10, allow_inf_nan=False)] = 1e-3
    """Peak learning rate of AdamW."""
    min_lr: Annotated[float, Field(ge=0, le=10, allow_inf_nan=False)] = 1e-5
    """Learning rate at the end of the cosine."""
    weight_decay: Annotated[float, Field(ge=0, le=10, allow_inf_nan=False)] = 1e-3
    """Weight decay of AdamW."""
    warmup_epochs: Annotated[float, Field(ge=0, le=1e4, allow_inf_nan=False)] = 2.0
    """Epochs of linear warm-up; at most a quarter of the run."""
    batch_size: Annotated[int, Field(ge=2, le=65536)] = 256
    """Images in a batch, over all processes."""
    cutmix: Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)] = 1.0
    """Alpha of CutMix's Beta distribution; 0: off."""
    mixup: Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)] = 0.0
    """Alpha of Mixup's Beta distribution; 0: off."""
    mix_probability: Annotated[float, Field(ge=0, le=1)] = 1.0
    """Share of batches that are mixed."""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of each label that is spread over all classes."""
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.9998
    """Decay of the weights' moving average, which is the result; 0: no average."""
    drop_path: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Rate of stochastic depth in the last block; it grows linearly from 0 in the first."""
    clip_grad: Annotated[float | None, Field(gt=0, allow_inf_nan=False)] = None
    """Largest norm of the gradient; without it nothing is clipped."""
    augmentation: Literal["auto", "none"] = "auto"
    """auto: as the images' size asks; none: images as they are evaluated."""
    amp: Literal["auto", "no", "bf16", "fp16"] = "auto"
    """Mixed precision; auto: bf16, else fp16, on a GPU and none on a CPU."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Seed of batches, augmentation and whatever is drawn in training."""
    threads: Annotated[int | None, Field(ge=1, le=1024)] = None
    """CPU threads of PyTorch; by default those of the machine."""
    workers: Annotated[int | None, Field(ge=0, le=256)] = None
    """Processes that load images for each training process; by default its share of the cores, less one, at most 16."""
    compile: bool = False
    """Compile student and teacher for training, which takes minutes at first (torch.compile)."""
    plain: bool = False
    """Do without what makes steps faster on a GPU: AdamW in one kernel, the teacher's weights in half precision, and
    stops that are agreed on a step late."""
    sizes: Annotated[int, Field(ge=2, le=64)] = 3
    """Sizes of an elastic student that each step trains: the widest, the narrowest and random ones between."""
    eval_every: Annotated[float | None, Field(gt=0, allow_inf_nan=False)] = None
    """Share of an epoch between evaluations (0.25: four an epoch); by default spread over the run."""
    eval_images: Annotated[int | None, Field(ge=1)] = None
    """Test images for evaluations during the run; its end is measured on these and on all."""
    teacher_top_k: Annotated[int | None, Field(ge=1, le=1 << 20)] = None
    """Keep this many of the teacher's logits per augmented image, for other runs with the same seed."""
    tensorboard: bool = False
    """Write the metrics as TensorBoard event files too."""
    checkpoint_minutes: Annotated[float, Field(gt=0, le=24 * 60, allow_inf_nan=False)] = 5.0
    """Minutes between checkpoints, the most work that a kill can lose."""
    from_scratch: bool = False
    """Keep the student's shape but draw fresh weights, for a baseline."""
    layer_decay: Annotated[float | None, Field(gt=0, le=1)] = None
    """Factor on the learning rate for each layer further from the head (timm's rule)."""
    head_only: bool = False
    """Train nothing but the head."""
    feature_weight: Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False)] = 0.0
    """Weight of the mean squared error between the student's last feature, after a learnt linear map, and the
    teacher's; 0: off."""


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
    """Name of the preset to start with: small steps after a repair, since large ones would undo it.

    `family` is that of the model's shape; `small`: a model and images that a CPU trains in minutes.
    """
    if FAMILIES[family].preset:
        return FAMILIES[family].preset
    if repaired:
        return "repaired"
    return "demo" if small else "letter"


def evaluation_steps(total_steps: int, steps_per_epoch: int, eval_every: float | None) -> tuple[int, ...]:
    """After which steps to evaluate, ascending, the last step not included (it gets the final evaluation).

    Without `eval_every` (a share of an epoch), eight times in a short run and once an epoch in a long one; and before
    the first of these after a sixteenth, an eighth, a quarter and a half of the way to it, where a student learns most.
    """
    if total_steps < 2:
        return ()
    if eval_every is None:
        count = max(8, min(round(total_steps / steps_per_epoch), 300))
        interval = total_steps / count
    else:
        interval = max(steps_per_epoch * eval_every, 1.0)
    early = () if eval_every else (1 / 16, 1 / 8, 1 / 4, 1 / 2)
    places = (*early, *range(1, int((total_steps - 1) / interval) + 1))
    return tuple(sorted({min(max(round(interval * i), 1), total_steps - 1) for i in places}))
