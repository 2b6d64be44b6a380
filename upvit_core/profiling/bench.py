"""The timings of a calibration: the operations of a family of models over a grid of sizes, and whole blocks to fit on.

Here those of plain ViTs, and how to time any; `bench_language.py` and `bench_pyramid.py` have the others. All points
are timed in turns, round after round, and each keeps the lower quartile of its rounds, so that a disturbance spoils a
round and not a point. Weights are taken from a pool larger than the caches, as a model of many blocks does.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from typing import cast

import numpy as np
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from upvit_core.models.build import build_model
from upvit_core.profiling.calibration import KINDS, Grid, Ladder, geometry
from upvit_core.profiling.throughput import DTYPES, Clock, autocast, seconds_of
from upvit_core.records.known_shapes import deit_shape
from upvit_core.records.shape import BlockShape, ModelShape, legal_head_counts

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
FITTED_ON = (  # batch, tokens, width, heads
    (8, 50, 96, 6), (32, 50, 96, 6), (1, 197, 192, 3), (8, 197, 192, 3), (1, 197, 384, 6), (4, 197, 384, 6),
    (1, 197, 768, 12), (2, 197, 768, 12),
)  # fmt: skip
Progress = Callable[[float, float], None]
Run = Callable[[], object]
Point = tuple[str | int, ...]
Axes = tuple[tuple[int, ...], ...]
DEMO = replace(
    deit_shape("tiny"), name="demo", embed_dim=96, blocks=(BlockShape(6, 96, 384),) * 6, img_size=(28, 28),
    patch_size=(4, 4), in_chans=1, num_classes=10,
)  # fmt: skip
LIMIT, LEAST_SECONDS = 3.0, 20.0
"""A calibration ends after so many times the seconds that were asked for, of which so many count at least."""


@dataclass(frozen=True)
class TimedBlock:
    """A block to fit weights on: block `number` of `shape` at a batch size, and how to run it."""

    shape: ModelShape
    number: int
    batch: int
    run: Run


class Bench:
    """Operations as timm's ViT runs them, on shared buffers, and how to time them.

    `shape`: the model that estimates are wanted for; its embedding is timed beside the demo's and DeiT's.
    """

    kinds: tuple[str, ...] = KINDS
    rows: tuple[int, ...] = ROWS
    widths: tuple[int, ...] = WIDTHS
    tokens: tuple[int, ...] = TOKENS
    ladder_tokens: tuple[int, ...] = LADDER_TOKENS

    def __init__(self, device: torch.device, dtype: str, clock: Clock, shape: ModelShape | None = None):
        self.device, self._clock, self._shape = device, clock, shape
        self._autocast = autocast(device, dtype)
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

    def _stream(self, *sizes: int) -> Tensor:
        """Values of the residual stream, in float32."""
        return self._plain[: int(np.prod(sizes))].view(*sizes)

    def linear(self, rows: int, inputs: int, outputs: int) -> Run:
        x, bias, size = self._tensor(rows, inputs), self._tensor(outputs), inputs * outputs
        weights = [self._pool[i * size : (i + 1) * size] for i in range(min(12, POOL // size))]
        return self._in_turn([self._layer(x, weight, bias) for weight in weights])

    def _layer(self, x: Tensor, weight: Tensor, bias: Tensor) -> Run:
        return partial(F.linear, x, weight.view(len(bias), -1), bias)

    def attention(self, groups: int, tokens: int, head_dim: int) -> Run:
        batch, heads = heads_in(groups)
        width = heads * head_dim
        qkv = self._tensor(batch, tokens, 3 * width)

        def run() -> None:
            q, k, v = qkv.reshape(batch, tokens, 3, heads, head_dim).permute(2, 0, 3, 1, 4).unbind(0)
            F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, tokens, width)

        return run

    def norm(self, rows: int, width: int) -> Run:
        x, weight = self._stream(rows, width), self._stream(width)
        return lambda: F.layer_norm(x, (width,), weight, weight, 1e-6)

    def gelu(self, rows: int, width: int) -> Run:
        return partial(F.gelu, self._tensor(rows, width))

    def add(self, rows: int, width: int) -> Run:
        return partial(torch.add, self._stream(rows, width), self._tensor(rows, width))

    def embedding(self, shape: ModelShape, batch: int, width: int) -> Run:
        """Everything before block 0, by timm's own code."""
        narrow = replace(shape, embed_dim=width, blocks=(BlockShape(1, 8, 8),))
        model = cast(VisionTransformer, random_model(narrow, self.device))
        sizes = (batch, shape.in_chans, *shape.img_size)
        images = self._random(int(np.prod(sizes)), torch.float32).view(*sizes)
        return lambda: model.norm_pre(model._pos_embed(model.patch_embed(images)))

    def embedded(self) -> dict[str, ModelShape]:
        """The models whose embeddings are timed, by geometry."""
        shapes = [DEMO, deit_shape("tiny"), *([] if self._shape is None else [self._shape])]
        return {geometry(shape): shape for shape in shapes}

    def axes(self) -> dict[str, Axes]:
        """The sizes over which each operation is timed, by its name in a calibration's grids."""
        attention: dict[str, Axes] = {"attention": (GROUPS, self.tokens, HEAD_DIMS)}
        return self.common_axes() | attention

    def common_axes(self) -> dict[str, Axes]:
        """The axes of linear layers, norms, GELU and additions, which every family has."""
        elementwise = [kind for kind in ("norm", "gelu", "add") if kind in self.kinds]
        return {"linear": (self.rows, self.widths, self.widths), **dict.fromkeys(elementwise, (self.rows, self.widths))}

    def operation(self, name: str, *sizes: int) -> Run:
        """One operation at one point of its axes."""
        operations: dict[str, Callable[..., Run]] = {
            "linear": self.linear, "attention": self.attention, "norm": self.norm, "gelu": self.gelu, "add": self.add,
        }  # fmt: skip
        return operations[name](*sizes)

    def operations(self) -> Iterator[tuple[Point, Run]]:
        """Every operation at every point of its grid that is not too large, the ladders, and the embeddings."""
        for name, axes in self.axes().items():
            for sizes in product(*axes):
                if name not in self.common_axes() or (np.prod(sizes) <= LARGEST and np.prod(sizes[:2]) <= POOL):
                    yield (name, *sizes), self.operation(name, *sizes)
        for rest in range(16):
            yield ("far", rest), self.linear(*FAR_LAYER[:2], FAR_LAYER[2] + rest)
        for width in range(1, LADDER + 1):
            yield ("inputs", width), self.linear(self.ladder_rows, width, LADDER_WIDTH)
            yield ("outputs", width), self.linear(self.ladder_rows, LADDER_WIDTH, width)
            for tokens in self.ladder_tokens if width <= HEAD_DIMS[-1] else ():
                yield ("head_dim", tokens, width), self.attention(LADDER_GROUPS, tokens, width)
        for name, shape in self.embedded().items():
            for batch, width in product(BATCHES, EMBED_DIMS):
                yield ("embedding", name, batch, width), self.embedding(shape, batch, width)

    def blocks(self) -> Iterator[TimedBlock]:
        """Blocks to fit the weights on; three of four are narrowed by seed 0."""
        rng = np.random.default_rng(0)
        for batch, base, full, heads in self.fitted_on():
            for block, width in narrowed(rng, full, BlockShape(heads, full, 4 * full), 3):
                shape = replace(base, embed_dim=width, blocks=(block,))
                x = self._stream(batch, shape.num_tokens, width)
                yield TimedBlock(shape, 0, batch, self._in_turn([partial(b, x) for b in self._three_blocks(shape)]))

    def fitted_on(self) -> Iterator[tuple[int, ModelShape, int, int]]:
        """Batch, model, residual width and heads of blocks to fit the weights on."""
        for batch, tokens, width, heads in FITTED_ON:
            yield batch, replace(DEMO, img_size=(4 * (tokens - 1), 4)), width, heads

    def _three_blocks(self, shape: ModelShape) -> Sequence[Callable[[Tensor], object]]:
        """Three blocks of random weights, each as the one of `shape`."""
        model = random_model(replace(shape, blocks=shape.blocks * 3), self.device)
        return list(cast(VisionTransformer, model).blocks)

    def _in_turn(self, runs: Sequence[Run]) -> Run:
        def run() -> None:
            self._turn += 1
            runs[self._turn % len(runs)]()

        return run

    def grids(self, taken: Mapping[Point, float]) -> dict[str, Grid]:
        """The grids of all operations, of measured seconds."""
        return {name: grid(taken, name, *axes) for name, axes in self.axes().items()}

    def embeddings(self, taken: Mapping[Point, float]) -> dict[str, Grid]:
        """The grids of the embeddings, by geometry."""
        return {name: grid(taken, ("embedding", name), BATCHES, EMBED_DIMS) for name in self.embedded()}

    def take_turns(self, points: Mapping[Point, Run], seconds: float, progress: Progress) -> dict[Point, float]:
        """Seconds of every point: the lower quartile over rounds; at least three, unless they take LIMIT x `seconds`.

        `progress` receives the share of `seconds`, or of the passes of three rounds where those take longer.
        """
        begun, passes = time.perf_counter(), 0

        def tell() -> float:
            spent = time.perf_counter() - begun
            progress(seconds * min(1.0, spent / max(seconds, 1e-9), passes / (4 * len(points))), seconds)
            return spent

        shortest = 1e-3 if self.device.type == "cuda" else 2e-4
        repeats = {}
        for name, run in points.items():
            tell()
            self._timed(run, 1)
            passes += 1
            repeats[name] = max(1, min(200, int(shortest / max(self._timed(run, 1), 1e-6))))
        samples: dict[Point, list[float]] = {name: [] for name in points}
        rounds, spent = 0, 0.0
        while rounds < 3 or spent < seconds * (1 - 0.5 / rounds):
            if rounds and spent > LIMIT * max(seconds, LEAST_SECONDS):
                break
            for name, run in points.items():
                samples[name].append(self._timed(run, repeats[name]) / repeats[name])
                passes += 1
                spent = tell()
            rounds += 1
        progress(seconds, seconds)
        return {name: float(np.quantile(values, 0.25)) for name, values in samples.items()}

    def _timed(self, run: Run, repeats: int) -> float:
        run()  # its inputs were just written, as in a model

        def repeated() -> None:
            for _ in range(repeats):
                run()

        return max(seconds_of(repeated, self.device, self._clock), 1e-9)


