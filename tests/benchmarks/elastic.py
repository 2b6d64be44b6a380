"""Elastic models: slices untrained and repaired, and one elastic run beside twins trained alone.

`python -m tests.benchmarks.elastic slices`, `… twins` and `… train --lr 1e-4 3e-4` print a table each, of the demo or
with `--teacher FOLDER --data D`. Everything is on one thread. A twin is the size repaired on images, along the same
directions; `--plain` trains bare prefixes.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterable, Iterator
from copy import deepcopy
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

from upvit_core.data import ImageSet, draw_proxy
from upvit_core.evaluation import Evaluation, evaluate, run_teacher
from upvit_core.models.checkpoint import LoadedModel, load_model
from upvit_core.models.images import images_for
from upvit_core.pruning.elastic import ElasticModel, cut_size, ladder_sizes, make_elastic, prefix_plan, size_of
from upvit_core.pruning.elastic.training import ElasticSizes
from upvit_core.pruning.repair.repair import repair
from upvit_core.records.elastic import LADDER
from upvit_core.records.ratios import Ratios
from upvit_core.records.shape import ModelShape
from upvit_core.training.batches import TrainingBatches, batch_source
from upvit_core.training.distillation import Distillation, distill, make_accelerator
from upvit_core.training.settings import PRESETS

BETWEEN = ((0.3,) * 3, (0.55,) * 3, (0.6,) * 3, (0.7,) * 3, (0.5, 0.25, 0.75), (0.25, 0.75, 0.5), (0.75, 0.25, 0.5))


class Bench:
    """A teacher with its images, its elastic model, and what it answers to all test images."""

    def __init__(self, asked: argparse.Namespace):
        fitted_to = asked.fitted_to
        self.teacher: LoadedModel = load_model(asked.teacher)
        self.train = images_for(self.teacher, asked.data, "train", labelled=False, apart=True)
        self.test = images_for(self.teacher, asked.data, "val")
        self.logits = run_teacher(self.teacher.model, self.test.batches(250)).logits
        began = time.perf_counter()
        self.elastic: ElasticModel = make_elastic(self.teacher, self.train, n=fitted_to)
        self.proxy = draw_proxy(self.train, fitted_to, 0)
        print(f"made in {time.perf_counter() - began:.0f} s; repairs take {self.elastic.elastic.repair_bytes} bytes")

    def measure(self, model: nn.Module) -> Evaluation:
        return evaluate(model, self.test.batches(250), teacher_logits=self.logits)

    def slice(self, after: ModelShape, *, repair: bool | None = None) -> nn.Module:
        return cut_size(self.elastic.model, self.elastic.elastic, after, repair=repair)

    def twin(self, after: ModelShape) -> nn.Module:
        plan = prefix_plan(self.elastic.elastic.shape, after)
        return repair(self.slice(after, repair=False), self.elastic.model, plan, self.proxy)[0]


class Subset:
    """The batches' source of the first images of a set, shuffled once by seed 0."""

    workers = None

    def __init__(self, whole: ImageSet, count: int):
        self.pixels = whole.pixels
        self.whole, self.chosen = whole, np.random.default_rng(0).permutation(len(whole))[:count]

    def __len__(self) -> int:
        return len(self.chosen)

    def source(self, cfg: dict[str, Any]) -> Subset:
        self.inner = batch_source(self.whole, cfg, seed=0)
        return self

    def load(self, batches: Iterable[tuple[int, list[int]]]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        yield from self.inner.load((epoch, self.chosen[batch].tolist()) for epoch, batch in batches)


def shown(*results: Evaluation) -> str:
    return " | ".join(f"{result.top1:.2f} / {result.kl:.4f}" for result in results)


def sizes_of(shape: ModelShape) -> Iterator[tuple[str, ModelShape]]:
    for share, after in zip((0, 12.5, 25, 37.5, 50, 62.5, 75), ladder_sizes(shape), strict=True):
        yield f"{share:g} %", after
    for shares in BETWEEN:
        yield "/".join(f"{100 * share:g}" for share in shares) + " %", size_of(shape, Ratios(*shares))


def slices(asked: argparse.Namespace) -> None:
    bench = Bench(asked)
    print("| removed | slice, untrained | solved from what was kept | repaired on images | slice, ms | solved, ms |")
    print("|---|---|---|---|---|---|")
    for name, after in sizes_of(bench.elastic.elastic.shape):
        began = time.perf_counter()
        raw = bench.slice(after, repair=False)
        cut = time.perf_counter()
        solved = bench.slice(after)
        done = time.perf_counter()
        row = shown(*map(bench.measure, (raw, solved, bench.twin(after))))
        print(f"| {name} | {row} | {1e3 * (cut - began):.0f} | {1e3 * (done - cut):.0f} |", flush=True)


def run(bench: Bench, student: nn.Module, asked: argparse.Namespace, **changes: Any) -> tuple[nn.Module, float]:
    """The student after distillation, and the CPU seconds of it; `sizes` are a step of an elastic one."""
    settings = PRESETS["repaired"].model_copy(update={"seed": asked.seed, **changes})
    record = replace(bench.elastic.elastic, moments={}, corrections={}) if asked.plain else bench.elastic.elastic
    images = Subset(images_for(bench.teacher, asked.data, "train", apart=True), asked.images)
    job = Distillation(
        deepcopy(student).requires_grad_(True),
        bench.teacher.model,
        TrainingBatches(images.source(bench.teacher.pretrained_cfg), batch_size=settings.batch_size, seed=asked.seed),
        settings,
        epochs=asked.epochs,
        num_classes=bench.teacher.shape.num_classes,
        accelerator=make_accelerator("cpu", "no"),
        sizes=ElasticSizes(record, settings) if "sizes" in changes else None,
    )
    began = time.process_time()
    return distill(job, report=lambda row: None, after_step=lambda job: None), time.process_time() - began


def twins(asked: argparse.Namespace) -> None:
    bench = Bench(asked)
    print("| removed | twin before | twin alone | CPU seconds |\n|---|---|---|---|")
    for share, after in zip(asked.shares, ladder_sizes(bench.teacher.shape, asked.shares), strict=True):
        start = bench.twin(after) if share else bench.teacher.model
        alone, seconds = run(bench, start, asked)
        print(f"| {100 * share:g} % | {shown(*map(bench.measure, (start, alone)))} | {seconds:.0f} |", flush=True)


def train(asked: argparse.Namespace) -> None:
    bench = Bench(asked)
    repair = False if asked.plain else None
    for lr in asked.lr:
        trained, seconds = run(bench, bench.elastic.model, asked, sizes=asked.sizes, lr=lr)
        print(f"one elastic run, lr {lr:g}, {asked.sizes} sizes a step: {seconds:.0f} CPU seconds")
        print("| removed | slice before | slice after |\n|---|---|---|")
        for name, after in sizes_of(bench.elastic.elastic.shape):
            thin = cut_size(trained, bench.elastic.elastic, after, repair=repair)
            print(f"| {name} | {shown(*map(bench.measure, (bench.slice(after, repair=repair), thin)))} |")
        print(flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.elastic", description=__doc__)
    parser.add_argument("what", choices=("slices", "twins", "train"))
    parser.add_argument("--teacher", default="demo")
    parser.add_argument("--data", default="demo")
    parser.add_argument("--fitted-to", type=int, default=2000)
    parser.add_argument("--images", type=int, default=12000)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--lr", type=float, nargs="*", default=[1e-4])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--plain", action="store_true")
    parser.add_argument("--sizes", type=int, default=3)
    parser.add_argument("--shares", type=float, nargs="*", default=list(LADDER))
    asked = parser.parse_args()
    torch.set_num_threads(1)
    {"slices": slices, "twins": twins, "train": train}[asked.what](asked)


if __name__ == "__main__":
    main()
