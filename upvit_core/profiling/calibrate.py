"""Calibrate a device: time the operations that a block is made of over a grid of sizes, then whole blocks.

All points are timed in turns, round after round, and each keeps the lower quartile of its rounds, so that a disturbance
spoils a round and not a point. Weights are taken from a pool larger than the caches, as a model of many blocks does.
Factors of each kind are then fitted on real timm blocks (least squares of relative errors, drawn towards 1).
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import timm
import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.nn import functional as F

from upvit_core.errors import CalibrationError
from upvit_core.models.build import build_model
from upvit_core.models.shape import BlockShape, ModelShape, deit_shape
from upvit_core.profiling.latency import KINDS, Calibration, Grid, Ladder, Latency, geometry
from upvit_core.profiling.throughput import DTYPES, device_name

ROWS = (1, 8, 50, 200, 800, 3200)
WIDTHS = (8, 16, 32, 48, 96, 192, 384, 768, 1536, 3072)
GROUPS = (1, 4, 16, 64)
TOKENS = (16, 50, 197, 577)
HEAD_DIMS = (2, 4, 8, 16, 32, 64, 128)
BATCHES = (1, 8, 32)
EMBED_DIMS = (8, 24, 96, 384, 768)
LARGEST = 2e9  # multiply-accumulates
LADDER = 256
LADDER_WIDTH, LADDER_GROUPS, LADDER_TOKENS = 192, 4, (50, 197)
POOL = 16 * 2**20
FITTED_ON = (
    (8, 50, 96, 6), (32, 50, 96, 6), (1, 197, 192, 3), (8, 197, 192, 3), (1, 197, 384, 6), (4, 197, 384, 6),
    (1, 197, 768, 12), (2, 197, 768, 12),
)  # fmt: skip
CLOCKS: Mapping[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.thread_time}
Progress = Callable[[float, float], None]
DEMO = replace(
    deit_shape("tiny"), name="demo", embed_dim=96, blocks=(BlockShape(6, 96, 384),) * 6, img_size=(28, 28),
    patch_size=(4, 4), in_chans=1, num_classes=10,
)  # fmt: skip


def calibrate(
    *,
    device: torch.device | str = "cpu",
    dtype: str = "float32",
    seconds: float = 60.0,
    shapes: Sequence[ModelShape] = (),
    clock: str = "wall",
    progress: Progress = lambda done, total: None,
) -> Calibration:
    """Time this device for about `seconds`, with the threads that torch has now.

    The embeddings of the demo, of DeiT and of `shapes` are timed; others are estimated from their linear layer. clock:
    `cpu` counts the time of the calling thread only, which other programs disturb less, and needs a single thread.
    `progress` receives seconds done and seconds in all; raise `Cancelled` in it to stop.

    Raises CalibrationError for an unknown dtype or clock, or `cpu` with several threads.
    """
    device = torch.device(device)
    if dtype not in DTYPES:
        raise CalibrationError(f"A calibration is for one of {', '.join(DTYPES)}, not {dtype!r}.")
    if clock not in CLOCKS or (clock == "cpu" and (device.type != "cpu" or torch.get_num_threads() > 1)):
        raise CalibrationError(f"The clock is wall, or cpu on a CPU with one thread, not {clock!r} here.")
    bench = _Bench(device, dtype, CLOCKS[clock])
    begun = time.perf_counter()
    geometries = {geometry(shape): shape for shape in (DEMO, deit_shape("tiny"), *shapes)}
    with bench.running():
        points: dict[tuple[Any, ...], Callable[[], Any]] = dict(_operations(bench))
        for name, shape in geometries.items():
            progress(0.0, seconds)
            points |= {("embedding", name, B, D): bench.embedding(shape, B, D) for B in BATCHES for D in EMBED_DIMS}
        blocks = list(_blocks())
        for n, block in enumerate(blocks):
            progress(0.0, seconds)
            points["block", n] = bench.block(*block)
        taken = bench.take_turns(points, seconds, progress)
    grids = _grids(taken)
    ladders = _ladders(taken, grids, bench.ladder_rows)
    embeddings = {
        name: Grid(
            (BATCHES, EMBED_DIMS), np.array([[taken["embedding", name, B, D] for D in EMBED_DIMS] for B in BATCHES])
        )
        for name in geometries
    }
    raw = Calibration(
        device=device_name(device), dtype=dtype, threads=torch.get_num_threads(), grids=grids, ladders=ladders,
        embeddings=embeddings,
        weights=dict.fromkeys(KINDS, 1.0) | {"block": 0.0}, clock=clock, date=time.strftime("%Y-%m-%d"),
        versions={"torch": str(torch.__version__), "timm": timm.__version__, "python": platform.python_version()},
    )  # fmt: skip
    measured = np.array([taken["block", n] for n in range(len(blocks))])
    weights = _fitted(raw, blocks, measured)
    return replace(raw, weights=weights, seconds=time.perf_counter() - begun)


class _Bench:
    """Operations as timm's ViT runs them, on shared buffers, and how to time them."""

    def __init__(self, device: torch.device, dtype: str, clock: Callable[[], float]):
        self.device, self._clock = device, clock
        self._autocast = nullcontext() if dtype == "float32" else torch.autocast(device.type, DTYPES[dtype])
        self._generator = torch.Generator().manual_seed(0)
        self._type = DTYPES[dtype]
        self._turn = 0
        self.ladder_rows = 3200 if device.type == "cuda" else 800
        self._pool = self._random(POOL, self._type)
        self._plain = self._random(POOL, torch.float32)

    def _random(self, count: int, dtype: torch.dtype) -> Tensor:
        values = torch.randn(count, generator=self._generator) * 0.05
        return values.to(device=self.device, dtype=dtype)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Inference, in the number type asked for."""
        with torch.inference_mode(), self._autocast:
            yield

    def _tensor(self, *sizes: int) -> Tensor:
        """Values of an activation, in the type that linear layers give."""
        return self._pool[: int(np.prod(sizes))].view(*sizes)

    def linear(self, rows: int, inputs: int, outputs: int) -> Callable[[], Any]:
        size = inputs * outputs
        copies = [self._pool[i * size : (i + 1) * size].view(outputs, inputs) for i in range(min(12, POOL // size))]
        x, bias = self._tensor(rows, inputs), self._tensor(outputs)

        def run() -> None:
            self._turn += 1
            F.linear(x, copies[self._turn % len(copies)], bias)

        return run

    def attention(self, groups: int, tokens: int, head_dim: int) -> Callable[[], Any]:
        heads = min(4, groups)
        batch, width = groups // heads, heads * head_dim
        qkv = self._tensor(batch, tokens, 3 * width)

        def run() -> None:
            q, k, v = qkv.reshape(batch, tokens, 3, heads, head_dim).permute(2, 0, 3, 1, 4).unbind(0)
            F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, tokens, width)

        return run

    def norm(self, rows: int, width: int) -> Callable[[], Any]:
        x, weight = self._plain[: rows * width].view(rows, width), self._plain[:width]
        return lambda: F.layer_norm(x, (width,), weight, weight, 1e-6)

    def gelu(self, rows: int, width: int) -> Callable[[], Any]:
        x = self._tensor(rows, width)
        return lambda: F.gelu(x)

    def add(self, rows: int, width: int) -> Callable[[], Any]:
        x, y = self._plain[: rows * width].view(rows, width), self._tensor(rows, width)
        return lambda: x + y

    def embedding(self, shape: ModelShape, batch: int, width: int) -> Callable[[], Any]:
        """Everything before block 0, by timm's own code."""
        model: Any = random_model(replace(shape, embed_dim=width, blocks=(BlockShape(1, 8, 8),)), self.device)
        images = self._random(batch * shape.in_chans * shape.img_size[0] * shape.img_size[1], torch.float32)
        images = images.view(batch, shape.in_chans, *shape.img_size)
        return lambda: model.norm_pre(model._pos_embed(model.patch_embed(images)))

    def block(self, batch: int, tokens: int, width: int, own: BlockShape) -> Callable[[], Any]:
        shape = replace(DEMO, embed_dim=width, blocks=(own,) * 3)
        model: Any = random_model(shape, self.device)
        blocks: list[Block] = list(model.blocks)
        x = self._plain[: batch * tokens * width].view(batch, tokens, width)

        def run() -> None:
            self._turn += 1
            blocks[self._turn % 3](x)

        return run

    def take_turns(
        self, points: Mapping[tuple[Any, ...], Callable[[], Any]], seconds: float, progress: Progress
    ) -> dict[tuple[Any, ...], float]:
        """Seconds of every point: the lower quartile over rounds; at least three rounds."""
        begun = time.perf_counter()
        shortest = 1e-3 if self.device.type == "cuda" else 2e-4
        repeats = {}
        for name, run in points.items():
            progress(min(time.perf_counter() - begun, seconds), seconds)
            self._timed(run, 1)
            repeats[name] = max(1, min(200, int(shortest / max(self._timed(run, 1), 1e-6))))
        samples: dict[tuple[Any, ...], list[float]] = {name: [] for name in points}
        rounds = 0
        while rounds < 3 or time.perf_counter() - begun < seconds * (1 - 0.5 / rounds):
            for name, run in points.items():
                samples[name].append(self._timed(run, repeats[name]) / repeats[name])
                progress(min(time.perf_counter() - begun, seconds), seconds)
            rounds += 1
        progress(seconds, seconds)
        return {name: float(np.quantile(values, 0.25)) for name, values in samples.items()}

    def _timed(self, run: Callable[[], Any], repeats: int) -> float:
        run()  # what it reads was just written, as in a model
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        start = self._clock()
        for _ in range(repeats):
            run()
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return max(self._clock() - start, 1e-9)


