"""The timings of a PVTv2's calibration, as timm runs it, at the maps of one image size."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import cast

import numpy as np
import torch
from timm.layers.norm import LayerNorm
from timm.models.pvt_v2 import OverlapPatchEmbed, PyramidVisionTransformerStage, PyramidVisionTransformerV2
from torch import nn
from torch.nn import functional as F

from upvit_core.profiling.bench import Axes, Bench, Run, TimedBlock, heads_in, narrowed, random_model
from upvit_core.profiling.calibration import PYRAMID_KINDS
from upvit_core.profiling.throughput import Clock
from upvit_core.records.known_shapes import pvt_shape
from upvit_core.records.shape import POOLED, BlockShape, ModelShape

GROUPS = (1, 8, 64)
HEAD_DIMS = (8, 16, 32, 64, 128)
MOST_ROWS = 25_088  # tokens of a batch: eight images of 224 pixels in the first stage
SHARES = (16, 4, 2, 1)  # of the widest model's widths


class PyramidBench(Bench):
    """Linear layers over many rows, attention to fewer keys, and the convolutions of each stage."""

    kinds = PYRAMID_KINDS
    rows = (1, 8, 50, 200, 800, 3200, MOST_ROWS)
    widths = (8, 16, 32, 64, 128, 320, 512, 1024, 2048)

    def __init__(self, device: torch.device, dtype: str, clock: Clock, shape: ModelShape):
        super().__init__(device, dtype, clock, shape)
        self._model = shape
        most = int(np.clip(MOST_ROWS // shape.tokens_at(0), 2, 64))
        self.batches = (1, max(2, round(most**0.5)), most) if most > 2 else (1, most)
        self._maps = [shape.map_size(stage) for stage in range(len(shape.stages))]

    def dims(self, stage: int) -> tuple[int, ...]:
        """Residual widths at which a stage is timed: up to timm's widest, or the model's own."""
        widest = pvt_shape("b2").embed_dims
        most = max(self._model.embed_dims[stage], widest[min(stage, len(widest) - 1)])
        return tuple(most // share for share in SHARES)

    def hidden(self, stage: int) -> tuple[int, ...]:
        """Hidden widths of the FFN at which a stage is timed."""
        widest = max(block.ffn for b, block in enumerate(self._model.blocks) if self._model.stage_of(b) == stage)
        most = max(widest, (8, 8, 4, 4)[min(stage, 3)] * self.dims(stage)[-1])
        return tuple(most // share for share in SHARES)

    def axes(self) -> dict[str, Axes]:
        axes = self.common_axes()
        for number, stage in enumerate(self._model.stages):
            before, dims = self.dims(number - 1) if number else (self._model.in_chans,), self.dims(number)
            axes[f"opening.{number}"] = (self.batches, before, dims)
            axes[f"depthwise.{number}"] = (self.batches, self.hidden(number))
            axes[f"attention.{number}"] = (self.groups(number), HEAD_DIMS)
            if stage.reduces:
                axes[f"reduction.{number}"] = (self.batches, dims, dims)
        return axes

    def operation(self, name: str, *sizes: int) -> Run:
        kind, _, stage = name.partition(".")
        if not stage:
            return super().operation(name, *sizes)
        operations: dict[str, Callable[..., Run]] = {
            "opening": self.opening, "depthwise": self.depthwise, "attention": self.cross_attention,
            "reduction": self.reduction,
        }  # fmt: skip
        return operations[kind](int(stage), *sizes)

    def embedded(self) -> dict[str, ModelShape]:
        return {}

    def groups(self, stage: int) -> tuple[int, ...]:
        """Batch times heads, as many as memory and patience allow."""
        height, width = self._maps[stage]
        return tuple(groups for groups in GROUPS if groups == 1 or groups * height * width <= 2 * MOST_ROWS)

    def opening(self, stage: int, batch: int, inputs: int, width: int) -> Run:
        """All of a stage but its blocks."""
        part = PyramidVisionTransformerStage(
            inputs if stage else width, width, depth=0, downsample=stage > 0, device=self.device,
            norm_layer=partial(LayerNorm, eps=self._model.norm_eps),
        ).eval()  # fmt: skip
        if stage:
            height, across = self._maps[stage - 1]
            return partial(part, self._stream(batch, inputs, height, across))
        first = self._model.stages[0]
        embed = OverlapPatchEmbed(first.kernel, first.stride, inputs, width, device=self.device).eval()
        sizes = (batch, inputs, *self._model.img_size)
        images = self._random(int(np.prod(sizes)), torch.float32).view(*sizes)
        return lambda: part(embed(images))

    def reduction(self, stage: int, batch: int, width: int, reduced: int) -> Run:
        """The convolution that shrinks the map for keys and values, and its norm."""
        ratio, (height, across) = self._model.stages[stage].reduction_ratio, self._maps[stage]
        conv = nn.Conv2d(width, reduced, ratio or 1, ratio or 1, device=self.device)
        norm = nn.LayerNorm(reduced, device=self.device)
        x = self._tensor(batch, height * across, width)

        def run() -> None:
            grid = x.transpose(1, 2).reshape(batch, width, height, across)
            if ratio:
                norm(conv(grid).flatten(2).transpose(1, 2))
            else:
                F.gelu(norm(conv(F.adaptive_avg_pool2d(grid, POOLED)).flatten(2).transpose(1, 2)))

        return run

    def depthwise(self, stage: int, batch: int, width: int) -> Run:
        """The depthwise convolution of the FFN and GELU, up to the input of the next linear layer."""
        height, across = self._maps[stage]
        conv = nn.Conv2d(width, width, 3, 1, 1, groups=width, device=self.device)
        x, linear = self._tensor(batch, height * across, width), self._model.stages[stage].is_linear

        def run() -> None:
            grid = x.transpose(1, 2).view(batch, width, height, across)
            F.gelu(conv(F.relu(grid) if linear else grid).flatten(2).transpose(1, 2)).contiguous()

        return run

    def cross_attention(self, stage: int, groups: int, head_dim: int) -> Run:
        """From queries, keys and values to the input of proj."""
        batch, heads = heads_in(groups)
        width, first = heads * head_dim, self._model.first_block(stage)
        queries = self._tensor(batch, self._model.tokens_at(first), width)
        both = self._tensor(batch, self._model.keys_at(first), 2 * width)

        def run() -> None:
            q = queries.reshape(batch, -1, heads, head_dim).transpose(1, 2)
            k, v = both.reshape(batch, -1, 2, heads, head_dim).permute(2, 0, 3, 1, 4).unbind(0)
            F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, -1, width)

        return run

    def blocks(self) -> Iterator[TimedBlock]:
        rng = np.random.default_rng(0)
        for number, stage in enumerate(self._model.stages):
            full = self._model.blocks[self._model.first_block(number)]
            for batch in self.batches[:2]:
                for thin, width in narrowed(rng, stage.embed_dim, full, 2):
                    yield self._block(number, batch, width, thin)

    def _block(self, number: int, batch: int, width: int, block: BlockShape) -> TimedBlock:
        """One block of a stage; the other stages are as narrow as can be."""
        stages = [replace(stage, depth=1, embed_dim=1) for stage in self._model.stages]
        stages[number] = replace(stages[number], depth=3, embed_dim=width)
        blocks = [BlockShape(1, 1, 1, int(stage.reduces)) for stage in stages]
        shape = replace(
            self._model, stages=tuple(stages), embed_dim=stages[-1].embed_dim,
            blocks=(*blocks[:number], block, block, block, *blocks[number + 1 :]),
        )  # fmt: skip
        model = cast(PyramidVisionTransformerV2, random_model(shape, self.device))
        height, across = self._maps[number]
        x = self._stream(batch, height * across, width)
        stage = cast(PyramidVisionTransformerStage, model.stages[number])
        runs = [partial(timm_block, x, (height, across)) for timm_block in stage.blocks]
        return TimedBlock(shape, shape.first_block(number), batch, self._in_turn(runs))
