"""What a calibration times: the operations of a family of models over a grid of sizes, and whole blocks to fit on.

Here those of plain ViTs and how to time any; `bench_language.py` and `bench_pyramid.py` have the others. All points are
timed in turns, round after round, and each keeps the lower quartile of its rounds, so that a disturbance spoils a round
and not a point. Weights are taken from a pool larger than the caches, as a model of many blocks does.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from upvit_core.models.build import build_model
from upvit_core.profiling.calibration import KINDS, Grid, Ladder, geometry
from upvit_core.profiling.throughput import DTYPES
from upvit_core.records.shape import BlockShape, ModelShape, deit_shape

ROWS = (1, 8, 50, 200, 800, 3200)
WIDTHS = (8, 16, 32, 48, 96, 192, 384, 768, 1536, 3072)
GROUPS = (1, 4, 16, 64)
TOKENS = (16, 50, 197, 577)
HEAD_DIMS = (2, 4, 8, 16, 32, 64, 128)
BATCHES = (1, 8, 32)
EMBED_DIMS = (8, 24, 96, 384, 768)
LARGEST = 2e9  # multiply-accumulates
LADDER = 256
FAR_LAYER = (1600, 384, 1008)  # rows, inputs, outputs: FAR multiply-accumulates
LADDER_WIDTH, LADDER_GROUPS, LADDER_TOKENS = 192, 4, (50, 197)
POOL = 16 * 2**20
FITTED_ON = (
    (8, 50, 96, 6), (32, 50, 96, 6), (1, 197, 192, 3), (8, 197, 192, 3), (1, 197, 384, 6), (4, 197, 384, 6),
    (1, 197, 768, 12), (2, 197, 768, 12),
)  # fmt: skip
CLOCKS: Mapping[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.thread_time}
Progress = Callable[[float, float], None]
Point = tuple[Any, ...]
Points = Iterator[tuple[Point, Callable[[], Any]]]
DEMO = replace(
    deit_shape("tiny"), name="demo", embed_dim=96, blocks=(BlockShape(6, 96, 384),) * 6, img_size=(28, 28),
    patch_size=(4, 4), in_chans=1, num_classes=10,
)  # fmt: skip


@dataclass(frozen=True)
class TimedBlock:
    """A block to fit weights on: block `number` of `shape` at a batch size, and how to run it."""

    shape: ModelShape
    number: int
    batch: int
    run: Callable[[], Any]


class Bench:
    """Operations as timm's ViT runs them, on shared buffers, and how to time them.

    `shape`: the model that estimates are wanted for; its embedding is timed beside the demo's and DeiT's.
    """

    kinds: tuple[str, ...] = KINDS
    rows: tuple[int, ...] = ROWS
    widths: tuple[int, ...] = WIDTHS
    tokens: tuple[int, ...] = TOKENS
    ladder_tokens: tuple[int, ...] = LADDER_TOKENS

    def __init__(self, device: torch.device, dtype: str, clock: Callable[[], float], shape: ModelShape | None = None):
        self.device, self._clock, self._shape = device, clock, shape
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
        x, bias = self._tensor(rows, inputs), self._tensor(outputs)
        copies = self._copies(inputs * outputs)
        return self._in_turn([partial(F.linear, x, copy.view(outputs, inputs), bias) for copy in copies])

    def _copies(self, size: int) -> list[Tensor]:
        """Several pieces of the pool of a weight's size."""
        return [self._pool[i * size : (i + 1) * size] for i in range(min(12, POOL // size))]

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

    def embedded(self) -> dict[str, ModelShape]:
        """The models whose embeddings are timed, by geometry."""
        shapes = [DEMO, deit_shape("tiny"), *([] if self._shape is None else [self._shape])]
        return {geometry(shape): shape for shape in shapes}

    def operations(self) -> Points:
        """Every operation at every point of its grid."""
        yield from self.common()
        for groups in GROUPS:
            for tokens in self.tokens:
                for head_dim in HEAD_DIMS:
                    yield ("attention", groups, tokens, head_dim), self.attention(groups, tokens, head_dim)
        for name, shape in self.embedded().items():
            for batch in BATCHES:
                for width in EMBED_DIMS:
                    yield ("embedding", name, batch, width), self.embedding(shape, batch, width)

    def common(self) -> Points:
        """What every family has: linear layers, norms, GELU, additions, and the ladders."""
        for rows in self.rows:
            for inputs in self.widths:
                for outputs in self.widths:
                    if rows * inputs * outputs <= LARGEST and rows * inputs <= POOL:
                        yield ("linear", rows, inputs, outputs), self.linear(rows, inputs, outputs)
                if rows * inputs <= POOL:
                    for kind, made in (("norm", self.norm), ("gelu", self.gelu), ("add", self.add)):
                        if kind in self.kinds:
                            yield (kind, rows, inputs), made(rows, inputs)
        for rest in range(16):
            yield ("far", rest), self.linear(*FAR_LAYER[:2], FAR_LAYER[2] + rest)
        for width in range(1, LADDER + 1):
            yield ("inputs", width), self.linear(self.ladder_rows, width, LADDER_WIDTH)
            yield ("outputs", width), self.linear(self.ladder_rows, LADDER_WIDTH, width)
            for tokens in self.ladder_tokens if width <= HEAD_DIMS[-1] else ():
                yield ("head_dim", tokens, width), self.attention(LADDER_GROUPS, tokens, width)

    def blocks(self) -> Iterator[TimedBlock]:
        """Blocks to fit the weights on; three of four are narrowed by seed 0."""
        rng = np.random.default_rng(0)
        for batch, tokens, full, heads in FITTED_ON:
            for own, width in narrowed(rng, full, BlockShape(heads, full, 4 * full), 3):
                shape = replace(DEMO, embed_dim=width, blocks=(own,), img_size=(4 * (tokens - 1), 4))
                yield TimedBlock(shape, 0, batch, self.block(batch, tokens, width, own))

    def block(self, batch: int, tokens: int, width: int, own: BlockShape) -> Callable[[], Any]:
        model: Any = random_model(replace(DEMO, embed_dim=width, blocks=(own,) * 3), self.device)
        x = self._plain[: batch * tokens * width].view(batch, tokens, width)
        return self._in_turn([partial(block, x) for block in model.blocks])

    def _in_turn(self, runs: Sequence[Callable[[], Any]]) -> Callable[[], Any]:
        def run() -> None:
            self._turn += 1
            runs[self._turn % len(runs)]()

        return run

    def grids(self, taken: Mapping[Point, float]) -> dict[str, Grid]:
        """The grids of all operations, of measured seconds."""
        attention = grid(taken, "attention", GROUPS, self.tokens, HEAD_DIMS)
        return self.common_grids(taken) | {"attention": attention}

    def common_grids(self, taken: Mapping[Point, float]) -> dict[str, Grid]:
        """Those of `common`."""
        each = {
            kind: grid(taken, kind, self.rows, self.widths) for kind in ("norm", "gelu", "add") if kind in self.kinds
        }
        return each | {"linear": grid(taken, "linear", self.rows, self.widths, self.widths)}

    def embeddings(self, taken: Mapping[Point, float]) -> dict[str, Grid]:
        """The grids of the embeddings, by geometry."""
        return {name: grid(taken, ("embedding", name), BATCHES, EMBED_DIMS) for name in self.embedded()}

    def take_turns(
        self, points: Mapping[Point, Callable[[], Any]], seconds: float, progress: Progress
    ) -> dict[Point, float]:
        """Seconds of every point: the lower quartile over rounds; at least three rounds."""
        begun = time.perf_counter()
        shortest = 1e-3 if self.device.type == "cuda" else 2e-4
        repeats = {}
        for name, run in points.items():
            progress(min(time.perf_counter() - begun, seconds), seconds)
            self._timed(run, 1)
            repeats[name] = max(1, min(200, int(shortest / max(self._timed(run, 1), 1e-6))))
        samples: dict[Point, list[float]] = {name: [] for name in points}
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


def narrowed(
    rng: np.random.Generator, full: int, block: BlockShape, count: int
) -> Iterator[tuple[BlockShape, int]]:  # fmt: skip
    """A block with its residual width `full`, then `count` random narrower ones."""
    yield block, full
    for _ in range(count):
        width, attention, ffn, reduction = (rng.uniform(0.15, 1) for _ in range(4))
        merged = int(rng.choice([h for h in range(1, block.num_heads + 1) if block.num_heads % h == 0]))
        own = BlockShape(
            merged, max(int(block.attention * attention) // merged, 1) * merged, max(int(block.ffn * ffn), 1),
            max(int(block.reduction * reduction), 1) if block.reduction else 0,
        )  # fmt: skip
        yield own, max(int(full * width), 1)


def grid(taken: Mapping[Point, float], name: str | Point, *axes: tuple[int, ...]) -> Grid:
    """The grid of an operation; one too large to be timed grows with the first axis as its narrower neighbour."""
    start = (name,) if isinstance(name, str) else name
    seconds = np.zeros(tuple(len(axis) for axis in axes))
    for index in np.ndindex(seconds.shape):
        key = (*start, *(axis[i] for axis, i in zip(axes, index, strict=True)))
        if key in taken:
            seconds[index] = taken[key]
            continue
        along = next(axis for axis in range(1, len(axes)) if index[axis] > 0)
        step = tuple(int(axis == along) for axis in range(len(axes)))
        fewer, narrower = (index[0] - 1, *index[1:]), tuple(int(i - s) for i, s in zip(index, step, strict=True))
        seconds[index] = seconds[fewer] * seconds[narrower] / seconds[(narrower[0] - 1, *narrower[1:])]
    return Grid(axes, seconds)


def ladders(bench: Bench, taken: Mapping[Point, float], grids: Mapping[str, Grid]) -> dict[str, Ladder]:
    """Time at every single width over what the grids say there."""
    rows = bench.ladder_rows
    widths = np.arange(1, LADDER + 1)
    inputs = np.array([taken["inputs", int(width)] for width in widths])
    outputs = np.array([taken["outputs", int(width)] for width in widths])
    far = np.array([taken["far", rest] / (FAR_LAYER[2] + rest) for rest in range(16)])
    heads = widths[: HEAD_DIMS[-1]]
    each = []
    for tokens in bench.ladder_tokens:
        seconds = np.array([taken["head_dim", tokens, int(d)] for d in heads])
        each.append(np.log(seconds / Grid((HEAD_DIMS,), seconds[np.array(HEAD_DIMS) - 1]).at(heads)))
    return {
        "inputs": Ladder(inputs / grids["linear"].at(rows, widths, LADDER_WIDTH)),
        "outputs": Ladder(outputs / grids["linear"].at(rows, LADDER_WIDTH, widths), far / far[0]),
        "head_dim": Ladder(np.exp(np.mean(each, axis=0))),
    }
