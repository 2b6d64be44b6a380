"""What a worker does for one run: prepare the student, measure, train, evaluate, save. Imports torch."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from upvit_core.atomic import read_lines
from upvit_core.data import proxy_indices
from upvit_core.errors import Cancelled, LimitError, RunError
from upvit_core.evaluation import Evaluation, Outcomes, TeacherPass, joined, run_teacher, sample_outcomes
from upvit_core.models.checkpoint import build_model, save_model
from upvit_core.out_of_memory import in_halves
from upvit_core.profiling.throughput import Throughput, compare, measure
from upvit_core.runs.checkpoints import load_newest, load_step, save_checkpoint
from upvit_core.runs.distributed import Team
from upvit_core.runs.folder import Run
from upvit_core.runs.inputs import RunInputs, Student, load_inputs
from upvit_core.runs.reporter import Reporter, Paused, Terminated
from upvit_core.runs.shared_answers import drop_unwanted, open_teacher_cache
from upvit_core.runs.spec import RunSpec
from upvit_core.runs.tensorboard import FOLDER, EventLog
from upvit_core.training.batches import TokenBlocks, TrainingBatches, batch_source
from upvit_core.training.distillation import Distillation, distill, make_accelerator
from upvit_core.training.settings import evaluation_steps

EVAL_BATCH = {"cpu": 250, "cuda": 500}
SPEED_BATCH = {"cpu": 32, "cuda": 128}
SPEED_SECONDS = 4.0


class Evaluator:
    """Evaluates on a fixed, seeded choice of test images, shared by the processes of a run.

    The teacher's outcomes are kept, and its logits where they are few.
    """

    def __init__(self, inputs: RunInputs, count: int | None, seed: int, reporter: Reporter, team: Team):
        self.teacher, self.images, self.shape = inputs.teacher, inputs.test, inputs.student.shape
        self.reporter, self.team, self.device = reporter, team, team.accelerator.device
        self.indices: np.ndarray | None = None
        if count is not None and count < len(self.images):
            self.indices = proxy_indices(self.images, count, seed)
        self._passes: dict[bool, TeacherPass] = {}

    def _teacher_pass(self, everything: bool) -> TeacherPass:
        """The teacher on this process's share of the images, run once."""
        assert self.teacher is not None
        everything = everything or self.indices is None
        if everything not in self._passes:
            self._passes[everything] = run_teacher(self.teacher, self._batches(everything), progress=self._check_alone)
        return self._passes[everything]

    def teacher_result(self, everything: bool = False) -> Evaluation:
        return self._summary(self._teacher_pass(everything).outcomes, everything)

    def evaluate(self, model: nn.Module, everything: bool = False) -> Evaluation:
        """`everything` takes all test images in place of the choice."""
        logits = None if self.teacher is None else self._teacher_pass(everything).logits
        outcomes = sample_outcomes(
            model,
            self._batches(everything),
            teacher=self.teacher,
            teacher_logits=logits,
            progress=self._check_alone,
        )
        return self._summary(outcomes, everything)

    def _summary(self, outcomes: Outcomes, everything: bool) -> Evaluation:
        """Over the samples of all processes that share the images."""
        return (joined([self.team.join(outcomes.columns)]) if self._shared(everything) else outcomes).summary()

    def _indices(self, everything: bool) -> np.ndarray:
        return np.arange(len(self.images)) if everything or self.indices is None else self.indices

    def _shared(self, everything: bool) -> bool:
        return 1 < self.team.size <= len(self._indices(everything))

    def _batches(self, everything: bool) -> Iterator[tuple[Tensor, Tensor]]:
        indices = self._indices(everything)
        if self._shared(everything):
            indices = indices[self.team.rank :: self.team.size]
        size = self.shape.batch_size(EVAL_BATCH[self.device.type])
        return self.images.batches(size, indices=indices, device=self.device)

    def _check_alone(self, done: int) -> None:
        if self.team.size == 1:  # one process alone must not stop in here, while the others wait for it
            self.reporter.check()


