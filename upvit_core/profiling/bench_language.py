"""What a calibration times of a GPT-2, as `transformers` runs it, at the context and vocabulary of one model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from upvit_core.models.gpt2 import random_inputs
from upvit_core.profiling.bench import (
    EMBED_DIMS,
    Bench,
    Point,
    Points,
    TimedBlock,
    grid,
    narrowed,
    random_model,
)
from upvit_core.profiling.calibration import Grid, geometry
from upvit_core.records.shape import BlockShape, ModelShape

HEAD_ROWS = (16, 64, 256, 1024, 4096)
LARGEST_HEAD = 1.2e10  # multiply-accumulates
BLOCK_ROWS = (1024, 4096)
FITTED_ON = ((64, 2), (192, 6))


class LanguageBench(Bench):
    """Linear layers with weights (inputs, outputs), causal attention, GELU written out, and an output layer."""

    def __init__(self, device: torch.device, dtype: str, clock: Callable[[], float], shape: ModelShape):
        super().__init__(device, dtype, clock, shape)
        self._own = shape
        self.tokens = self.ladder_tokens = (shape.num_tokens,)
        within = [rows for rows in HEAD_ROWS if rows * EMBED_DIMS[-1] * shape.num_classes <= LARGEST_HEAD]
        self.head_rows = tuple(within) if len(within) > 1 else HEAD_ROWS[:2]
        self._gelu = gelu()

    def linear(self, rows: int, inputs: int, outputs: int) -> Callable[[], Any]:
        x, bias = self._tensor(rows, inputs), self._tensor(outputs)
        copies = self._copies(inputs * outputs)
        return self._in_turn([partial(torch.addmm, bias, x, copy.view(inputs, outputs)) for copy in copies])

    def attention(self, groups: int, tokens: int, head_dim: int) -> Callable[[], Any]:
        heads = min(4, groups)
        batch, width = groups // heads, heads * head_dim
        qkv = self._tensor(batch, tokens, 3 * width)

        def run() -> None:
            q, k, v = (part.view(batch, tokens, heads, head_dim).transpose(1, 2) for part in qkv.split(width, dim=2))
            out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            out.transpose(1, 2).contiguous().reshape(batch, tokens, width).contiguous()

        return run

    def gelu(self, rows: int, width: int) -> Callable[[], Any]:
        x = self._tensor(rows, width)
        return lambda: self._gelu(x)

    def embedding(self, shape: ModelShape, batch: int, width: int) -> Callable[[], Any]:
        """Everything but the blocks and the output layer, by `transformers`' own code."""
        model: Any = random_model(replace(shape, embed_dim=width, blocks=(BlockShape(1, 8, 8),)), self.device)
        model.transformer.h = nn.ModuleList()
        ids = random_inputs(shape, batch).to(self.device)
        return lambda: model.transformer(input_ids=ids, use_cache=False)

    def embedded(self) -> dict[str, ModelShape]:
        return {geometry(self._own): self._own}

    def operations(self) -> Points:
        yield from super().operations()
        weights = self._random(self._own.num_classes * EMBED_DIMS[-1], self._type)
        for rows in self.head_rows:
            for width in EMBED_DIMS:
                x, weight = self._tensor(rows, width), weights[: self._own.num_classes * width].view(-1, width)
                yield ("head", rows, width), partial(F.linear, x, weight)

    def blocks(self) -> Iterator[TimedBlock]:
        rng = np.random.default_rng(0)
        first = self._own.blocks[0]
        fitted_on = [*FITTED_ON, (self._own.embed_dim, first.num_heads)]
        for batch in sorted({1, *(max(1, rows // self._own.num_tokens) for rows in BLOCK_ROWS)}):
            for full, heads in fitted_on:
                for own, width in narrowed(rng, full, BlockShape(heads, full, 4 * full), 3):
                    shape = replace(self._own, embed_dim=width, blocks=(own,))
                    yield TimedBlock(shape, 0, batch, self.block(batch, shape.num_tokens, width, own))

    def block(self, batch: int, tokens: int, width: int, own: BlockShape) -> Callable[[], Any]:
        model: Any = random_model(replace(self._own, num_classes=2, embed_dim=width, blocks=(own,) * 3), self.device)
        x = self._plain[: batch * tokens * width].view(batch, tokens, width)
        return self._in_turn([partial(block, x, None, None) for block in model.transformer.h])

    def grids(self, taken: Mapping[Point, float]) -> dict[str, Grid]:
        return super().grids(taken) | {"head": grid(taken, "head", self.head_rows, EMBED_DIMS)}


def gelu() -> nn.Module:
    """GPT-2's, by `transformers`' own code, which calls no fused kernel."""
    from transformers.activations import ACT2FN

    return ACT2FN["gelu_new"]