def heads_in(groups: int) -> tuple[int, int]:
    """Batch size and heads, at most four, of so many groups of attention."""
    heads = min(4, groups)
    return groups // heads, heads


def random_model(shape: ModelShape, device: torch.device) -> nn.Module:
    """A model of random weights without the cost of timm's initialisation."""
    generator = torch.Generator(device).manual_seed(0)
    with torch.inference_mode(False), torch.no_grad():
        model = build_model(shape, device="meta").to_empty(device=device).eval()
        for parameter in model.parameters():
            parameter.normal_(0, 0.02, generator=generator)
    return model


def narrowed(rng: np.random.Generator, full: int, block: BlockShape, count: int) -> Iterator[tuple[BlockShape, int]]:
    """A block with its residual width `full`, then `count` random narrower ones."""
    yield block, full
    for _ in range(count):
        width, attention, ffn, reduction = (rng.uniform(0.15, 1) for _ in range(4))
        heads = int(rng.choice(legal_head_counts(block.num_heads)[::-1]))
        thin = BlockShape(
            heads, max(int(block.attention * attention) // heads, 1) * heads, max(int(block.ffn * ffn), 1),
            max(int(block.reduction * reduction), 1) if block.reduction else 0,
        )  # fmt: skip
        yield thin, max(int(full * width), 1)


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
    """Time at every single width over the interpolated time of the grids."""
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
