"""Ours against the peers: the demo teacher, the same images, the same MACs, the same training budget, three seeds.

heavy python -m tests.benchmarks.peers run --out work/peers.jsonl     every cut, then training; goes on where it stopped
python -m tests.benchmarks.peers speed work/peers.jsonl               images/s of every shape, in turns with the teacher
python -m tests.benchmarks.peers table work/peers.jsonl               the tables, from what is there
python -m tests.benchmarks.peers forecasts work/peers.jsonl           the app's forecast against these runs
python -m tests.benchmarks.peers figure work/peers.jsonl --out assets/readme/peers.png      needs Chromium

Every way gets the MACs of the equal-ratio shape (within 2 %), and that very shape where it has no allocation of its
own. A seed draws the images that are scored, and orders and augments those that are trained on. `kl` is the record
shipped with the demo (1,000 images, 36 minutes), the same for every seed. Training is Eq. 2 for as many steps by the
recipe `demo` for all alike (the teacher's answers to the mixed batches of a seed are shared); repaired starts, and
for comparison the best peers, are trained by the recipe `repaired` too.
"""

from __future__ import annotations

import argparse
import json
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import product
from pathlib import Path

import torch
from torch import Tensor, nn

from tests.benchmarks import peers_report
from tests.benchmarks.report import Row, machine
from tests.benchmarks.torch_pruning_peer import cut_to
from upvit_core.data import draw_proxy, open_images
from upvit_core.evaluation import evaluate, predict
from upvit_core.importance.score import score
from upvit_core.models.build import adapt
from upvit_core.models.checkpoint import build_model, load_model
from upvit_core.paths import DEMO_FOLDER
from upvit_core.planning.budget import Budget, best_plan
from upvit_core.planning.ratios import Ratios, plan_uniform
from upvit_core.planning.widths import parse_widths, widths_of, write_widths
from upvit_core.profiling.macs import count_macs, count_parameters
from upvit_core.profiling.throughput import compare
from upvit_core.pruning.basis import ProxyStatistics, collect_statistics, directions_scores
from upvit_core.pruning.prune import cut
from upvit_core.records.plan import PruningPlan
from upvit_core.records.scores import ImportanceScores
from upvit_core.records.shape import BlockShape, ModelShape
from upvit_core.training.distillation import Distillation, distill, make_accelerator
from upvit_core.training.settings import PRESETS


@dataclass(frozen=True)
class Way:
    """One way to a thinner model. kind: ours, peer, random or scratch; basis `channels` is the letter's."""

    kind: str
    criterion: str = ""
    allocation: str = "uniform"
    basis: str = "channels"
    repair: bool = False

    @property
    def name(self) -> str:
        if self.kind in ("random", "scratch"):
            return {"random": "random channels", "scratch": "from scratch"}[self.kind]
        who = "Torch-Pruning " if self.kind == "peer" else ""
        basis = f", {self.basis}" if self.kind == "ours" else ""
        return f"{who}{self.criterion}, {self.allocation}{basis}{', repaired' if self.repair else ''}"


OURS = [
    Way("ours", criterion, allocation, basis, repair)
    for criterion in ("kl", "fisher", "refine")
    for basis in ("channels", "directions")
    for allocation in ("uniform", "budget")
    for repair in (False, True)
]
PEERS = [
    Way("peer", criterion, a) for criterion in ("l1", "l2", "taylor", "hessian") for a in ("uniform", "isomorphic")
]
WAYS = [*OURS, *PEERS, Way("random"), Way("scratch")]
TRAINED_FIRST = (
    Way("ours", "fisher", "uniform", "directions", True), Way("peer", "taylor"), Way("peer", "hessian", "isomorphic"),
    Way("scratch"), Way("ours", "fisher", "budget", "directions", True), Way("ours", "kl"), Way("peer", "hessian"),
    Way("ours", "fisher", "budget", "channels", True), Way("random"), Way("ours", "kl", "budget"),
    Way("peer", "taylor", "isomorphic"), Way("peer", "l1"), Way("peer", "l2"), Way("ours", "fisher"),
)  # fmt: skip
GENTLY = (
    *(Way("ours", "fisher", allocation, "directions", True) for allocation in ("uniform", "budget")),
    Way("peer", "taylor"), Way("peer", "taylor", "isomorphic"), Way("peer", "hessian", "isomorphic"),
    *(way for way in OURS if way.repair and (way.criterion, way.basis) != ("fisher", "directions")),
)  # fmt: skip