def random_model(shape: ModelShape, device: torch.device) -> nn.Module:
    """A model of random weights without the cost of timm's initialisation."""
    generator = torch.Generator(device).manual_seed(0)
    with torch.inference_mode(False), torch.no_grad():
        model = build_model(shape, device="meta").to_empty(device=device).eval()
        for parameter in model.parameters():
            parameter.normal_(0, 0.02, generator=generator)
    return model


def _operations(bench: _Bench) -> Iterator[tuple[tuple[Any, ...], Callable[[], Any]]]:
    for rows in ROWS:
        for inputs in WIDTHS:
            for outputs in WIDTHS:
                if rows * inputs * outputs <= LARGEST:
                    yield ("linear", rows, inputs, outputs), bench.linear(rows, inputs, outputs)
            yield ("norm", rows, inputs), bench.norm(rows, inputs)
            yield ("gelu", rows, inputs), bench.gelu(rows, inputs)
            yield ("add", rows, inputs), bench.add(rows, inputs)
    for width in range(1, LADDER + 1):
        yield ("inputs", width), bench.linear(bench.ladder_rows, width, LADDER_WIDTH)
        yield ("outputs", width), bench.linear(bench.ladder_rows, LADDER_WIDTH, width)
        for tokens in LADDER_TOKENS if width <= HEAD_DIMS[-1] else ():
            yield ("head_dim", tokens, width), bench.attention(LADDER_GROUPS, tokens, width)
    for groups in GROUPS:
        for tokens in TOKENS:
            for head_dim in HEAD_DIMS:
                yield ("attention", groups, tokens, head_dim), bench.attention(groups, tokens, head_dim)


