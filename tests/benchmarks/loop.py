"""Where the time of a training step goes, on the demo at 50 % of every component and half the heads.

python -m tests.benchmarks.loop --steps 60

Three runs of the same steps take turns, so that all see the same load: one that asks the teacher, one that stores its
answers (all classes) and one that reads them. "rest" is all time outside the teacher's forward pass, the student's
forward and backward passes and the optimiser: loading, augmentation, mixing, loss, averaging, logging.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch

from tests.benchmarks.report import publish
from upvit_core.data import open_images
from upvit_core.models.checkpoint import load_model
from upvit_core.paths import DEMO_FOLDER
from upvit_core.planning.ratios import plan_uniform
from upvit_core.pruning.prune import cut
from upvit_core.records.scores import ImportanceScores
from upvit_core.training.batches import TrainingBatches, batch_source
from upvit_core.training.distillation import Distillation, isolated_rng, make_accelerator
from upvit_core.training.settings import PRESETS
from upvit_core.training.teacher_cache import TeacherStore

PARTS = ("teacher", "student forward", "backward", "optimiser")


class Clock:
    """Seconds spent in calls, by name."""

    def __init__(self) -> None:
        self.spent: dict[str, float] = defaultdict(float)

    def timed(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*given: Any, **named: Any) -> Any:
            began = time.perf_counter()
            try:
                return call(*given, **named)
            finally:
                self.spent[name] += time.perf_counter() - began

        return wrapped


def make_job(clock: Clock, store: TeacherStore | None) -> Distillation:
    loaded = load_model("demo")
    scores = ImportanceScores.load(DEMO_FOLDER / "scores.safetensors")
    plan = plan_uniform(scores, residual=0.5, attention=0.5, ffn=0.5, heads=3)
    settings = PRESETS["demo"]
    train = open_images("demo", "train", pretrained_cfg=loaded.pretrained_cfg, num_classes=10)
    source = batch_source(train, loaded.pretrained_cfg, seed=0, workers=0)
    batches = TrainingBatches(source, batch_size=settings.batch_size, seed=0)
    accelerator = make_accelerator("cpu", "no")
    job = Distillation(
        cut(loaded, plan), loaded.model, batches, settings, epochs=4, num_classes=10, accelerator=accelerator
    )
    job.store = store
    assert job.teacher is not None
    job.teacher.forward = clock.timed("teacher", job.teacher.forward)  # type: ignore[method-assign]
    job.model.forward = clock.timed("student forward", job.model.forward)  # type: ignore[method-assign]
    accelerator.backward = clock.timed("backward", accelerator.backward)  # type: ignore[method-assign]
    job.optimizer.step = clock.timed("optimiser", job.optimizer.step)  # type: ignore[method-assign]
    return job


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as folder, isolated_rng():
        path = Path(folder) / "answers.bin"
        ways = {"asks the teacher": None}
        ways |= {
            name: TeacherStore(path, images=64, classes=10, k=10)
            for name in ("stores its answers", "reads them")
        }  # fmt: skip
        clocks = {name: Clock() for name in ways}
        jobs = {name: make_job(clocks[name], store) for name, store in ways.items()}
        batches = {name: job.batches.epoch(0) for name, job in jobs.items()}
        seconds: dict[str, list[float]] = defaultdict(list)
        for step in range(arguments.steps + 3):
            for name, job in jobs.items():
                if step == 3:
                    clocks[name].spent.clear()
                    seconds[name].clear()
                began = time.perf_counter()
                job.train_step(*next(batches[name]))
                if job.step % job.log_every == 0:
                    job.take_row()
                seconds[name].append(time.perf_counter() - began)
    rows = []
    plain = median(seconds["asks the teacher"])
    for name in jobs:
        total = sum(seconds[name])
        parts = {part: clocks[name].spent[part] for part in PARTS}
        shares = {f"{part} %": 100 * spent / total for part, spent in parts.items()}
        rows.append(
            {"run": name, "ms a step": 1000 * median(seconds[name]), "times as fast": plain / median(seconds[name]),
             **shares, "rest %": 100 * (1 - sum(parts.values()) / total)}
        )  # fmt: skip
    same = all(
        torch.equal(a, b)
        for name in ("stores its answers", "reads them")
        for a, b in zip(jobs["asks the teacher"].student.parameters(), jobs[name].student.parameters(), strict=True)
    )
    publish("The loop", rows, arguments.out, steps=arguments.steps, batch_size=64, same_weights=same)


if __name__ == "__main__":
    main()