@dataclass(frozen=True)
class Cut:
    model: nn.Module
    shape: ModelShape
    score_seconds: float
    cut_seconds: float


class Bench:
    """The teacher, its images, and what is computed once for each seed."""

    def __init__(self, folder: Path, images: int, test_images: int, epochs: int):
        self.folder, self.images, self.epochs = folder, images, epochs
        self.teacher = load_model("demo")
        self.shape = self.teacher.shape
        cfg = self.teacher.pretrained_cfg
        self.train, test = (open_images("demo", split, pretrained_cfg=cfg) for split in ("train", "val"))
        self.test = list(test.batches(250, indices=range(min(test_images, len(test)))))  # type: ignore[arg-type]
        self.teacher_logits, _ = predict(self.teacher.model, self.test)
        self._mixed: dict[tuple[int, str], list[tuple[float, Tensor]]] = {}

    @cache  # noqa: B019
    def scores(self, criterion: str, seed: int) -> ImportanceScores:
        if criterion == "kl":
            return ImportanceScores.load(DEMO_FOLDER / "scores.safetensors")
        path = self.folder / f"scores-{criterion}-{self.images}-{seed}.safetensors"
        if not path.exists():
            score(self.teacher, self.train, criterion, n=self.images, seed=seed).save(path)
        return ImportanceScores.load(path)

    @cache  # noqa: B019
    def statistics(self, seed: int) -> ProxyStatistics:
        return collect_statistics(adapt(self.teacher.model, self.shape), draw_proxy(self.train, self.images, seed))

    @cache  # noqa: B019
    def directions(self, seed: int) -> ImportanceScores:
        adapter, proxy = adapt(self.teacher.model, self.shape), draw_proxy(self.train, self.images, seed)
        return directions_scores(adapter, proxy, self.statistics(seed))

    def target(self, ratio: float) -> PruningPlan:
        """The equal-ratio plan, whose MACs all get."""
        return plan_uniform(self.scores("kl", 0), Ratios.equal(ratio), snap=True)

    def cut(self, way: Way, ratio: float, seed: int) -> Cut:
        target = self.target(ratio)
        macs = count_macs(target.shape_after)
        if way.kind == "scratch":
            return Cut(build_model(target.shape_after, seed=seed), target.shape_after, 0.0, 0.0)
        if way.kind == "peer":
            batches = draw_proxy(self.train, self.images, seed).batches(50)
            isomorphic = way.allocation == "isomorphic"
            made = cut_to(
                self.teacher.model, self.shape, way.criterion, batches, ratio=ratio, isomorphic=isomorphic, macs=macs
            )
            return Cut(made.model, made.shape, made.score_seconds, made.cut_seconds)
        scores = self.scores("random" if way.kind == "random" else way.criterion, seed)
        seconds, stats = scores.seconds, None
        if way.basis == "directions":
            stats, own = self.statistics(seed), self.directions(seed)
            seconds = stats.seconds + own.seconds + (0.0 if way.criterion == "fisher" else scores.seconds)
            scores = own if way.criterion == "fisher" else with_ffn_of(own, scores)
        if way.allocation == "budget":
            plan = best_plan(scores, Budget(macs=macs), basis=way.basis).plan
        else:
            plan = plan_uniform(scores, Ratios.equal(ratio), snap=True, basis=way.basis)
        began = time.perf_counter()
        thin = cut(self.teacher, plan, repair=way.repair, data=self.train, images=self.images, seed=seed, stats=stats)
        return Cut(thin, plan.shape_after, seconds, time.perf_counter() - began)

    def row(self, model: nn.Module, seconds: float = 0.0) -> Row:
        result = evaluate(model, self.test, teacher_logits=self.teacher_logits)
        return {"top1": result.top1, "kl": result.kl, "seconds": round(seconds, 1)}

    def train_on(self, student: nn.Module, seed: int, recipe: str) -> Iterator[tuple[int, Row]]:
        """Evaluations after each epoch."""
        settings = PRESETS[recipe].model_copy(update={"seed": seed})
        remembered = Remembered(self.teacher.model, self._mixed.setdefault((seed, recipe), []))
        run = Distillation.on_images(
            student,
            remembered,
            self.train,
            self.teacher.pretrained_cfg,
            settings,
            epochs=self.epochs,
            num_classes=self.shape.num_classes,
            accelerator=make_accelerator("cpu", "no"),
        )
        epochs = []

        def after_step(now: Distillation) -> None:
            epoch, rest = divmod(now.step, now.batches.steps_per_epoch)
            if not rest and now.step < now.total_steps:
                epochs.append((epoch, self.row(now.result, now.seconds)))

        result = distill(run, report=lambda row: None, after_step=after_step)
        yield from epochs
        yield self.epochs, self.row(result, run.seconds)


