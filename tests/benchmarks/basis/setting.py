"""The setting of every table: a teacher, proxy and test images, the teacher's logits, scores in both bases."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property

from torch import Tensor, nn

from upvit_core.data import ProxySet, draw_proxy, open_images
from upvit_core.evaluation import evaluate, predict
from upvit_core.importance.score import score
from upvit_core.models.build import adapt
from upvit_core.models.checkpoint import LoadedModel, load_model
from upvit_core.paths import DEMO_FOLDER
from upvit_core.planning.ratios import Ratios, plan_uniform
from upvit_core.pruning.basis import ProxyStatistics, collect_statistics, directions_scores, prune_directions
from upvit_core.pruning.repair import repair
from upvit_core.pruning.surgery import prune
from upvit_core.records.plan import PruningPlan
from upvit_core.records.scores import ImportanceScores


class Setting:
    """One teacher with its images. Statistics and scores are made once, when first asked for, and timed."""

    def __init__(self, teacher: str, data: str, images: int, seed: int = 0):
        self.loaded: LoadedModel = load_model(teacher)
        self.data, self.seed = data, seed
        self.seconds: dict[str, float] = {}  # by what they went for
        cfg, classes = self.loaded.pretrained_cfg, self.loaded.shape.num_classes
        self.train, self.test = (
            open_images(data, split, pretrained_cfg=cfg, num_classes=classes) for split in ("train", "val")
        )
        self.proxy: ProxySet = draw_proxy(self.train, min(images, len(self.train)), seed)
        self.batches: list[tuple[Tensor, Tensor]] = list(self.test.batches(250))
        self.teacher_logits, _ = predict(self.loaded.model, self.batches)
        self.teacher_top1 = self.measure(self.loaded.model)[0]

    @contextmanager
    def timed(self, what: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.seconds[what] = time.perf_counter() - began

    @cached_property
    def stats(self) -> ProxyStatistics:
        with self.timed("statistics"):
            return collect_statistics(adapt(self.loaded.model, self.loaded.shape), self.proxy)

    @cached_property
    def channels(self) -> ImportanceScores:
        """The demo's own exact scores of 2,000 images, else `fisher` of the proxy images."""
        if (self.loaded.name, self.data) == ("demo", "demo"):
            return ImportanceScores.load(DEMO_FOLDER / "scores.safetensors")
        with self.timed("scores of channels"):
            return score(self.loaded, self.train, "fisher", n=len(self.proxy), seed=self.seed)

    @cached_property
    def directions(self) -> ImportanceScores:
        stats = self.stats
        with self.timed("scores of directions"):
            return directions_scores(adapt(self.loaded.model, self.loaded.shape), self.proxy, stats)

    def plan(self, basis: str, ratio: float, heads: int | None = None) -> PruningPlan:
        scores = self.directions if basis == "directions" else self.channels
        return plan_uniform(scores, Ratios.equal(ratio), heads=heads, snap=True, basis=basis)

    def cut(self, plan: PruningPlan) -> nn.Module:
        with self.timed("cut"):
            if plan.basis == "directions":
                return prune_directions(self.loaded.model, self.loaded.shape, plan, self.stats)
            return prune(self.loaded.model, self.loaded.shape, plan)

    def repaired(self, student: nn.Module, plan: PruningPlan) -> nn.Module:
        stats = self.stats if plan.basis == "directions" else None
        with self.timed("repair"):
            return repair(student, self.loaded.model, plan, self.proxy, stats=stats)[0]

    def measure(self, student: nn.Module) -> tuple[float, float]:
        """Top-1 in percent and the mean KL to the teacher in nats, on all test images."""
        result = evaluate(student, self.batches, teacher_logits=self.teacher_logits)
        assert result.kl is not None
        return result.top1, result.kl