def _grids(taken: Mapping[tuple[Any, ...], float]) -> dict[str, Grid]:
    linear = np.zeros((len(ROWS), len(WIDTHS), len(WIDTHS)))
    for i, rows in enumerate(ROWS):
        for j, inputs in enumerate(WIDTHS):
            for k, outputs in enumerate(WIDTHS):
                key = ("linear", rows, inputs, outputs)
                if key in taken:
                    linear[i, j, k] = taken[key]
                else:  # larger than the largest: with more rows as its narrower neighbour grows
                    linear[i, j, k] = linear[i - 1, j, k] * linear[i, j - 1, k] / linear[i - 1, j - 1, k]
    grids = {"linear": Grid((ROWS, WIDTHS, WIDTHS), linear)}
    for kind in ("norm", "gelu", "add"):
        values = np.array([[taken[kind, rows, width] for width in WIDTHS] for rows in ROWS])
        grids[kind] = Grid((ROWS, WIDTHS), values)
    attention = [[[taken["attention", g, t, d] for d in HEAD_DIMS] for t in TOKENS] for g in GROUPS]
    return grids | {"attention": Grid((GROUPS, TOKENS, HEAD_DIMS), np.array(attention))}


def _ladders(taken: Mapping[tuple[Any, ...], float], grids: Mapping[str, Grid], rows: int) -> dict[str, Ladder]:
    widths = np.arange(1, LADDER + 1)
    inputs = np.array([taken["inputs", int(width)] for width in widths])
    outputs = np.array([taken["outputs", int(width)] for width in widths])
    heads = widths[: HEAD_DIMS[-1]]
    each = [
        np.log([taken["head_dim", tokens, int(d)] for d in heads])
        - np.log(grids["attention"].at(LADDER_GROUPS, tokens, heads))
        for tokens in LADDER_TOKENS
    ]
    return {
        "inputs": Ladder(inputs / grids["linear"].at(rows, widths, LADDER_WIDTH)),
        "outputs": Ladder(outputs / grids["linear"].at(rows, LADDER_WIDTH, widths)),
        "head_dim": Ladder(np.exp(np.mean(each, axis=0))),
    }