class Remembered(nn.Module):
    """The teacher's answers to one seed's mixed batches: computed by the first student, read by the others."""

    def __init__(self, teacher: nn.Module, kept: list[tuple[float, Tensor]]):
        super().__init__()
        self.teacher, self.kept, self.step = teacher, kept, 0

    def forward(self, images: Tensor) -> Tensor:
        mark = float(images.double().sum())
        if self.step == len(self.kept):
            self.kept.append((mark, self.teacher(images)))
        known, logits = self.kept[self.step]
        assert known == mark, "another student saw other images at this step"
        self.step += 1
        return logits


def with_ffn_of(directions: ImportanceScores, scores: ImportanceScores) -> ImportanceScores:
    """Scores of directions, the FFN's channels by another criterion, for as many images."""
    share = directions.images / scores.images
    return directions.with_values({key: v * share for key, v in scores.values.items() if key.startswith("ffn")})


def run(
    bench: Bench,
    out: Path,
    ratios: list[float],
    seeds: list[int],
    trained_ratios: list[float],
    minutes: float,
    only: str = "",
) -> None:
    """Every row that `out` lacks, the most telling first, until `minutes` are over; `only`: ways that match it."""
    done = {key(row) for row in peers_report.read(out)}
    end = time.monotonic() + 60 * minutes
    settings = {"images": bench.images, "epochs": bench.epochs, "test_images": len(bench.teacher_logits), **machine()}

    def write(way: Way, row: Row) -> None:
        row = {"way": way.name, "kind": way.kind, **row, **settings}
        with out.open("a") as file:
            file.write(json.dumps(row) + "\n")
        done.add(key(row))
        about = f"{row['ratio']:.0%} seed {row['seed']} {row.get('recipe', 'no recipe')} epoch {row['epoch']}"
        print(f"{way.name:<50} {about}: {row['top1']:.2f} %", flush=True)

    def wanted(way: Way, ratio: float, seed: int, epoch: int, recipe: str = "demo") -> bool:
        asked = (way.name, ratio, seed, epoch, recipe) not in done and re.search(only, way.name)
        return bool(asked) and time.monotonic() < end

    def surgery(ways: Sequence[Way], seed: int) -> None:
        for ratio, way in product(ratios, ways):
            if not wanted(way, ratio, seed, 0):
                continue
            made = bench.cut(way, ratio, seed)
            row = {"ratio": ratio, "seed": seed, "epoch": 0, **bench.row(made.model)}
            row |= {"score_seconds": made.score_seconds, "cut_seconds": made.cut_seconds}
            row |= {"macs": count_macs(made.shape), "params": count_parameters(made.shape)}
            row["macs_target"] = count_macs(bench.target(ratio).shape_after)
            row["widths"] = write_widths(widths_of(made.shape))
            write(way, row)

    def train(ways: Sequence[Way], seed: int, recipe: str = "demo") -> None:
        for ratio, way in product(trained_ratios, ways):
            if not wanted(way, ratio, seed, bench.epochs, recipe):
                continue
            made = bench.cut(way, ratio, seed)
            for epoch, values in bench.train_on(made.model, seed, recipe):
                if (way.name, ratio, seed, epoch, recipe) not in done:
                    write(way, {"ratio": ratio, "seed": seed, "epoch": epoch, "recipe": recipe, **values})

    for seed in seeds:
        surgery([way for way in WAYS if way.criterion != "refine"], seed)
    for seed in seeds:
        train(GENTLY[:2], seed, "repaired")
    for seed in seeds:
        train(TRAINED_FIRST, seed)
    for seed in seeds:
        train([way for way in GENTLY if way.criterion != "refine"], seed, "repaired")
    for seed in seeds:
        train([way for way in WAYS if way.criterion != "refine"], seed)
    for seed in seeds:
        surgery(WAYS, seed)
        train(GENTLY, seed, "repaired")
        train(WAYS, seed)