def do_run(run: Run, reporter: Reporter) -> None:
    """Everything from the order to `model/`; goes on from the newest checkpoint where there is one.

    Started together by a launcher, processes train as one; the first one alone writes and measures.
    """
    spec, settings = run.spec, run.spec.settings
    accelerator = make_accelerator(_device_of(spec), settings.amp)
    team = Team(accelerator)
    if settings.tensorboard and team.leads:
        reporter.events = EventLog(run.folder / FOLDER, read_lines(run.metrics)[0])
    saved = load_newest(run.checkpoints, reporter.log) if team.leads else None
    step = team.told(None if saved is None else int(saved["step"]))
    if saved is None and step is not None:
        saved = load_step(run.checkpoints, step)
    threads = (saved or {}).get("threads") or settings.threads
    if threads is not None:
        torch.set_num_threads(threads)
    materials = load_inputs(spec, saved, reporter, accelerator.device)
    student = materials.student
    if saved is None and settings.from_scratch:
        fresh = build_model(student.shape, seed=settings.seed, weight_init="jax")
        student = replace(student, model=fresh)
    student.model.to(accelerator.device)

    source = batch_source(
        materials.train,
        student.pretrained_cfg,
        seed=settings.seed,
        augment=settings.augmentation != "none",
        workers=settings.workers,
    )
    batches = TrainingBatches(
        source, batch_size=settings.batch_size, seed=settings.seed, rank=team.rank, processes=team.size
    )
    job = Distillation(
        student.model,
        materials.teacher,
        batches,
        settings,
        epochs=spec.epochs,
        num_classes=student.shape.num_classes,
        accelerator=accelerator,
        notify=reporter.note,
    )
    job.store = open_teacher_cache(run, job, materials.train, student.pretrained_cfg)
    examiner = Evaluator(materials, settings.eval_images, settings.seed, reporter, team)
    reporter.update(total_steps=job.total_steps, epochs=spec.epochs, step=0, epoch=0.0)
    if saved is None:
        job.parts = team.told(reporter.parts)
        _first_rows(job, examiner, reporter)
    else:
        job.load_state_dict(saved)
        reporter.log(f"going on from step {job.step} of {job.total_steps}")

    def save() -> None:
        extra = {"shape": student.shape.to_dict(), "plan_json": student.plan_json, "threads": torch.get_num_threads()}
        state = job.state_dict()
        if team.leads:
            save_checkpoint(run.checkpoints, state | extra)

    if saved is None:
        save()
    reporter.stage("training")
    _train(job, examiner, reporter, save)

    reporter.stage("evaluating")
    result = job.result.eval()
    if any(team.agree(team.leads and not reporter.has_row("final", job.step))):
        _final_row(job, examiner, reporter)
    reporter.stage("saving the model")
    if team.leads:
        _save_result(run, result, student)
        shutil.rmtree(run.checkpoints, ignore_errors=True)
        if job.store is not None:
            drop_unwanted(run)


def _train(job: Distillation, examiner: Evaluator, reporter: Reporter, save: Callable[[], None]) -> None:
    settings, team = job.settings, examiner.team
    steps = frozenset(evaluation_steps(job.total_steps, job.batches.steps_per_epoch, settings.eval_every))
    began, first = time.monotonic(), job.step
    last_saved = began

    def lacks_evaluation() -> bool:
        return team.leads and job.step in steps and not reporter.has_row("eval", job.step)

    def after_step(job: Distillation) -> None:
        nonlocal last_saved
        now = time.monotonic()
        per_step = (now - began) / (job.step - first)
        reporter.update(
            step=job.step, epoch=job.step / job.batches.steps_per_epoch, seconds=round(job.seconds, 1),
            seconds_left=round(per_step * (job.total_steps - job.step), 1),
        )  # fmt: skip
        stop, due, evaluate = team.agree(
            reporter.stopping, now - last_saved > 60 * settings.checkpoint_minutes, lacks_evaluation()
        )
        try:
            if stop:
                reporter.stop()
            if evaluate:
                _eval_row(job, examiner, reporter)
        except (Cancelled, Paused, Terminated, LimitError):
            save()
            raise
        if due:
            save()
            last_saved = time.monotonic()

    if any(team.agree(lacks_evaluation())):  # it was stopped before it could evaluate
        _eval_row(job, examiner, reporter)
    distill(job, report=reporter.row, after_step=after_step)


def _first_rows(job: Distillation, examiner: Evaluator, reporter: Reporter) -> None:
    """The student's point before any training; with a teacher, its point too, speeds measured in turns."""
    reporter.stage("measuring the speed")
    team = examiner.team
    original, thin, ratio = team.told(_speeds(job, examiner) if team.leads else (None, None, 0.0))
    assert thin is not None
    reporter.update(images_per_s=thin.images_per_s)
    if original is None:
        reporter.stage("evaluating before training")
        _note(reporter, "start", job, examiner.evaluate(job.student), _speed(thin))
        return
    reporter.stage("evaluating the teacher")
    teacher = examiner.teacher_result()
    reporter.row(_row("teacher", job, teacher) | _speed(original))
    reporter.update(teacher_top1=teacher.top1)
    reporter.stage("evaluating the student after surgery")
    _note(reporter, "surgery", job, examiner.evaluate(job.student), _speed(thin) | {"speedup": ratio})


