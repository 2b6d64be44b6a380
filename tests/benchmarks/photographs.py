"""Ways to a thinner model of a teacher of your own: right after surgery, after training, and by a shortcut.

`python -m tests.benchmarks.photographs fresh TEACHER` writes an untrained model; `… cut TEACHER DATA` prints top-1,
points lost and KL with 25, 50 and 75 % of everything removed, without training, beside Torch-Pruning where that is
installed. `… train TEACHER DATA --epochs 1` distils half-sized models; `… shortcut TEACHER DATA` compares `fisher` by
few directions with all classes.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import replace
from importlib.util import find_spec
from typing import Any, cast

import torch
from scipy.stats import spearmanr
from torch import nn
from torch.nn import functional as F

import upvit_core as up
from tests.benchmarks.report import machine, table
from upvit_core.data import ImageSet, draw_proxy
from upvit_core.evaluation import Evaluation
from upvit_core.importance.fisher import Fisher
from upvit_core.models.build import adapt, build_model
from upvit_core.models.checkpoint import LoadedModel, save_model
from upvit_core.models.images import images_for
from upvit_core.models.output_directions import LIKELIEST
from upvit_core.planning.ratios import Ratios, plan_uniform
from upvit_core.records.basis import Basis
from upvit_core.records.scores import ImportanceScores
from upvit_core.records.shape import BlockShape, ModelShape
from upvit_core.training.settings import PRESETS

SHARES = (0.25, 0.5, 0.75)
WAYS = ("channels", "channels, repaired", "directions", "directions, repaired")


class Bench:
    """The teacher with its images and what it answers."""

    def __init__(self, asked: argparse.Namespace):
        self.asked = asked
        self.teacher = up.load_model(asked.teacher)
        self.train = images_for(self.teacher, asked.data, "train", labelled=False, apart=True)
        self.test: ImageSet = images_for(self.teacher, asked.data, "val")
        self.scores: dict[tuple[str, int], ImportanceScores] = {}
        found = self.measure(self.teacher)
        self.top1 = found.top1
        print(machine(), f"teacher: {found.top1:.2f} % of {found.images:,} images", flush=True)

    def measure(self, model: LoadedModel) -> Evaluation:
        return up.evaluate(model, self.test, teacher=self.teacher, images=self.asked.test_images)

    def cut(self, way: str, share: float, seed: int, heads: int | None = None) -> LoadedModel:
        basis = Basis(way.split(",")[0])
        if (basis, seed) not in self.scores:
            count = self.asked.images
            self.scores[basis, seed] = up.score(self.teacher, self.train, basis=basis, images=count, seed=seed)
        plan = plan_uniform(self.scores[basis, seed], Ratios.equal(share), heads=heads, snap=True, basis=basis)
        repaired = way.endswith("repaired")
        return up.prune(self.teacher, plan, data=self.train, repair=repaired, images=self.asked.images, seed=seed)

    def peer(self, criterion: str, share: float, seed: int) -> LoadedModel:
        """Torch-Pruning's cut of the same share of every layer, heads kept; q carries the ratio of the roots."""
        import torch_pruning as tp  # type: ignore[import-not-found]

        scored = cast(Any, deepcopy(self.teacher.model).eval().requires_grad_(True))
        if criterion == "Taylor":
            labelled = images_for(self.teacher, self.asked.data, "train")
            for x, labels in draw_proxy(labelled, self.asked.images, seed).batches(50):
                (F.cross_entropy(scored(x), labels, reduction="sum") / self.asked.images).backward()
        made = {"Taylor": tp.importance.GroupTaylorImportance, "L2": tp.importance.GroupMagnitudeImportance}[
            criterion
        ]()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tp.pruner.BasePruner(
                scored,
                torch.zeros(1, self.teacher.shape.in_chans, *self.teacher.shape.img_size),
                importance=made,
                pruning_ratio=share,
                ignored_layers=[scored.head],
                num_heads={block.attn.qkv: block.attn.num_heads for block in scored.blocks},
                out_channel_groups={},
                in_channel_groups={},
                prune_head_dims=True,
                unwrapped_parameters=[(scored.cls_token, 2), (scored.pos_embed, 2)],
            ).step()
        old = self.teacher.shape
        blocks = tuple(
            BlockShape(was.num_heads, block.attn.proj.in_features, block.mlp.fc1.out_features)
            for block, was in zip(scored.blocks, old.blocks, strict=True)
        )
        shape = replace(old, embed_dim=scored.head.in_features, blocks=blocks)
        state = scored.state_dict()
        for b, (new, was) in enumerate(zip(blocks, old.blocks, strict=True)):
            for part in ("weight", "bias"):
                state[f"blocks.{b}.attn.qkv.{part}"][: new.attention] *= (new.head_dim / was.head_dim) ** 0.5
        thin: nn.Module = build_model(shape).eval()
        thin.load_state_dict(state)
        return replace(self.teacher, model=thin, shape=shape)

    def ways(self, share: float, seed: int) -> Iterator[tuple[str, LoadedModel]]:
        for way in WAYS:
            yield way, self.cut(way, share, seed)
        for criterion in ("Taylor", "L2"):
            if find_spec("torch_pruning"):
                yield f"Torch-Pruning {criterion}", self.peer(criterion, share, seed)


