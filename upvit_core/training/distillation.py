"""Fine-tuning with the original model as the teacher (Yu & Wu 2023, Eq. 2): L = CE(y, p) + α·T²·KL(q || p).

q is the teacher's softmax at temperature T, p the student's; both terms are means over the batch, in nats, so the loss
depends neither on the batch size nor on the number of processes. (The released code sums the KL over one GPU's batch
and takes 0.2 of it: the preset `released_code`.) CE is against CutMix's soft targets and the teacher sees the mixed
image. At T = 1 the factor T² (Hinton et al. 2015, which keeps the gradient's size) is 1, as in the letter. The last
feature may be matched beside the logits, through a linear map as in FitNets (Romero et al., ICLR 2015). Without a
classifier that term is all: the mean square by which the student's features miss the teacher's; labels do not count.

Optimiser, schedule, weight averaging, CutMix and stochastic depth are timm's; device, mixed precision and processes are
Accelerate's. The random state of step s is a function of (seed, s), so a run resumed at step s is the run itself.
"""

from __future__ import annotations

import copy
import random
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs, broadcast
from timm.data.mixup import Mixup, mixup_target
from timm.loss.cross_entropy import SoftTargetCrossEntropy
from timm.optim import create_optimizer_v2
from timm.scheduler.cosine_lr import CosineLRScheduler
from timm.utils.model_ema import ModelEmaV3
from torch import Tensor, nn
from torch.nn import functional as F

from upvit_core.data import ImageSet
from upvit_core.errors import RunError
from upvit_core.models.drop_path import set_drop_path
from upvit_core.models.retarget import head_parameters
from upvit_core.out_of_memory import bounds, halved, is_out_of_memory, sentence
from upvit_core.ranks import PATIENCE, part_at_exit
from upvit_core.training.batches import TrainingBatches, batch_source, seed_everything
from upvit_core.training.last_feature import feature_map, last_feature
from upvit_core.training.settings import DistillSettings
from upvit_core.training.sizes import Sizes
from upvit_core.training.teacher_cache import TeacherLogits, TeacherStore

Row = dict[str, Any]
LOGGED_POINTS = 400
HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}
_soft_cross_entropy = SoftTargetCrossEntropy()


@dataclass(frozen=True)
class LossParts:
    """Scalars: the loss, its mean cross-entropy and its mean KL before weighting, in nats; 0 of features."""

    loss: Tensor
    ce: Tensor
    kl: Tensor


def distillation_loss(
    logits: Tensor, targets: Tensor, teacher_logits: Tensor, *, alpha: float, temperature: float = 1.0
) -> LossParts:
    """Eq. 2 on logits (B, classes), soft targets (B, classes) and the teacher's logits (B, classes); means over B."""
    ce = _soft_cross_entropy(logits, targets)
    p, q = (F.log_softmax(t / temperature, dim=-1) for t in (logits, teacher_logits))
    kl = F.kl_div(p, q, reduction="batchmean", log_target=True)
    return LossParts(ce + alpha * temperature**2 * kl, ce, kl)


@contextmanager
def isolated_rng() -> Iterator[None]:
    """Restore the random states of torch, NumPy and Python on the way out."""
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


def make_accelerator(device: str, amp: str) -> Accelerator:
    """Accelerate on `device` (`cpu` or `cuda`); `amp` is `auto` (bf16, else fp16, on a GPU), `no`, `bf16` or `fp16`."""
    cpu = device == "cpu"
    if amp == "auto":
        amp = "no" if cpu else ("bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16")
    if cpu and amp == "fp16":
        raise RunError("The CPU has no fp16 training; set amp to 'no' or 'bf16'.")
    part_at_exit()
    return Accelerator(cpu=cpu, mixed_precision=amp, kwargs_handlers=[InitProcessGroupKwargs(timeout=PATIENCE)])


