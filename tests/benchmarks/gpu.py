"""Everything that is claimed of GPUs, measured on one: `python -m tests.benchmarks.gpu [--imagenet DIR] [--out FILE]`.

At most 40 minutes on one GPU. Each part is tried by itself; what fails is said in its row, and the exit status is 1.
`--rehearse` goes through the same lines on the CPU, with tiny models.
"""

from __future__ import annotations

import argparse
import copy
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import upvit_core as upvit
from tests.benchmarks.report import Row, publish
from tests.support.tiny import TensorProxy, images, tiny
from upvit_core.data import open_images
from upvit_core.importance.blocks import remove_blocks
from upvit_core.importance.fisher import Fisher
from upvit_core.importance.kl import KL
from upvit_core.models.build import adapt, build_model
from upvit_core.planning.ratios import Ratios, plan_uniform
from upvit_core.profiling.held_out import calibrate_and_check
from upvit_core.profiling.memory import estimate_training
from upvit_core.profiling.throughput import compare, usual_dtype
from upvit_core.pruning.basis import collect_statistics, directions_scores, prune_directions
from upvit_core.pruning.repair.repair import repair
from upvit_core.records.basis import Basis
from upvit_core.records.known_shapes import deit_shape
from upvit_core.records.shape import BlockShape, ModelShape
from upvit_core.training.distillation import Distillation, isolated_rng, make_accelerator
from upvit_core.training.settings import DistillSettings

SMALL = [ModelShape("tiny", d, (BlockShape(2, d, 2 * d),) * 2, (32, 32), (8, 8), 3, 10) for d in (16, 8, 4)]
CFG = {"mean": (0.5,) * 3, "std": (0.25,) * 3}
STEPS: dict[str, dict[str, object]] = {
    "float32": {"amp": "no"}, "mixed precision, plain": {"plain": True}, "mixed precision": {},
    "mixed precision, compiled": {"compile": True},
}  # fmt: skip


@dataclass(frozen=True)
class Bench:
    """The device, the sizes of everything, and the shapes of DeiT-B, -S and -T or what stands for them."""

    device: str
    shapes: tuple[ModelShape, ...]
    images: int
    steps: int
    batch: int
    files: int
    seconds: float

    @classmethod
    def of(cls, rehearse: bool) -> Bench:
        if rehearse:
            return cls("cpu", tuple(SMALL), 20, 2, 8, 16, 0.5)
        return cls("cuda", tuple(deit_shape(size) for size in ("base", "small", "tiny")), 500, 100, 256, 2048, 45.0)

    def noise(self, count: int) -> TensorProxy:
        shape = self.shapes[0]
        return TensorProxy(
            torch.randn(count, shape.in_chans, *shape.img_size, generator=torch.Generator().manual_seed(0))
        )

    def took(self, what: str, work: Callable[[], object]) -> Row:
        """Seconds of some work, and the most memory that it had at once."""
        gpu = self.device == "cuda"
        if gpu:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        start = time.perf_counter()
        work()
        if gpu:
            torch.cuda.synchronize()
        seconds = time.perf_counter() - start
        return row(what, f"{seconds:.2f} s" + (f", {torch.cuda.max_memory_allocated() / 2**30:.2f} GiB" if gpu else ""))


def row(what: str, found: str) -> Row:
    return {"what": what, "found": found}


def same_numbers(bench: Bench) -> Iterator[Row]:
    """Each kind of result on the device and on the CPU: the largest difference over the largest value."""
    model, shape = tiny("3 heads, 5 blocks", torch.float32)
    proxy = TensorProxy(images(80, torch.float32))

    def results(device: str) -> Iterator[tuple[str, np.ndarray]]:
        adapter = adapt(copy.deepcopy(model).to(device), shape)
        for criterion in (Fisher(), KL()):
            yield criterion.name, np.concatenate(list(criterion.attribute(adapter, proxy).values.values()))
        yield "depth", np.array([c.kl for s in remove_blocks(adapter, proxy, 2).steps for c in s.candidates])
        stats = collect_statistics(adapter, proxy)
        yield "statistics", np.concatenate([gram.cpu().numpy().ravel() for gram in stats.grams.values()])
        scores = directions_scores(adapter, proxy, stats)
        yield "directions", scores.values["residual"]
        plan = plan_uniform(scores, Ratios.equal(0.5), basis=Basis.DIRECTIONS, snap=True)
        student = prune_directions(adapter.model, shape, plan, stats)
        fixed, _ = repair(student, adapter.model, plan, proxy, stats=stats)
        with torch.no_grad():
            logits = fixed(proxy.tensor.to(device)).cpu().numpy()
        yield "repaired logits", logits  # outside: a generator that waits inside would turn gradients off for all

    for (name, got), (_, expected) in zip(results(bench.device), results("cpu"), strict=True):
        difference = float(np.abs(got - expected).max() / np.abs(expected).max())
        assert difference < 1e-4, f"{name} differs by {difference:.1e} of its largest value"
        yield row(f"{name}: GPU against CPU", f"{difference:.1e}")


