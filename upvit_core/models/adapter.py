"""What every architecture tells the rest of the library: its components, its blocks, how to run from block b on.

Criteria, repair and evaluation speak to this Protocol only; attribute names of a model stay in `upvit_core.models`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn

from upvit_core.models.shape import ModelShape


@dataclass(frozen=True)
class BlockTrace:
    """One block's forward pass, kept so that the removal of a channel re-runs only what follows it.

    q, k, v: (B, heads, N, head_dim); weights: softmax attention (B, heads, T, N); after_attention and output:
    (B, T, D); hidden: (B, T, H). T is N, or the number of tokens that the head reads in the last block.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    weights: Tensor
    after_attention: Tensor
    hidden: Tensor
    output: Tensor


@dataclass(frozen=True)
class Sensitivities:
    """Differentiable intermediates of one forward pass, from which gradients by channel masks follow in closed form.

    `norm_sites` holds (input, output, weight, bias, eps) of every LayerNorm that reads the residual; `activations`
    maps a score key to the tensors (B, ..., channels) that a mask on that key multiplies.
    """

    logits: Tensor
    norm_sites: Sequence[tuple[Tensor, Tensor, Tensor, Tensor, float]]
    activations: dict[str, tuple[Tensor, ...]]


class Adapter(Protocol):
    """An architecture, seen as a stream of tokens that passes through blocks."""

    model: nn.Module
    shape: ModelShape

    def embed(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) to the stream before block 0, (B, N, D)."""

    def logits(self, images: Tensor) -> Tensor:
        """Images to logits (B, classes), as the model itself computes them in eval mode."""

    def trace(self, block: int, x: Tensor) -> BlockTrace:
        """Run one block on its input (B, N, D) and keep what the removals below need."""

    def run_from(self, block: int, x: Tensor, residual_weight: Tensor | None = None) -> Tensor:
        """Logits (B, classes) from the input of `block`; `residual_weight` (B, D) goes into every LayerNorm."""

    def run_half_block(self, half: int, x: Tensor, *, last: bool = False) -> Tensor:
        """Attention of block b (half = 2b) or its FFN (2b + 1) on the stream (B, N, D), norm and shortcut included.

        `last`: no other attention follows, so that the result may hold only the tokens that the head reads, (B, T, D).
        """

    def without_attention(self, block: int, x: Tensor, trace: BlockTrace, channels: Tensor) -> Tensor:
        """The block's output with each channel masked to 0 in q, k and v, one at a time: (C, B, T, D)."""

    def without_ffn(self, block: int, trace: BlockTrace, channels: Tensor) -> Tensor:
        """The block's output with each hidden channel removed, one at a time: (C, B, T, D)."""

    def carriers(self, key: str) -> list[Tensor]:
        """Weights that carry the channels of `key`, each viewed with the channel as its first axis."""

    def sensitivities(self, images: Tensor) -> Sensitivities:
        """One differentiable forward pass; no parameter needs a gradient."""