def with_half_weights(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """A copy whose linear maps and convolutions keep their weights as autocast would make them at every call, so that
    its results under autocast are the same. Where an embedding may share them, the model itself."""
    if any(isinstance(module, nn.Embedding) for module in model.modules()):
        return model
    copied = copy.deepcopy(model)
    for module in copied.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            module.to(dtype)
    return copied


class Distillation:
    """One run in progress; `state_dict` holds everything that a later step depends on.

    Without a teacher the loss is the cross-entropy alone (fine-tuning), and rows have no `kl`. `num_classes` 0: outputs
    are features, and rows have neither `ce` nor `kl`.

    `store`, where one is set, keeps the teacher's logits for other runs, and reads theirs. With `sizes` the loss is the
    mean over the sizes of each step, which the teacher answers once.

    The student is trained in place; `result` is its averaged copy where weights are averaged, else the student. A batch
    that does not fit into memory is trained in `parts`, which `notify` receives a sentence about.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module | None,
        batches: TrainingBatches,
        settings: DistillSettings,
        *,
        epochs: int,
        num_classes: int,
        accelerator: Accelerator,
        notify: Callable[[str], None] = lambda sentence: None,
        sizes: Sizes | None = None,
    ):
        if sizes is not None and settings.feature_weight:
            raise RunError("The last feature of an elastic student has no one width; set feature_weight to 0.")
        self.sizes = sizes
        self.parts, self.notify = 1, notify
        self.store: TeacherStore | None = None
        self.settings, self.batches, self.accelerator = settings, batches, accelerator
        self.epochs, self.num_classes = epochs, num_classes
        self.total_steps = epochs * batches.steps_per_epoch
        self.step, self.seconds = 0, 0.0
        self.waited, self.since = (
            0.0,
            (0, 0.0),
        )  # seconds spent waiting for data since the last row; that row's (step, seconds)
        pixels = batches.source.pixels
        self.scale = None if pixels is None else [t.to(accelerator.device) for t in (pixels.mean, pixels.std)]
        set_drop_path(student, settings.drop_path)
        self.student = student.to(accelerator.device)
        if accelerator.num_processes > 1:
            with torch.no_grad():  # the weights of the first process, before a copy of them is made
                broadcast([tensor.data for tensor in student.state_dict().values()])
        self.teacher = None
        if teacher is not None:
            self.teacher = teacher.to(accelerator.device).eval().requires_grad_(False)
        self.asked = self.teacher  # in training
        if self.teacher is not None and not settings.plain and accelerator.mixed_precision in HALF:
            self.asked = with_half_weights(self.teacher, HALF[accelerator.mixed_precision])
        if settings.head_only:
            head = head_parameters([name for name, _ in student.named_parameters()])
            for name, parameter in student.named_parameters():
                parameter.requires_grad_(name in head)
        self.ema = ModelEmaV3(student, decay=settings.ema_decay, use_warmup=True) if settings.ema_decay else None
        kernel: dict[str, Any] = {"fused": True} if accelerator.device.type == "cuda" and not settings.plain else {}
        optimizer = create_optimizer_v2(
            student, opt="adamw", lr=settings.lr, weight_decay=settings.weight_decay, layer_decay=settings.layer_decay,
            **kernel,
        )  # fmt: skip
        self.map: nn.Module | None = None
        if settings.feature_weight and teacher is not None and num_classes:
            self.map = feature_map(student, teacher, settings.seed).to(accelerator.device)
            optimizer.add_param_group({"params": list(self.map.parameters()), "weight_decay": settings.weight_decay})
        self.projection = None if self.map is None else accelerator.prepare_model(self.map)
        self.model = accelerator.prepare_model(student if sizes is None else sizes.wrap(student))
        self.forward: Callable[..., Tensor] = self.model
        self.ask: Callable[[Tensor], Tensor] | None = self.asked
        if settings.compile:
            if sizes is not None or settings.feature_weight:
                raise RunError(
                    "Neither an elastic student nor one that is matched on its last feature can be compiled; leave out "
                    "compile, or set feature_weight to 0."
                )
            self.forward, self.ask = torch.compile(self.model), self.asked and torch.compile(self.asked)
        self.optimizer = accelerator.prepare_optimizer(optimizer)
        warmup = min(round(settings.warmup_epochs * batches.steps_per_epoch), self.total_steps // 4)
        self.schedule = CosineLRScheduler(
            optimizer,
            t_initial=self.total_steps - warmup,
            lr_min=min(settings.min_lr, settings.lr),
            t_in_epochs=False,
            warmup_t=warmup,
            warmup_lr_init=min(1e-6, settings.lr),
            warmup_prefix=True,
        )
        self.mixup = None
        if settings.cutmix or settings.mixup:
            self.mixup = Mixup(
                mixup_alpha=settings.mixup,
                cutmix_alpha=settings.cutmix,
                prob=settings.mix_probability,
                label_smoothing=settings.label_smoothing,
                num_classes=max(num_classes, 1),
            )
        # loss, ce, kl, and with a feature term its mean square, since the last row
        parts = 3 if self.map is None else 4
        self.sums = torch.zeros(parts, dtype=torch.float64, device=accelerator.device)
        self.summed = 0

    @classmethod
    def on_images(
        cls,
        student: nn.Module,
        teacher: nn.Module | None,
        images: ImageSet,
        pretrained_cfg: dict[str, Any],
        settings: DistillSettings,
        *,
        epochs: int,
        num_classes: int,
        accelerator: Accelerator,
        notify: Callable[[str], None] = lambda sentence: None,
        sizes: Sizes | None = None,
    ) -> Distillation:
        """A run on this process's share of `images`, in the batches that `settings` describe."""
        seed, augment = settings.seed, settings.augmentation != "none"
        source = batch_source(images, pretrained_cfg, seed=seed, augment=augment, workers=settings.workers)
        rank, processes = accelerator.process_index, accelerator.num_processes
        batches = TrainingBatches(source, batch_size=settings.batch_size, seed=seed, rank=rank, processes=processes)
        return cls(
            student,
            teacher,
            batches,
            settings,
            epochs=epochs,
            num_classes=num_classes,
            accelerator=accelerator,
            notify=notify,
            sizes=sizes,
        )

    @property
    def result(self) -> nn.Module:
        return self.student if self.ema is None else self.ema.module

    @property
    def log_every(self) -> int:
        return max(1, self.total_steps // LOGGED_POINTS)

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values only, so that it can be read back without running code; all processes call it."""
        scaler = self.accelerator.scaler
        return {
            "step": self.step,
            "parts": self.parts,
            "seconds": self.seconds,
            "total_steps": self.total_steps,
            "student": self.student.state_dict(),
            "map": None if self.map is None else self.map.state_dict(),
            "ema": None if self.ema is None else self.ema.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": None if scaler is None else scaler.state_dict(),
            "sums": self.accelerator.reduce(self.sums, reduction="mean"),
            "summed": self.summed,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raises RunError where the state belongs to a run of another length or another student."""
        if state["total_steps"] != self.total_steps:
            raise RunError(
                f"The checkpoint belongs to a run of {state['total_steps']} steps, this one has {self.total_steps}; "
                "resume it with the data and the number of processes it was started with."
            )
        try:
            self.student.load_state_dict(state["student"])
            if self.map is not None:
                self.map.load_state_dict(state["map"])
            if self.ema is not None:
                self.ema.load_state_dict(state["ema"])
            self.optimizer.load_state_dict(state["optimizer"])
        except (RuntimeError, ValueError, KeyError) as error:
            raise RunError(f"The checkpoint does not fit this run's student ({error}); start a new run.") from error
        if self.accelerator.scaler is not None and state["scaler"] is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        self.step, self.seconds, self.summed = state["step"], state["seconds"], state["summed"]
        self.since = self.step, self.seconds
        self.parts = state.get("parts", 1)
        self.sums.copy_(state["sums"])

    def on_device(self, images: Tensor) -> Tensor:
        """A batch on the device: uint8 images (b, C, H, W) as normalised float32, tokens as they are."""
        images = images.to(self.accelerator.device, non_blocking=True)
        if self.scale is None:
            return images
        mean, std = self.scale
        return (images.to(torch.float32, memory_format=torch.contiguous_format) / 255 - mean) / std

    def train_step(self, images: Tensor, labels: Tensor) -> None:
        """One update on this process's images (b, C, H, W) in uint8, or tokens (b, T), and labels (b,) or (b, T)."""
        settings = self.settings
        images, labels = self.on_device(images), labels.to(self.accelerator.device, non_blocking=True)
        seed_everything(settings.seed, self.step)
        labels = labels if self.num_classes else torch.zeros_like(labels)
        if labels.ndim == 2:  # tokens, which are not mixed
            flat = mixup_target(labels.flatten(), self.num_classes, smoothing=settings.label_smoothing)
            targets = flat.unflatten(0, labels.shape)
        elif self.mixup is not None:
            images, targets = self.mixup(images, labels)
        else:
            targets = mixup_target(labels, max(self.num_classes, 1), smoothing=settings.label_smoothing)
        answers = TeacherLogits(self.store, self.step, len(images))
        means = self._gradients(images, targets, answers)
        while means is None:
            self.parts = halved(len(images), self.parts, self.accelerator.num_processes)
            self.notify(sentence(len(images), self.parts))
            means = self._gradients(images, targets, answers)
        try:
            answers.keep()
        except OSError as error:
            self.store = None
            self.notify(f"The teacher's answers are no longer stored ({error.strerror}); the run goes on without.")
        if settings.clip_grad is not None:
            self.accelerator.clip_grad_norm_(self.model.parameters(), settings.clip_grad)
        self.optimizer.step()
        self.step += 1
        self.schedule.step_update(self.step)
        if self.ema is not None:
            self.ema.update(self.student, step=self.step)
        self.sums += means
        self.summed += 1

    def _loss(self, logits: Tensor, targets: Tensor, teacher_logits: Tensor | None) -> LossParts:
        if not self.num_classes and teacher_logits is not None:
            missed, none = F.mse_loss(logits, teacher_logits), logits.new_zeros(())
            return LossParts(missed, none, none)
        if logits.ndim == 3:  # (b, T, vocabulary): every token is a row
            logits, targets = logits.flatten(0, 1), targets.flatten(0, 1)
            teacher_logits = None if teacher_logits is None else teacher_logits.flatten(0, 1)
        if teacher_logits is None:
            ce = _soft_cross_entropy(logits, targets)
            return LossParts(ce, ce, torch.zeros_like(ce))
        alpha, temperature = self.settings.alpha, self.settings.temperature
        return distillation_loss(logits, targets, teacher_logits, alpha=alpha, temperature=temperature)

    def _watched(self, held: ExitStack) -> tuple[list[Tensor], list[Tensor]]:
        """Lists that receive the last feature of student and teacher while `held` is open, where they are wanted."""
        if self.projection is None or self.asked is None:
            return [], []
        return held.enter_context(last_feature(self.student)), held.enter_context(last_feature(self.asked))

    def _gradients(self, images: Tensor, targets: Tensor, answers: TeacherLogits) -> Tensor | None:
        """Gradients of a batch (b, C, H, W) with targets (b, classes), in `parts`.

        Returns means of loss, CE and KL (3,), with a feature term also of its mean square (4,); None where memory
        ran out.
        """
        settings, accelerator = self.settings, self.accelerator
        if accelerator.num_processes > 1:
            seed_everything(settings.seed, self.step, accelerator.process_index)
        elif self.parts > 1:  # so that a step tried again, in a run that goes on, draws the same
            seed_everything(settings.seed, self.step, self.parts)
        self.model.train()
        self.optimizer.zero_grad()
        means = torch.zeros_like(self.sums)
        sizes = [()] if self.sizes is None else [(size,) for size in self.sizes.draw(self.step)]
        try:
            for first, last in bounds(len(images), self.parts):
                x, share = images[first:last], (last - first) / len(images) / len(sizes)
                teacher_logits: Tensor | None = None
                for number, size in enumerate(sizes, 1):
                    whole = last == len(images) and number == len(sizes)
                    with ExitStack() as held:
                        for module in (self.model, self.projection) if not whole else ():
                            held.enter_context(nullcontext() if module is None else accelerator.no_sync(module))
                        ours, theirs = self._watched(held)
                        with accelerator.autocast():
                            if self.ask is not None and teacher_logits is None:
                                with torch.no_grad():
                                    teacher_logits = answers.to(x, first, self.ask)
                            logits = self.forward(x, *size).float()
                            mapped = None if self.projection is None else self.projection(ours[0])
                        parts = self._loss(logits, targets[first:last], teacher_logits)
                        loss, terms = parts.loss, [parts.ce, parts.kl]
                        if mapped is not None:
                            terms.append(F.mse_loss(mapped.float(), theirs[0].float()))
                            loss = loss + settings.feature_weight * terms[-1]
                        accelerator.backward(loss * share)
                    means += share * torch.stack([term.detach() for term in (loss, *terms)]).double()
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            self.optimizer.zero_grad()
            return None
        return means

    def take_row(self) -> Row:
        """Means since the last row, over all processes. Raises RunError where the loss is no longer a number.

        `images_per_s` (of a text, blocks) counts all processes; `waiting` is the share of time spent waiting for data.
        Both are over the time that `distill` measured since the last row, or since the run was resumed.
        """
        lr = self.optimizer.param_groups[0]["lr"]
        steps, seconds = self.step - self.since[0], self.seconds - self.since[1]
        waited = torch.full_like(self.sums[:1], self.waited / max(seconds, 1e-9))
        means = self.accelerator.reduce(torch.cat([self.sums / max(self.summed, 1), waited]), reduction="mean")
        loss, ce, kl, *features, waiting = means.tolist()
        if not np.isfinite(loss):
            raise RunError(
                f"The loss became {loss} at step {self.step} with a learning rate of {lr:.2g}; "
                "start again with a lower lr."
            )
        self.sums.zero_()
        self.summed, self.waited, self.since = 0, 0.0, (self.step, self.seconds)
        row = {"step": self.step, "epoch": self.step / self.batches.steps_per_epoch, "phase": "train"}
        row |= {"loss": loss, "lr": lr, "seconds": round(self.seconds, 3)}
        if seconds:
            row |= {"images_per_s": round(self.batches.batch_size * steps / seconds, 2), "waiting": round(waiting, 4)}
            row |= {} if self.batches.source.workers is None else {"workers": self.batches.source.workers}
        if not self.num_classes:
            return row | {"features": loss}
        row |= {"ce": ce, **({"features": features[0]} if features else {})}
        return row if self.teacher is None else row | {"kl": kl}


def distill(
    run: Distillation, *, report: Callable[[Row], None], after_step: Callable[[Distillation], None]
) -> nn.Module:
    """Train from where `run` stands to its last step; returns `run.result`, without stochastic depth, in eval mode.

    `report` receives a row of means every `log_every` steps, and at first after 1, 2, 4, 8 …; `after_step` is called
    after every step, and may evaluate, save, or raise to stop. Neither counts in `run.seconds`, and neither may leave
    the student in another state.
    """
    with isolated_rng():
        started = time.perf_counter()
        for images, labels in run.batches.steps(run.step, run.total_steps):
            run.waited += time.perf_counter() - started
            run.train_step(images, labels)
            due = run.step % run.log_every == 0 or run.step.bit_count() == 1 or run.step == run.total_steps
            if due:
                run.sums.tolist()  # waits for the device, so that its time is counted
            run.seconds += time.perf_counter() - started
            if due:
                report(run.take_row())
            after_step(run)
            started = time.perf_counter()
    run.accelerator.unwrap_model(run.model, keep_fp32_wrapper=False)
    for model in (run.student, run.result):
        set_drop_path(model, 0.0)
        model.requires_grad_(True)
    return run.result.eval()