def _speeds(job: Distillation, examiner: Evaluator) -> tuple[Throughput | None, Throughput | None, float]:
    """Speed of the teacher, where there is one, of the student, and their ratio, measured in turns."""
    device = job.accelerator.device
    size = examiner.shape.batch_size(SPEED_BATCH[device.type])
    batch = next(iter(examiner.images.batches(size, device=device)))[0]
    dtype = {"no": "float32", "bf16": "bfloat16", "fp16": "float16"}[job.accelerator.mixed_precision]
    teacher, student = job.teacher, job.student
    if teacher is None:
        _, (speed,) = next(
            in_halves(lambda images: measure([student], images, dtype=dtype, repeats=30, seconds=SPEED_SECONDS), batch)
        )
        return None, speed, 1.0
    _, both = next(
        in_halves(
            lambda images: compare(teacher, student, images, dtype=dtype, repeats=30, seconds=SPEED_SECONDS), batch
        )
    )
    return both.first, both.second, both.ratio


def _eval_row(job: Distillation, examiner: Evaluator, reporter: Reporter) -> None:
    _note(reporter, "eval", job, examiner.evaluate(job.result), {"images_per_s": reporter.state.images_per_s})


def _final_row(job: Distillation, examiner: Evaluator, reporter: Reporter) -> None:
    """The end on all test images; before it on the choice, so that the curve's last point is of the same images."""
    if examiner.indices is not None:
        _eval_row(job, examiner, reporter)
    result = examiner.evaluate(job.result, everything=True)
    extra = {"images_per_s": reporter.state.images_per_s}
    if job.teacher is not None:
        teacher = examiner.teacher_result(everything=True)
        reporter.update(teacher_top1=teacher.top1)
        extra["teacher_top1"] = teacher.top1
        if _reads_text(job):
            extra["teacher_perplexity"] = teacher.perplexity
    _note(reporter, "final", job, result, extra)


def _note(reporter: Reporter, phase: str, job: Distillation, result: Evaluation, extra: dict[str, Any]) -> None:
    reporter.row(_row(phase, job, result) | extra)
    kl = "" if result.kl is None else f", KL {result.kl:.4f} nats"
    found = f"top-1 {result.top1:.2f} % of {result.images} images"
    perplexity = None
    if _reads_text(job):
        perplexity = result.perplexity
        found = f"perplexity {perplexity:.3f} of {result.images} tokens"
    reporter.log(f"{phase} at step {job.step}: {found}{kl}")
    reporter.update(now=True, top1=result.top1, top1_images=result.images, perplexity=perplexity)


def _reads_text(job: Distillation) -> bool:
    return isinstance(job.batches.source, TokenBlocks)


def _row(phase: str, job: Distillation, result: Evaluation) -> dict[str, Any]:
    row = {
        "step": job.step, "epoch": job.step / job.batches.steps_per_epoch, "phase": phase, "top1": result.top1,
        "top5": result.top5, "ce": result.loss, "images": result.images, "seconds": round(job.seconds, 3),
    }  # fmt: skip
    if _reads_text(job):
        row["perplexity"] = result.perplexity
    return row if result.kl is None else row | {"kl_teacher": result.kl}


def _speed(speed: Throughput) -> dict[str, Any]:
    return {
        "images_per_s": speed.images_per_s, "images_per_s_low": speed.low, "images_per_s_high": speed.high,
        "repeats": speed.repeats, "batch_size": speed.batch_size, "dtype": speed.dtype, "device": speed.device,
        "threads": speed.threads,
    }  # fmt: skip


def _save_result(run: Run, model: nn.Module, student: Student) -> None:
    temporary = run.folder / ".model"
    for leftover in (temporary, run.model):
        shutil.rmtree(leftover, ignore_errors=True)
    save_model(
        model, temporary, shape=student.shape, pretrained_cfg=student.pretrained_cfg, plan_json=student.plan_json,
        name=run.spec.name, class_names=student.class_names,
    )  # fmt: skip
    temporary.rename(run.model)


def _device_of(spec: RunSpec) -> str:
    wanted = spec.device.partition(":")[0]
    if wanted == "cuda" and not torch.cuda.is_available():
        raise RunError(f"The run asks for {spec.device}, and torch finds no GPU here; start it with device cpu.")
    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return wanted
