"""A run from its order to its model: open, measure, train, evaluate, save (`TrainingRun.execute`). Imports torch."""

import shutil
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from math import isnan
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from upvit_core.atomic import read_lines
from upvit_core.data import proxy_indices
from upvit_core.errors import Cancelled, LimitError, RunError
from upvit_core.evaluation import Evaluation, Outcomes, TeacherPass, joined, readout_of, run_teacher, sample_outcomes
from upvit_core.models.checkpoint import build_model, load_model, save_model
from upvit_core.out_of_memory import in_halves
from upvit_core.profiling.throughput import Throughput, compare, measure
from upvit_core.pruning.elastic.folder import SCORES
from upvit_core.pruning.elastic.training import ElasticSizes
from upvit_core.records.scores import ImportanceScores
from upvit_core.records.task import task_of
from upvit_core.runs.checkpoints import load_newest, load_step, save_checkpoint
from upvit_core.runs.distributed import LateVote, Team
from upvit_core.runs.examples import Examples
from upvit_core.runs.folder import Run
from upvit_core.runs.inputs import RunInputs, load_inputs
from upvit_core.runs.ladder import KEY, Ladder
from upvit_core.runs.reporter import Paused, Reporter, Terminated
from upvit_core.runs.shared_answers import drop_unwanted, open_teacher_cache
from upvit_core.runs.spec import RunSpec
from upvit_core.runs.tensorboard import FOLDER, EventLog
from upvit_core.training.batches import TokenBlocks
from upvit_core.training.distillation import Distillation, Row, distill, make_accelerator
from upvit_core.training.settings import evaluation_steps

EVAL_BATCH = {"cpu": 250, "cuda": 500}
SPEED_BATCH = {"cpu": 32, "cuda": 128}
SPEED_SECONDS = 4.0


class Evaluator:
    """Evaluates on a fixed, seeded choice of test images, shared by the processes of a run.

    The teacher's outcomes are kept, and its logits where they are few. Teacher, student and averaged weights are
    all run in the run's precision.
    """

    def __init__(self, inputs: RunInputs, count: int | None, seed: int, reporter: Reporter, team: Team):
        self.teacher, self.images, self.shape = inputs.teacher, inputs.test, inputs.student.shape
        self.reporter, self.team, self.device = reporter, team, team.accelerator.device
        self.indices: np.ndarray | None = None
        if count is not None and count < len(self.images):
            self.indices = proxy_indices(self.images, count, seed)
        self.readout = readout_of(self.shape, inputs.train, inputs.test)
        self._passes: dict[bool, TeacherPass] = {}
        self.latest: tuple[Outcomes, Outcomes] | None = None  # of the latest evaluation: the teacher's and the model's

    def _teacher_pass(self, everything: bool) -> TeacherPass:
        """The teacher on this process's share of the images, run once."""
        assert self.teacher is not None
        everything = everything or self.indices is None
        if everything not in self._passes:
            with self.team.accelerator.autocast():
                batches = self._batches(everything)
                self._passes[everything] = run_teacher(
                    self.teacher, batches, progress=self._check_alone, readout=self.readout
                )
        return self._passes[everything]

    def teacher_result(self, everything: bool = False) -> Evaluation:
        return self._of_all(self._teacher_pass(everything).outcomes, everything).summary()

    def evaluate(self, model: nn.Module, everything: bool = False) -> Evaluation:
        """`everything` takes all test images in place of the choice."""
        logits = None if self.teacher is None else self._teacher_pass(everything).logits
        batches, teacher = self._batches(everything), self.teacher
        with self.team.accelerator.autocast():
            outcomes = sample_outcomes(
                model, batches, teacher=teacher, teacher_logits=logits, progress=self._check_alone, readout=self.readout
            )
        outcomes = self._of_all(outcomes, everything)
        if teacher is not None:
            self.latest = self._of_all(self._teacher_pass(everything).outcomes, everything), outcomes
        return outcomes.summary()

    def _of_all(self, outcomes: Outcomes, everything: bool) -> Outcomes:
        """The outcomes of all processes, where they share the images."""
        return joined([self.team.concatenate(outcomes.columns)]) if self._shared(everything) else outcomes

    def chosen(self, everything: bool = False) -> np.ndarray:
        """Indices of the test images that are evaluated."""
        return np.arange(len(self.images)) if everything or self.indices is None else self.indices

    def _shared(self, everything: bool) -> bool:
        return self.readout.is_shared and 1 < self.team.size <= len(self.chosen(everything))

    def _batches(self, everything: bool) -> Iterator[tuple[Tensor, Tensor]]:
        indices = self.chosen(everything)
        if self._shared(everything):
            indices = indices[self.team.rank :: self.team.size]
        size = self.shape.batch_size(EVAL_BATCH[self.device.type])
        return self.images.batches(size, indices=indices, device=self.device)

    def _check_alone(self, done: int) -> None:
        if self.team.size == 1:  # one process alone must not stop in here, while the others wait for it
            self.reporter.check()


