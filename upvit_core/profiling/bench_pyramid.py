"""What a calibration times of a PVTv2, as timm runs it, at the maps of one image size."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from timm.layers.norm import LayerNorm
from timm.models.pvt_v2 import OverlapPatchEmbed, PyramidVisionTransformerStage
from torch import nn
from torch.nn import functional as F

from upvit_core.profiling.bench import Bench, Point, Points, TimedBlock, grid, narrowed, random_model
from upvit_core.profiling.calibration import PYRAMID_KINDS, Grid
from upvit_core.records.shape import BlockShape, ModelShape, pvt_shape

GROUPS = (1, 8, 64)
HEAD_DIMS = (8, 16, 32, 64, 128)
MOST_ROWS = 25_088  # tokens of a batch: eight images of 224 pixels in the first stage
SHARES = (16, 4, 2, 1)  # of the widest model's widths


class PyramidBench(Bench):
    """Linear layers over many rows, attention to fewer keys, and the convolutions of each stage."""

    kinds = PYRAMID_KINDS
    rows = (1, 8, 50, 200, 800, 3200, MOST_ROWS)
    widths = (8, 16, 32, 64, 128, 320, 512, 1024, 2048)

    def __init__(self, device: torch.device, dtype: str, clock: Callable[[], float], shape: ModelShape):
        super().__init__(device, dtype, clock, shape)
        self._own = shape
        most = int(np.clip(MOST_ROWS // shape.tokens_at(0), 2, 64))
        self.batches = (1, max(2, round(most**0.5)), most) if most > 2 else (1, most)
        self._maps = [shape.map_size(stage) for stage in range(len(shape.stages))]

    def dims(self, stage: int) -> tuple[int, ...]:
        """Residual widths at which a stage is timed: up to timm's widest, or the model's own."""
        widest = pvt_shape("b2").embed_dims
        most = max(self._own.embed_dims[stage], widest[min(stage, len(widest) - 1)])
        return tuple(most // share for share in SHARES)

    def hidden(self, stage: int) -> tuple[int, ...]:
        """Hidden widths of the FFN at which a stage is timed."""
        own = max(block.ffn for b, block in enumerate(self._own.blocks) if self._own.stage_of(b) == stage)
        return tuple(max(own, (8, 8, 4, 4)[min(stage, 3)] * self.dims(stage)[-1]) // share for share in SHARES)

    def operations(self) -> Points:
        yield from self.common()
        for stage, own in enumerate(self._own.stages):
            before = self.dims(stage - 1) if stage else (self._own.in_chans,)
            for batch in self.batches:
                for inputs in before:
                    for width in self.dims(stage):
                        yield (f"opening.{stage}", batch, inputs, width), self.opening(stage, batch, inputs, width)
                for width in self.dims(stage) if own.reduction_ratio > 1 else ():
                    for reduced in self.dims(stage):
                        yield (
                            (f"reduction.{stage}", batch, width, reduced),
                            self.reduction(stage, batch, width, reduced),
                        )
                for width in self.hidden(stage):
                    yield (f"depthwise.{stage}", batch, width), self.depthwise(stage, batch, width)
            for groups in self.groups(stage):
                for head_dim in HEAD_DIMS:
                    yield (f"attention.{stage}", groups, head_dim), self.cross_attention(stage, groups, head_dim)

    def groups(self, stage: int) -> tuple[int, ...]:
        """Batch times heads, as many as memory and patience allow."""
        height, width = self._maps[stage]
        return tuple(groups for groups in GROUPS if groups == 1 or groups * height * width <= 2 * MOST_ROWS)

    def opening(self, stage: int, batch: int, inputs: int, width: int) -> Callable[[], Any]:
        """All of a stage but its blocks."""
        arguments: dict[str, Any] = {"norm_layer": partial(LayerNorm, eps=self._own.norm_eps), "depth": 0}
        arguments |= {"dim_out": width, "downsample": stage > 0, "device": self.device}
        part = PyramidVisionTransformerStage(inputs if stage else width, **arguments).eval()
        first = self._own.stages[0]
        if stage:
            x = self._maps_of(stage - 1, batch, inputs)
            return lambda: part(x)
        embed = OverlapPatchEmbed(first.kernel, first.stride, inputs, width, device=self.device).eval()
        images = self._random(batch * inputs * int(np.prod(self._own.img_size)), torch.float32)
        x = images.view(batch, inputs, *self._own.img_size)
        return lambda: part(embed(x))

    def _maps_of(self, stage: int, batch: int, channels: int) -> torch.Tensor:
        height, width = self._maps[stage]
        return self._plain[: batch * channels * height * width].view(batch, channels, height, width)

    def reduction(self, stage: int, batch: int, width: int, reduced: int) -> Callable[[], Any]:
        """The convolution that shrinks the map for keys and values, and its norm."""
        ratio, (height, across) = self._own.stages[stage].reduction_ratio, self._maps[stage]
        conv = nn.Conv2d(width, reduced, ratio, ratio, device=self.device)
        norm = nn.LayerNorm(reduced, device=self.device)
        x = self._tensor(batch, height * across, width)

        def run() -> None:
            norm(conv(x.transpose(1, 2).reshape(batch, width, height, across)).flatten(2).transpose(1, 2))

        return run

    def depthwise(self, stage: int, batch: int, width: int) -> Callable[[], Any]:
        """The depthwise convolution of the FFN and GELU, up to what the next linear layer reads."""
        height, across = self._maps[stage]
        conv = nn.Conv2d(width, width, 3, 1, 1, groups=width, device=self.device)
        x = self._tensor(batch, height * across, width)

        def run() -> None:
            F.gelu(conv(x.transpose(1, 2).view(batch, width, height, across)).flatten(2).transpose(1, 2)).contiguous()

        return run

    def cross_attention(self, stage: int, groups: int, head_dim: int) -> Callable[[], Any]:
        """From queries, keys and values to the input of proj."""
        ratio, (height, across) = self._own.stages[stage].reduction_ratio, self._maps[stage]
        heads = min(4, groups)
        batch, width = groups // heads, heads * head_dim
        queries = self._tensor(batch, height * across, width)
        both = self._tensor(batch, (height // ratio) * (across // ratio), 2 * width)

        def run() -> None:
            q = queries.reshape(batch, -1, heads, head_dim).transpose(1, 2)
            k, v = both.reshape(batch, -1, 2, heads, head_dim).permute(2, 0, 3, 1, 4).unbind(0)
            F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, -1, width)

        return run

    def blocks(self) -> Iterator[TimedBlock]:
        rng = np.random.default_rng(0)
        for stage, own in enumerate(self._own.stages):
            full = self._own.blocks[self._own.first_block(stage)]
            for batch in self.batches[:2]:
                for narrow, width in narrowed(rng, own.embed_dim, full, 2):
                    yield self._block(stage, batch, width, narrow)

    def _block(self, stage: int, batch: int, width: int, own: BlockShape) -> TimedBlock:
        """One block of a stage; the other stages are as narrow as can be."""
        stages = tuple(
            replace(other, depth=3 if number == stage else 1, embed_dim=width if number == stage else 1)
            for number, other in enumerate(self._own.stages)
        )
        blocks = [
            own if number == stage else BlockShape(1, 1, 1, int(other.reduction_ratio > 1))
            for number, other in enumerate(stages)
            for _ in range(other.depth)
        ]
        shape = replace(self._own, stages=stages, embed_dim=stages[-1].embed_dim, blocks=tuple(blocks))
        model: Any = random_model(shape, self.device)
        size = self._maps[stage]
        x = self._plain[: batch * size[0] * size[1] * width].view(batch, size[0] * size[1], width)
        runs = [partial(block, x, size) for block in model.stages[stage].blocks]
        return TimedBlock(shape, shape.first_block(stage), batch, self._in_turn(runs))

    def grids(self, taken: Mapping[Point, float]) -> dict[str, Grid]:
        grids = self.common_grids(taken)
        for stage, own in enumerate(self._own.stages):
            before, dims = self.dims(stage - 1) if stage else (self._own.in_chans,), self.dims(stage)
            sizes = {"opening": (self.batches, before, dims), "depthwise": (self.batches, self.hidden(stage)),
                     "attention": (self.groups(stage), HEAD_DIMS)}  # fmt: skip
            if own.reduction_ratio > 1:
                sizes["reduction"] = (self.batches, dims, dims)
            grids |= {f"{kind}.{stage}": grid(taken, f"{kind}.{stage}", *axes) for kind, axes in sizes.items()}
        return grids

    def embeddings(self, taken: Mapping[Point, float]) -> dict[str, Grid]:
        return {}
