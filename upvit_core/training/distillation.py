"""Fine-tuning with the original model as the teacher (Yu & Wu 2023, Eq. 2): L = CE(y, p) + α·T²·KL(q || p).

q is the teacher's softmax at temperature T, p the student's; both terms are means over the batch, in nats, so the loss
depends neither on the batch size nor on the number of processes. (The released code sums the KL over one GPU's batch
and takes 0.2 of it: the preset `released_code`.) CE is against CutMix's soft targets and the teacher sees the mixed
image. At T = 1 the factor T² (Hinton et al. 2015, which keeps the gradient's size) is 1, as in the letter. The last
feature may be matched beside the logits, through a linear map as in FitNets (Romero et al., ICLR 2015).

Optimiser, schedule, weight averaging, CutMix and stochastic depth are timm's; device, mixed precision and processes are
Accelerate's. The random state of step s is a function of (seed, s), so a run resumed at step s is the run itself.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
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
from upvit_core.ranks import part_at_exit
from upvit_core.training.batches import TrainingBatches, batch_source, seed_everything
from upvit_core.training.settings import DistillSettings
from upvit_core.training.teacher_cache import TeacherLogits, TeacherStore

Row = dict[str, Any]
LOGGED_POINTS = 400
PATIENCE = timedelta(hours=2)  # that processes wait for each other: the first one measures alone
_soft_cross_entropy = SoftTargetCrossEntropy()


@dataclass(frozen=True)
class LossParts:
    """Scalars: the loss, its mean cross-entropy and its mean KL before weighting, in nats."""

    loss: Tensor
    ce: Tensor
    kl: Tensor


@contextmanager
def last_feature(model: nn.Module) -> Iterator[list[Tensor]]:
    """A list that receives what the classifier reads, (B, D) or of a text (B, T, D), at every forward pass inside."""
    seen: list[Tensor] = []
    handle = model.get_submodule("head").register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    try:
        yield seen
    finally:
        handle.remove()


def feature_map(student: nn.Module, teacher: nn.Module, seed: int) -> nn.Linear:
    """A linear map from the width of the student's last feature to the teacher's; its weights are drawn by `seed`."""
    inputs, outputs = (model.get_submodule("head").in_features for model in (student, teacher))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Linear(int(inputs), int(outputs))  # type: ignore[arg-type]


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


class Distillation:
    """One run in progress; `state_dict` holds everything that a later step depends on.

    Without a teacher the loss is the cross-entropy alone (fine-tuning), and rows have no `kl`.

    `store`, where one is set, keeps the teacher's logits for other runs, and reads theirs.

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
    ):
        self.parts, self.notify = 1, notify
        self.store: TeacherStore | None = None
        self.settings, self.batches, self.accelerator = settings, batches, accelerator
        self.epochs, self.num_classes = epochs, num_classes
        self.total_steps = epochs * batches.steps_per_epoch
        self.step, self.seconds = 0, 0.0
        set_drop_path(student, settings.drop_path)
        self.student = student.to(accelerator.device)
        if accelerator.num_processes > 1:
            with torch.no_grad():  # the weights of the first process, before a copy of them is made
                broadcast([tensor.data for tensor in student.state_dict().values()])
        self.teacher = None
        if teacher is not None:
            self.teacher = teacher.to(accelerator.device).eval().requires_grad_(False)
        if settings.head_only:
            head = head_parameters([name for name, _ in student.named_parameters()])
            for name, parameter in student.named_parameters():
                parameter.requires_grad_(name in head)
        self.ema = ModelEmaV3(student, decay=settings.ema_decay, use_warmup=True) if settings.ema_decay else None
        optimizer = create_optimizer_v2(
            student, opt="adamw", lr=settings.lr, weight_decay=settings.weight_decay, layer_decay=settings.layer_decay
        )
        self.map: nn.Module | None = None
        if settings.feature_weight and teacher is not None:
            self.map = feature_map(student, teacher, settings.seed).to(accelerator.device)
            optimizer.add_param_group({"params": list(self.map.parameters()), "weight_decay": settings.weight_decay})
        self.projection = None if self.map is None else accelerator.prepare_model(self.map)
        self.model = accelerator.prepare_model(student)
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
                num_classes=num_classes,
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
        self.parts = state.get("parts", 1)
        self.sums.copy_(state["sums"])

    def train_step(self, images: Tensor, labels: Tensor) -> None:
        """One update on this process's images (b, C, H, W) and labels (b,)."""
        settings, device = self.settings, self.accelerator.device
        images, labels = images.to(device, non_blocking=True), labels.to(device, non_blocking=True)
        seed_everything(settings.seed, self.step)
        if labels.ndim == 2:  # tokens, which are not mixed
            flat = mixup_target(labels.flatten(), self.num_classes, smoothing=settings.label_smoothing)
            targets = flat.unflatten(0, labels.shape)
        elif self.mixup is not None:
            images, targets = self.mixup(images, labels)
        else:
            targets = mixup_target(labels, self.num_classes, smoothing=settings.label_smoothing)
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
        if self.projection is None or self.teacher is None:
            return [], []
        return held.enter_context(last_feature(self.student)), held.enter_context(last_feature(self.teacher))

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
        try:
            for first, last in bounds(len(images), self.parts):
                x, share = images[first:last], (last - first) / len(images)
                whole = last == len(images)
                with ExitStack() as held:
                    for module in (self.model, self.projection) if not whole else ():
                        held.enter_context(nullcontext() if module is None else accelerator.no_sync(module))
                    ours, theirs = self._watched(held)
                    with accelerator.autocast():
                        with torch.no_grad():
                            teacher_logits = None
                            if self.teacher is not None:
                                teacher_logits = answers.to(x, first, self.teacher)
                        logits = self.model(x).float()
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
        """Means since the last row, over all processes. Raises RunError where the loss is no longer a number."""
        lr = self.optimizer.param_groups[0]["lr"]
        means = self.accelerator.reduce(self.sums / max(self.summed, 1), reduction="mean")
        loss, ce, kl, *features = means.tolist()
        if not np.isfinite(loss):
            raise RunError(
                f"The loss became {loss} at step {self.step} with a learning rate of {lr:.2g}; "
                "start again with a lower lr."
            )
        self.sums.zero_()
        self.summed = 0
        row = {"step": self.step, "epoch": self.step / self.batches.steps_per_epoch, "phase": "train"}
        row |= {"loss": loss, "ce": ce, "lr": lr, "seconds": round(self.seconds, 3)}
        row |= {"features": features[0]} if features else {}
        return row if self.teacher is None else row | {"kl": kl}


def distill(
    run: Distillation, *, report: Callable[[Row], None], after_step: Callable[[Distillation], None]
) -> nn.Module:
    """Train from where `run` stands to its last step; returns `run.result`, without stochastic depth, in eval mode.

    `report` receives a row of means every `log_every` steps; `after_step` is called after every step, and may evaluate,
    save, or raise to stop. Neither counts in `run.seconds`, and neither may leave the student in another state.
    """
    with isolated_rng():
        while run.step < run.total_steps:
            epoch, first = divmod(run.step, run.batches.steps_per_epoch)
            started = time.perf_counter()
            for images, labels in run.batches.epoch(epoch, first):
                run.train_step(images, labels)
                run.seconds += time.perf_counter() - started
                if run.step % run.log_every == 0 or run.step == run.total_steps:
                    report(run.take_row())
                after_step(run)
                started = time.perf_counter()
    run.accelerator.unwrap_model(run.model, keep_fp32_wrapper=False)
    for model in (run.student, run.result):
        set_drop_path(model, 0.0)
        model.requires_grad_(True)
    return run.result.eval()