def pruning(bench: Bench) -> Iterator[Row]:
    """Seconds and memory of scoring and repair at DeiT-B's shape, weights drawn at random."""
    shape = bench.shapes[0]
    adapter = adapt(build_model(shape, seed=0).to(bench.device).eval(), shape)
    proxy, few = bench.noise(bench.images), bench.noise(max(bench.images // 10, 8))
    some = {"residual": (0, 1), "attention.0": (0, 1), "ffn.0": (0, 1)}
    yield bench.took(f"fisher, {len(proxy)} images", lambda: Fisher().attribute(adapter, proxy))
    for precision in ("float32", "fp16") if bench.device == "cuda" else ("float32",):
        work = partial(KL(channels=some, precision=precision).attribute, adapter, few)
        yield bench.took(f"kl in {precision}, 6 channels, {len(few)} images", work)
    kept: list[object] = []
    yield bench.took("statistics and directions", lambda: kept.append(collect_statistics(adapter, proxy)))
    stats = kept[0]
    yield bench.took("scores of directions", lambda: kept.append(directions_scores(adapter, proxy, stats)))  # type: ignore[arg-type]
    plan = plan_uniform(kept[1], Ratios.equal(0.5), basis=Basis.DIRECTIONS, snap=True)  # type: ignore[arg-type]
    yield bench.took("cut", lambda: kept.append(prune_directions(adapter.model, shape, plan, stats)))  # type: ignore[arg-type]
    fit = partial(repair, kept[2], adapter.model, plan, few, stats=stats)  # type: ignore[arg-type]
    yield bench.took(f"repair, {len(few)} images", fit)


def write_jpegs(folder: Path, count: int) -> None:
    rng = np.random.default_rng(0)
    for number in range(count):
        place = folder / "train" / f"class{number % 4}" / f"{number}.jpg"
        place.parent.mkdir(parents=True, exist_ok=True)
        coarse = Image.fromarray(rng.integers(0, 256, (48, 64, 3), dtype=np.uint8))
        coarse.resize((500, 375), Image.Resampling.BICUBIC).save(place, quality=95)


def job_of(bench: Bench, data: Path, **settings: object) -> Distillation:
    """DeiT-B teaching DeiT-S on a folder of images."""
    shape = bench.shapes[0]
    cfg = {**CFG, "input_size": (shape.in_chans, *shape.img_size)}
    chosen = DistillSettings(**{"batch_size": bench.batch, **settings})  # type: ignore[arg-type]
    teacher, student = (build_model(shape, seed=0) for shape in bench.shapes[:2])
    accelerator = make_accelerator(bench.device, chosen.amp)
    train = open_images(str(data), "train", pretrained_cfg=cfg, labelled=False)
    return Distillation.on_images(
        student, teacher, train, cfg, chosen, epochs=1, num_classes=shape.num_classes, accelerator=accelerator
    )


def training(bench: Bench) -> Iterator[Row]:
    """Images a second on one batch on the device, each speed-up by itself; then from JPEG files; and the memory against
    its forecast."""
    with tempfile.TemporaryDirectory() as folder:
        write_jpegs(Path(folder), bench.files)
        for name, settings in STEPS.items():
            if bench.device == "cpu" and "compile" in settings:
                continue  # needs a compiler of C++
            job = job_of(bench, Path(folder), **settings)
            with isolated_rng():
                batch = [part.to(bench.device) for part in next(job.batches.steps(0, 1))]
                for _ in range(3):
                    job.train_step(*batch)
                seconds = bench.took("", lambda: [job.train_step(*batch) for _ in range(bench.steps)])["found"]  # noqa: B023
            speed = bench.steps * len(batch[0]) / float(seconds.partition(" ")[0] or 1)
            yield row(f"training on tensors: {name}", f"{speed:,.0f} images/s")
            if bench.device == "cuda" and not settings:
                forecast = estimate_training(*bench.shapes[:2], dtype="bfloat16").total(bench.batch)
                held = torch.cuda.max_memory_reserved()
                yield row("memory of a step against its forecast", f"{held / 2**30:.1f} of {forecast / 2**30:.1f} GiB")
        for workers in (0, 4, 8, 16) if bench.device == "cuda" else (0, 1):
            job = job_of(bench, Path(folder), workers=workers)
            start, seen = time.perf_counter(), 0
            with isolated_rng():
                for number, batch in enumerate(job.batches.steps(0, job.total_steps)):
                    job.train_step(*batch)
                    start, seen = (time.perf_counter(), 0) if not number else (start, seen + len(batch[0]))
            speed = seen / max(time.perf_counter() - start, 1e-9)
            yield row(f"training on JPEGs, {workers} loading processes", f"{speed:,.0f} images/s")


def speed(bench: Bench) -> Iterator[Row]:
    """Throughput of the shapes, in turns with the largest; and how well milliseconds are forecast."""
    whole = build_model(bench.shapes[0], seed=0).to(bench.device)
    batch = bench.noise(bench.batch // 2).tensor.to(bench.device)
    for shape in bench.shapes[1:]:
        thin = build_model(shape, seed=0).to(bench.device)
        found = compare(whole, thin, batch, dtype=usual_dtype(bench.device), seconds=bench.seconds / 3)
        what = f"{shape.name} beside {bench.shapes[0].name}, images/s"
        yield row(what, f"{found.second.images_per_s:,.0f} of {found.first.images_per_s:,.0f}: {found.ratio:.2f} ×")
    if bench.device == "cuda":
        with torch.inference_mode():
            known = calibrate_and_check(device="cuda", seconds=bench.seconds)
        assert known.error is not None
        yield row("forecast of speed-ups, median error", f"{known.error.median_error:.1%}")


def letter(bench: Bench, data: str) -> Iterator[Row]:
    """DeiT-B to half of every component on real images: top-1 as it is, after surgery, repaired, after one epoch."""
    name = "demo" if data == "demo" else "deit_base_patch16_224.fb_in1k"
    few = bench.images if data == "demo" else None
    teacher = upvit.load_model(name, device=bench.device)
    scores = upvit.score(teacher, data, basis="directions", images=2000 if few is None else few)
    plan = upvit.plan(scores, residual=0.5, attention=0.5, ffn=0.5)
    yield row("the original's top-1", f"{upvit.evaluate(teacher, data, images=few).top1:.2f} %")
    for what, fix in (("after surgery", False), ("repaired", True)):
        half = upvit.prune(teacher, plan, data=data, repair=fix, images=few)
        yield row(f"half, {what}", f"{upvit.evaluate(half, data, images=few).top1:.2f} %")
    if few is None:
        half = upvit.distill(half, teacher, data, epochs=1, settings="repaired")
        yield row("half, after one epoch", f"{upvit.evaluate(half, data).top1:.2f} %")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rehearse", action="store_true", help="tiny sizes, on the CPU")
    parser.add_argument("--imagenet", help="folder with train/ and val/, for the letter's table; needs a hub")
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args(arguments)
    bench = Bench.of(asked.rehearse)
    if bench.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch finds no GPU here; --rehearse goes through the same lines on the CPU")
    parts: list[Callable[[Bench], Iterator[Row]]] = [same_numbers, pruning, training, speed]
    if data := asked.imagenet or ("demo" if asked.rehearse else ""):
        parts.append(lambda bench: letter(bench, data))
    rows: list[Row] = []
    failed = 0
    for part in parts:
        try:
            for found in part(bench):
                print(f"{found['what']}: {found['found']}", flush=True)
                rows.append(found)
        except Exception as error:
            failed = 1
            rows.append(row(f"FAILED: {part.__name__}", f"{type(error).__name__}: {error}".splitlines()[0]))
            print(rows[-1], flush=True)
    publish("gpu", rows, asked.out, rehearsed=asked.rehearse)
    return failed


if __name__ == "__main__":
    raise SystemExit(main())