def cut(bench: Bench) -> None:
    rows: dict[str, dict[str, Any]] = {}
    for share in SHARES:
        for way, thin in bench.ways(share, 0):
            told(rows, way, f"{share:.0%}", bench.measure(thin), bench.top1)
        heads = bench.teacher.shape.blocks[0].num_heads // 2
        half = bench.measure(bench.cut(WAYS[-1], share, 0, heads=heads))
        told(rows, f"{WAYS[-1]}, half the heads", f"{share:.0%}", half, bench.top1)
    print(table(list(rows.values())))


def told(rows: dict[str, dict[str, Any]], way: str, column: str, found: Evaluation, top1: float) -> None:
    row = rows.setdefault(way, {"way": way})
    row[column] = f"{found.top1:.1f} ({found.top1 - top1:+.1f}), KL {found.kl:.3g}"
    print(way, column, row[column], flush=True)


def train(bench: Bench) -> None:
    rows: dict[str, dict[str, Any]] = {}
    for way, thin in bench.ways(0.5, bench.asked.seed):
        if way not in bench.asked.ways:
            continue
        preset = "repaired" if way.endswith("repaired") else "demo"
        began = time.process_time()
        settings = PRESETS[preset].model_copy(update={"seed": bench.asked.seed})
        student = up.distill(thin, bench.teacher, bench.asked.data, epochs=bench.asked.epochs, settings=settings)
        told(rows, way, f"{bench.asked.epochs} epochs", bench.measure(student), bench.top1)
        rows[way]["CPU seconds"] = round(time.process_time() - began)
    print(table(list(rows.values())))


def shortcut(bench: Bench) -> None:
    """Scores of `fisher` by few output directions, of the likeliest classes or of all, beside those of all classes."""
    adapter = adapt(bench.teacher.model, bench.teacher.shape)
    proxy = draw_proxy(bench.train, bench.asked.images, 0)
    classes = bench.teacher.shape.num_classes
    ways = {f"{n} directions, {of} classes": Fisher(n, num_classes=of) for n in (2, 8) for of in (LIKELIEST, classes)}
    rows, reference = list[dict[str, Any]](), None
    for name, way in {"every class": Fisher(directions="all"), **ways}.items():
        began = time.process_time()
        scores = way.attribute(adapter, proxy)
        row: dict[str, Any] = {"scores": name, "CPU seconds": f"{time.process_time() - began:.0f}"}
        row["Fisher trace"] = f"{scores.notes['trace_share']:.0%}"
        reference = reference or scores
        for component in ("residual", "attention", "ffn"):
            each = [
                spearmanr(scores.values[key], reference.values[key]).statistic
                for key in scores.values
                if key.split(".")[0] == component
            ]
            row[f"rank correlation, {component}"] = f"{sum(each) / len(each):.4f}"
        for share in (0.25, 0.5):
            row[f"KL, {share:.0%} removed"] = (
                f"{bench.measure(up.prune(bench.teacher, plan_uniform(scores, Ratios.equal(share), snap=True))).kl:.4f}"
            )
        rows.append(row)
        print(row, flush=True)
    print(table(rows))


def fresh(asked: argparse.Namespace) -> None:
    """Write an untrained ViT for images of 64 pixels and 100 classes, half as large again as the demo."""
    shape = ModelShape("photographs", 128, (BlockShape(4, 128, 384),) * 6, (64, 64), (8, 8), 3, 100)
    cfg = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225), "crop_pct": 1.0, "interpolation": "bicubic"}
    save_model(build_model(shape), asked.teacher, shape=shape, pretrained_cfg=cfg, name=shape.name)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("table", choices=("fresh", "cut", "train", "shortcut"))
    parser.add_argument("teacher")
    parser.add_argument("data", nargs="?")
    parser.add_argument("--images", type=int, default=2000, help="training images that are scored and fitted to")
    parser.add_argument("--test-images", type=int, default=None)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--ways", nargs="*", default=[WAYS[-1], WAYS[0], "Torch-Pruning Taylor"])
    asked = parser.parse_args()
    torch.set_num_threads(1)
    if asked.table == "fresh":
        fresh(asked)
    else:
        {"cut": cut, "train": train, "shortcut": shortcut}[asked.table](Bench(asked))