class TrainingRun:
    """One run in this process: from the order to `model/`, from the newest checkpoint on where there is one.

    Started together by a launcher, processes train as one; the first one alone writes and measures.
    """

    def __init__(self, run: Run, reporter: Reporter):
        spec, settings = run.spec, run.spec.settings
        self.run, self.reporter, self.settings = run, reporter, settings
        accelerator = make_accelerator(_device_of(spec), settings.amp)
        self.team = team = Team(accelerator)
        if settings.tensorboard and team.is_first:
            reporter.events = EventLog(run.folder / FOLDER, read_lines(run.metrics)[0])
        self.saved = saved = self._newest_checkpoint()
        threads = (saved or {}).get("threads") or settings.threads
        if threads is not None:
            torch.set_num_threads(threads)
        inputs = load_inputs(spec, saved, reporter, accelerator.device)
        student = inputs.student
        if saved is None and settings.from_scratch:
            fresh = build_model(student.shape, seed=settings.seed, weight_init="jax")
            student = replace(student, model=fresh)
        student.model.to(accelerator.device)
        self.student = student
        self.training = training = Distillation.on_images(
            student.model,
            inputs.teacher,
            inputs.train,
            student.pretrained_cfg,
            settings,
            epochs=spec.epochs,
            num_classes=student.shape.classes or 0,
            accelerator=accelerator,
            notify=reporter.note,
            sizes=None if student.elastic is None else ElasticSizes(student.elastic, settings),
        )
        self.ladder = None if student.elastic is None else Ladder(student.elastic, run.metrics)
        if student.elastic is not None and student.scores is not None and team.is_first:
            student.elastic.save(run.folder)
            student.scores.save(run.folder / SCORES)
        training.store = open_teacher_cache(run, training, inputs.train, student.pretrained_cfg)
        self.evaluator = Evaluator(inputs, settings.eval_images, settings.seed, reporter, team)
        self.examples: Examples | None = None
        if team.is_first and not self.reads_text and len(inputs.test.class_names) > 1:
            names = student.class_names or inputs.test.class_names
            self.examples = Examples(run, inputs.test, self.evaluator.chosen(), names, self.evaluator.readout)
        reporter.update(total_steps=training.total_steps, epochs=spec.epochs, step=0, epoch=0.0)

    def _newest_checkpoint(self) -> dict[str, Any] | None:
        """The newest that the first process can read, on every process."""
        folder = self.run.checkpoints
        saved = load_newest(folder, self.reporter.log) if self.team.is_first else None
        step = self.team.broadcast(None if saved is None else int(saved["step"]))
        return load_step(folder, step) if saved is None and step is not None else saved

    def execute(self) -> None:
        """Measure the start, train, evaluate the end, save the model."""
        training, reporter = self.training, self.reporter
        if self.saved is None:
            training.parts = self.team.broadcast(reporter.parts)
            self.evaluate_start()
            self.save_checkpoint()
        else:
            training.load_state_dict(self.saved)
            reporter.log(f"going on from step {training.step} of {training.total_steps}")
        reporter.stage("training")
        self.train()
        reporter.stage("evaluating")
        training.result.eval()
        if any(self.team.agree(self.lacks_row("final"))):
            self.evaluate_end()
        reporter.stage("saving the model")
        if self.team.is_first:
            self.save_model()

    def evaluate_start(self) -> None:
        """The student's point before any training; with a teacher, its point too, speeds measured in turns."""
        reporter, evaluator = self.reporter, self.evaluator
        reporter.stage("measuring the speed")
        original, thin, ratio = self.team.broadcast(self.speeds() if self.team.is_first else (None, None, 0.0))
        assert thin is not None
        reporter.update(images_per_s=thin.images_per_s)
        if original is None:
            reporter.stage("evaluating before training")
            self.report("start", evaluator.evaluate(self.training.student), _speed(thin))
            return
        reporter.stage("evaluating the teacher")
        teacher = evaluator.teacher_result()
        reporter.row(self.row("teacher", teacher) | _speed(original))
        reporter.update(teacher_top1=teacher.top1)
        assert self.training.teacher is not None
        self.ask_examples("teacher", self.training.teacher)
        reporter.stage("evaluating the student after surgery")
        result, sizes = self.measured(self.training.student)
        self.report("surgery", result, _speed(thin) | {"speedup": ratio} | sizes)

    def measured(self, model: nn.Module, everything: bool = False) -> tuple[Evaluation, Row]:
        """A model's evaluation; of an elastic one, that of every size of its ladder beside it."""
        evaluate = partial(self.evaluator.evaluate, everything=everything)
        result = evaluate(model)
        if self.examples is not None and self.evaluator.latest is not None:
            self.examples.keep_classes(*self.evaluator.latest)
        return result, {} if self.ladder is None else {KEY: self.ladder.rows(model, result, evaluate)}

    def speeds(self) -> tuple[Throughput | None, Throughput | None, float]:
        """Speed of the teacher, where there is one, of the student, and their ratio, measured in turns."""
        accelerator, evaluator = self.training.accelerator, self.evaluator
        device = accelerator.device
        size = evaluator.shape.batch_size(SPEED_BATCH[device.type])
        batch = next(iter(evaluator.images.batches(size, device=device)))[0]
        dtype = {"no": "float32", "bf16": "bfloat16", "fp16": "float16"}[accelerator.mixed_precision]
        teacher, student = self.training.teacher, self.training.student
        if self.ladder is not None:
            every = partial(measure, self.ladder.cut(student), dtype=dtype, repeats=30, seconds=SPEED_SECONDS)
            self.ladder.speeds = [speed.images_per_s for speed in next(in_halves(every, batch))[1]]
        if teacher is None:
            alone = partial(measure, [student], dtype=dtype, repeats=30, seconds=SPEED_SECONDS)
            _, (speed,) = next(in_halves(alone, batch))
            return None, speed, 1.0
        beside = partial(compare, teacher, student, dtype=dtype, repeats=30, seconds=SPEED_SECONDS)
        _, both = next(in_halves(beside, batch))
        return both.first, both.second, both.ratio

    def train(self) -> None:
        """Every step that is left, with evaluations and checkpoints in between."""
        training, reporter = self.training, self.reporter
        epoch = training.batches.steps_per_epoch
        steps = frozenset(evaluation_steps(training.total_steps, epoch, self.settings.eval_every))
        began, first = time.monotonic(), training.step
        last_saved, vote = began, self.team.agree if self.settings.plain else LateVote(self.team)

        def after_step(_: Distillation) -> None:
            nonlocal last_saved
            now = time.monotonic()
            per_step = (now - began) / (training.step - first)
            reporter.update(
                step=training.step,
                epoch=training.step / epoch,
                seconds=round(training.seconds, 1),
                seconds_left=round(per_step * (training.total_steps - training.step), 1),
            )
            save_due = now - last_saved > 60 * self.settings.checkpoint_minutes
            stop, save_due = vote(reporter.stopping, save_due)
            try:
                if stop:
                    reporter.stop()
                if training.step in steps and any(self.team.agree(self.lacks_row("eval"))):
                    self.evaluate_now()
            except (Cancelled, Paused, Terminated, LimitError):
                self.save_checkpoint()
                raise
            if save_due:
                self.save_checkpoint()
                last_saved = time.monotonic()

        if training.step in steps and any(self.team.agree(self.lacks_row("eval"))):  # stopped before it could evaluate
            self.evaluate_now()
        distill(training, report=reporter.row, after_step=after_step)

    def evaluate_now(self) -> None:
        extra = {"images_per_s": self.reporter.state.images_per_s}
        result, sizes = self.measured(self.training.result)
        self.report("eval", result, extra | sizes)

    def evaluate_end(self) -> None:
        """On all test images; before it on the choice, so that the curve's last point is of the same images."""
        if self.evaluator.indices is not None:
            self.evaluate_now()
        result, sizes = self.measured(self.training.result, everything=True)
        extra: Row = {"images_per_s": self.reporter.state.images_per_s}
        if self.training.teacher is not None:
            teacher = self.evaluator.teacher_result(everything=True)
            self.reporter.update(teacher_top1=teacher.top1)
            extra["teacher_top1"] = teacher.top1
            if self.reads_text:
                extra["teacher_perplexity"] = teacher.perplexity
        self.report("final", result, extra | sizes)

    @property
    def reads_text(self) -> bool:
        return isinstance(self.training.batches.source, TokenBlocks)

    def lacks_row(self, phase: str) -> bool:
        """True if this process is the one that writes rows, and this step has none of the phase yet."""
        return self.team.is_first and not self.reporter.has_row(phase, self.training.step)

    def row(self, phase: str, result: Evaluation) -> Row:
        training = self.training
        row: Row = {
            "step": training.step,
            "epoch": training.step / training.batches.steps_per_epoch,
            "phase": phase,
            "top1": result.top1,
            "top5": result.top5,
            **({"ce": result.loss} if self.student.shape.classes else {}),
            "images": result.images,
            "seconds": round(training.seconds, 3),
        }
        if self.reads_text:
            row["perplexity"] = result.perplexity
        if result.cosine is not None:
            row["cosine"] = result.cosine
        return row if result.kl is None else row | {"kl_teacher": result.kl}

    def ask_examples(self, moment: str, model: nn.Module) -> None:
        if self.examples is not None:
            self.examples.ask(moment, model, self.training.accelerator.device)

    def report(self, phase: str, result: Evaluation, extra: Row) -> None:
        """Write an evaluation as a row, into the log and into the state."""
        self.reporter.row(self.row(phase, result) | extra)
        perplexity = result.perplexity if self.reads_text else None
        cosine = "" if result.cosine is None else f", mean cosine to the teacher {result.cosine:.4f}"
        top1 = None if isnan(result.top1) else result.top1
        reached = f"{result.images} images without labels{cosine}"
        if top1 is not None:
            reached = f"{task_of(self.student.shape).name} {top1:.2f} % of {result.images} images{cosine}"
        if perplexity is not None:
            reached = f"perplexity {perplexity:.3f} of {result.images} tokens"
        kl = "" if result.kl is None else f", KL {result.kl:.4f} nats"
        self.reporter.log(f"{phase} at step {self.training.step}: {reached}{kl}")
        begins = phase in ("surgery", "start")
        self.ask_examples(phase if begins else "now", self.training.student if begins else self.training.result)
        self.reporter.update(now=True, top1=top1, top1_images=result.images, perplexity=perplexity)

    def save_checkpoint(self) -> None:
        state = self.training.state_dict()  # all processes call it
        if self.team.is_first:
            student = self.student
            state |= {"shape": student.shape.to_dict(), "plan_json": student.plan_json}
            state |= {"class_names": student.class_names, "threads": torch.get_num_threads()}
            save_checkpoint(self.run.checkpoints, state)

    def save_model(self) -> None:
        """Put `model/` in its place as a whole; checkpoints, and teacher's answers that no run needs, go."""
        run, student = self.run, self.student
        temporary = run.folder / ".model"
        for leftover in (temporary, run.model):
            shutil.rmtree(leftover, ignore_errors=True)
        save_model(
            self.training.result,
            temporary,
            shape=student.shape,
            pretrained_cfg=student.pretrained_cfg,
            plan_json=student.plan_json,
            name=run.spec.name,
            class_names=student.class_names,
        )
        if student.elastic is not None:
            digest = load_model(temporary).digest
            student.elastic.trained(digest, self.training.step).save(temporary)
            scores = ImportanceScores.load(run.folder / SCORES)
            replace(scores, model=run.spec.name, model_digest=digest).save(temporary / SCORES)
        temporary.rename(run.model)
        shutil.rmtree(run.checkpoints, ignore_errors=True)
        if self.training.store is not None:
            drop_unwanted(run)


def _speed(speed: Throughput) -> Row:
    return {
        "images_per_s": speed.images_per_s,
        "images_per_s_low": speed.low,
        "images_per_s_high": speed.high,
        **{key: getattr(speed, key) for key in ("repeats", "batch_size", "dtype", "device", "threads")},
    }


def _device_of(spec: RunSpec) -> str:
    wanted = spec.device.partition(":")[0]
    if wanted == "cuda" and not torch.cuda.is_available():
        raise RunError(f"The run asks for {spec.device}, and torch finds no GPU here; start it with device cpu.")
    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return wanted
