"""Measures the demo's tour: top-1 and answers at every position of the first screen's slider, and throughput."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from upvit_core.data import ImageSet, ProxySet, draw_proxy, open_images
from upvit_core.evaluation import evaluate
from upvit_core.importance.criterion import Clock, Report, silent
from upvit_core.models.build import adapt
from upvit_core.models.checkpoint import LoadedModel, load_model
from upvit_core.models.predict import predict
from upvit_core.planning.what_if import MAX_REMOVED_PERCENT, WhatIf
from upvit_core.profiling.throughput import CLOCKS, compare
from upvit_core.pruning.basis import collect_statistics
from upvit_core.pruning.prune import cut
from upvit_core.records.basis import Basis
from upvit_core.records.scores import ImportanceScores
from upvit_core.records.tour import Answer, Speed, Tour, Way
from upvit_core.units import wilson_interval

IMAGES, FITTED_TO, PICTURES, BATCH, ROUNDS = 1000, 500, 8, 32, 30
EVERY = 5  # percent between two shapes whose throughput is measured
POSITIONS = range(MAX_REMOVED_PERCENT + 1)


class Measurer:
    """Cuts and evaluates the demo at positions of the slider: `percent` of everything, all heads kept."""

    def __init__(self, folder: Path):
        self.loaded: LoadedModel = load_model(folder)
        cfg, root = self.loaded.pretrained_cfg, str(folder)
        self.test, self.train = (
            open_images("demo", split, pretrained_cfg=cfg, num_classes=10, root=root) for split in ("val", "train")
        )
        self.held_out: ProxySet = draw_proxy(self.test, IMAGES, 0)
        self.batches = list(self.held_out.batches(250))
        adapter = adapt(self.loaded.model, self.loaded.shape)
        self.stats = collect_statistics(adapter, draw_proxy(self.train, FITTED_TO, 0))
        self.scores = {
            "paper": ImportanceScores.load(folder / "scores.safetensors"),
            "repaired": ImportanceScores.load(folder / "directions.safetensors"),
        }
        self.pictures = _one_a_class(self.test, self.held_out.indices.tolist())

    def cut(self, way: str, percent: int) -> nn.Module:
        """The thin model; the original itself at 0."""
        if not percent:
            return self.loaded.model
        repair = way == "repaired"
        basis = Basis.DIRECTIONS if repair else Basis.CHANNELS
        heads = self.loaded.shape.num_heads
        plan = WhatIf(percent, percent, heads, percent, basis, repair).plan(self.scores[way])
        return cut(self.loaded, plan, repair=repair, data=self.train, images=FITTED_TO, seed=0, stats=self.stats)

    def look(self, model: nn.Module) -> tuple[float, tuple[Answer, ...]]:
        """Top-1 in percent of the held-out images, and the answers to the pictures."""
        logits, _ = predict(model, self.test.batches(1, indices=self.pictures))
        probability, label = logits.softmax(-1).max(-1)
        answers = tuple((int(number), round(100 * float(p), 1)) for number, p in zip(label, probability, strict=True))
        return round(evaluate(model, self.batches).top1, 3), answers


def measure_tour(folder: Path, *, report: Report = silent) -> Tour:
    """The tour of the demo in `folder`; minutes on a CPU."""
    measurer = Measurer(folder)
    clock = Clock(2 * len(POSITIONS), "cuts", report)
    ways = {}
    for name, scores in measurer.scores.items():
        found = []
        for percent in POSITIONS:
            found.append(measurer.look(measurer.cut(name, percent)))
            clock.advance(1, "")
        top1, answers = zip(*found, strict=True)
        repair = name == "repaired"
        ways[name] = Way(basis=scores.basis, repair=repair, scores_digest=scores.digest, top1=top1, answers=answers)
    low, high = wilson_interval(round(ways["paper"].top1[0] * IMAGES / 100), IMAGES)
    return Tour(
        model_digest=measurer.loaded.digest,
        data=measurer.test.name,
        data_digest=measurer.held_out.digest,
        images=IMAGES,
        fitted_to=FITTED_TO,
        interval=(round(100 * low, 2), round(100 * high, 2)),
        classes=tuple(measurer.test.answer_names),
        pictures=tuple(_png(measurer.test, index) for index in measurer.pictures),
        labels=tuple(int(measurer.test.answers([index])[0]) for index in measurer.pictures),
        ways=ways,
        speed=measure_speed(measurer),
    )


def measure_speed(measurer: Measurer) -> Speed:
    """By the time of one thread, which other programs disturb less than the clock on the wall."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _speed(measurer)
    finally:
        torch.set_num_threads(before)


def _speed(measurer: Measurer) -> Speed:
    images, _ = next(iter(measurer.held_out.batches(BATCH)))
    ratios, rates, result = {0: 1.0}, [], None
    for percent in POSITIONS[EVERY::EVERY]:
        result = compare(
            measurer.loaded.model, measurer.cut("paper", percent), images, repeats=ROUNDS, clock=CLOCKS["cpu"]
        )
        ratios[percent] = round(result.ratio, 3)
        rates.append(result.first.images_per_s)
    assert result is not None
    middle = sorted(rates)[len(rates) // 2]
    return Speed(
        device=result.first.device,
        threads=torch.get_num_threads(),
        batch=BATCH,
        rounds=ROUNDS,
        images_per_s=round(middle, 1),
        ratio=ratios,
    )


def _one_a_class(data: ImageSet, indices: Sequence[int]) -> list[int]:
    """The first image of each of the first classes."""
    chosen: dict[int, int] = {}
    for index in indices:
        chosen.setdefault(int(data.answers([index])[0]), index)
        if len(chosen) == PICTURES:
            break
    return list(chosen.values())


def _png(data: ImageSet, index: int) -> str:
    stream = io.BytesIO()
    data.image(index).save(stream, "PNG")
    return base64.b64encode(stream.getvalue()).decode()