def _blocks() -> Iterator[tuple[int, int, int, BlockShape]]:
    """Blocks to fit the weights on: (batch, tokens, residual width, widths); three of four are narrowed by seed 0."""
    rng = np.random.default_rng(0)
    for batch, tokens, full, heads in FITTED_ON:
        yield batch, tokens, full, BlockShape(heads, full, 4 * full)
        for _ in range(3):
            width, attention, ffn = (int(full * share) for share in rng.uniform(0.15, 1, 3))
            merged = int(rng.choice([h for h in range(1, heads + 1) if heads % h == 0]))
            yield batch, tokens, width, BlockShape(merged, max(attention // merged, 1) * merged, 4 * ffn)


def _fitted(
    raw: Calibration, blocks: Sequence[tuple[int, int, int, BlockShape]], measured: np.ndarray
) -> dict[str, float]:
    """Factors of every kind, and seconds a block besides, from measured seconds of blocks."""
    names = (*KINDS, "block")
    rows = []
    for batch, tokens, width, own in blocks:
        shape = replace(DEMO, embed_dim=width, blocks=(own,), img_size=(4 * (tokens - 1), 4))
        row = []
        for name in names:
            alone = dict.fromkeys(names, 0.0) | {name: 1.0}
            parts, D = Latency(shape, batch, replace(raw, weights=alone)), np.array([width])
            total = parts.attention(D, own.num_heads, np.array([own.attention])) + parts.ffn(D, np.array([own.ffn]))
            row.append(float(total[0, 0]) / 1e3)
        rows.append(row)
    relative = np.array(rows) / measured[:, None]
    unit = float(np.median(measured)) * 0.1
    relative[:, -1] *= unit
    prior = np.array([1.0] * len(KINDS) + [0.0])
    pull = 0.1 * np.eye(len(names))
    solution = np.linalg.lstsq(
        np.vstack([relative, pull]), np.concatenate([np.ones(len(measured)), pull @ prior]), rcond=None
    )[0]
    solution = np.maximum(solution, [0.2] * len(KINDS) + [0.0])
    return dict(zip(names, (float(v) for v in (*solution[:-1], solution[-1] * unit)), strict=True))
