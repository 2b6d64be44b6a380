"""The timings of a GPT-2's calibration, as `transformers` runs it, at the context and vocabulary of one model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from upvit_core.models.gpt2 import random_inputs
from upvit_core.profiling.bench import EMBED_DIMS, Axes, Bench, Run, heads_in, random_model
from upvit_core.profiling.calibration import geometry
from upvit_core.profiling.throughput import Clock
from upvit_core.records.shape import BlockShape, ModelShape

if TYPE_CHECKING:
    from transformers import GPT2LMHeadModel

HEAD_ROWS = (16, 64, 256, 1024, 4096)
LARGEST_HEAD = 1.2e10  # multiply-accumulates
BLOCK_ROWS = (1024, 4096)
FITTED_ON = ((64, 2), (192, 6))  # width, heads


class LanguageBench(Bench):
    """Linear layers with weights (inputs, outputs), causal attention, GELU written out, and an output layer."""

    def __init__(self, device: torch.device, dtype: str, clock: Clock, shape: ModelShape):
        super().__init__(device, dtype, clock, shape)
        self._model = shape
        self.tokens = self.ladder_tokens = (shape.num_tokens,)
        within = [rows for rows in HEAD_ROWS if rows * EMBED_DIMS[-1] * shape.num_classes <= LARGEST_HEAD]
        self.head_rows = tuple(within) if len(within) > 1 else HEAD_ROWS[:2]
        self._words = self._random(shape.num_classes * EMBED_DIMS[-1], self._type)
        self._gelu = gelu()

    def _layer(self, x: Tensor, weight: Tensor, bias: Tensor) -> Run:
        return partial(torch.addmm, bias, x, weight.view(-1, len(bias)))

    def attention(self, groups: int, tokens: int, head_dim: int) -> Run:
        batch, heads = heads_in(groups)
        width = heads * head_dim
        qkv = self._tensor(batch, tokens, 3 * width)

        def run() -> None:
            q, k, v = (part.view(batch, tokens, heads, head_dim).transpose(1, 2) for part in qkv.split(width, dim=2))
            out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            out.transpose(1, 2).contiguous().reshape(batch, tokens, width).contiguous()

        return run

    def gelu(self, rows: int, width: int) -> Run:
        return partial(self._gelu, self._tensor(rows, width))

    def head(self, rows: int, width: int) -> Run:
        weight = self._words[: self._model.num_classes * width].view(-1, width)
        return partial(F.linear, self._tensor(rows, width), weight)

    def embedding(self, shape: ModelShape, batch: int, width: int) -> Run:
        """Everything but the blocks and the output layer, by `transformers`' own code."""
        narrow = replace(shape, embed_dim=width, blocks=(BlockShape(1, 8, 8),))
        model = cast("GPT2LMHeadModel", random_model(narrow, self.device))
        model.transformer.h = nn.ModuleList()
        ids = random_inputs(shape, batch).to(self.device)
        return lambda: model.transformer(input_ids=ids, use_cache=False)

    def embedded(self) -> dict[str, ModelShape]:
        return {geometry(self._model): self._model}

    def axes(self) -> dict[str, Axes]:
        return super().axes() | {"head": (self.head_rows, EMBED_DIMS)}

    def operation(self, name: str, *sizes: int) -> Run:
        return self.head(*sizes) if name == "head" else super().operation(name, *sizes)

    def fitted_on(self) -> Iterator[tuple[int, ModelShape, int, int]]:
        model = self._model
        for batch in sorted({1, *(max(1, rows // model.num_tokens) for rows in BLOCK_ROWS)}):
            for width, heads in (*FITTED_ON, (model.embed_dim, model.blocks[0].num_heads)):
                yield batch, model, width, heads

    def _three_blocks(self, shape: ModelShape) -> Sequence[Callable[[Tensor], object]]:
        model = random_model(replace(shape, num_classes=2, blocks=shape.blocks * 3), self.device)
        return list(cast("GPT2LMHeadModel", model).transformer.h)


def gelu() -> nn.Module:
    """GPT-2's, by `transformers`' own code, which calls no fused kernel."""
    from transformers.activations import ACT2FN

    return ACT2FN["gelu_new"]