def key(row: Row) -> tuple[str, float, int, int, str]:
    return row["way"], row["ratio"], row["seed"], row["epoch"], row.get("recipe", "demo")


def speed(rows: Path) -> None:
    """Images/s at batch 32 of every distinct shape that came out, each in turns with the teacher."""
    teacher = load_model("demo")
    x = torch.randn(32, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    for text in sorted({row["widths"] for row in peers_report.read(rows) if "widths" in row}):
        widths = parse_widths(text, teacher.shape)
        blocks = tuple(BlockShape(*block) for block in widths.blocks)
        model = build_model(replace(teacher.shape, embed_dim=widths.embed_dim, blocks=blocks))
        pace = compare(teacher.model, model, x, repeats=15)
        row = {"widths": text, "images_per_s": pace.second.images_per_s, "speed_up": pace.ratio, **machine()}
        with peers_report.speeds_file(rows).open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(f"{pace.ratio:.2f}  {text}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["run", "speed", "table", "figure", "forecasts"])
    parser.add_argument("rows", type=Path, nargs="?", default=Path("work/peers.jsonl"))
    parser.add_argument("--out", type=Path)
    parser.add_argument("--images", type=int, default=500, help="scored, and repaired on")
    parser.add_argument("--test-images", type=int, default=3000)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--ratios", type=float, nargs="+", default=[0.25, 0.5, 0.75])
    parser.add_argument("--trained-ratios", type=float, nargs="+", default=[0.5])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--ways", default="", help="only ways whose name has this (a regular expression)")
    parser.add_argument("--minutes", type=float, default=1e6, help="begin nothing new after so long")
    arguments = parser.parse_args()
    if arguments.what == "table":
        peers_report.tables(arguments.rows)
        return
    if arguments.what == "forecasts":
        peers_report.forecasts(arguments.rows)
        return
    if arguments.what == "figure":
        peers_report.picture(arguments.rows, arguments.out or Path("assets/readme/peers.png"))
        return
    torch.set_num_threads(arguments.threads)
    if arguments.what == "speed":
        speed(arguments.rows)
        return
    out = arguments.out or arguments.rows
    out.parent.mkdir(parents=True, exist_ok=True)
    bench = Bench(out.parent, arguments.images, arguments.test_images, arguments.epochs)
    run(bench, out, arguments.ratios, arguments.seeds, arguments.trained_ratios, arguments.minutes, arguments.ways)


if __name__ == "__main__":
    main()
