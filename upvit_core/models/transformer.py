"""The forward pass of blocks of attention and FFN, half a block at a time, and the exact removal of their channels.

Every adapter builds on this. A family adds its own half-blocks, how the stream begins and how the head reads it. The
norms are applied by a function that callers may replace: to weigh channels, or to record each norm's input and output.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from timm.layers.norm import RmsNorm
from torch import Tensor, nn
from torch.nn import functional as F

from upvit_core.models.adapter import NormSite, Sensitivities
from upvit_core.models.output import SOFTMAX, OutputDistribution
from upvit_core.records.shape import ModelShape

Norm = Callable[[Tensor, nn.Module], Tensor]
"""Applies a norm layer to a stream (B, N, D)."""
Keep = Callable[[str, Tensor], Tensor]
"""Receives each intermediate result by its name in a trace, and returns it; without one, memory is freed at once."""


@dataclass(frozen=True)
class AttentionTrace:
    """Attention of one block on the stream, of whose N tokens T go on and M are attended to.

    shortcut, the stream before: (B, T, D); normed: (B, N, D); q: (B, T, A); k, v: (B, M, A); mixed, the input of the
    output projection: (B, T, A); written, its output, and stream, the sum of shortcut and written: (B, T, D). reduced,
    where a spatial reduction comes before keys and values: its output (B, M, R) before its norm.
    """

    shortcut: Tensor
    normed: Tensor
    q: Tensor
    k: Tensor
    v: Tensor
    mixed: Tensor
    written: Tensor
    stream: Tensor
    reduced: Tensor | None = None


@dataclass(frozen=True)
class FeedForwardTrace:
    """The FFN of one block: shortcut, normed, written and stream as in attention, (B, T, D) each; before and hidden,
    the output of the first layer and the input of the second: (B, T, H)."""

    shortcut: Tensor
    normed: Tensor
    before: Tensor
    hidden: Tensor
    written: Tensor
    stream: Tensor


@dataclass(frozen=True)
class BlockTrace:
    """Both halves of a block and its softmax attention, (B, heads, T, M), from which removals in it start."""

    attention: AttentionTrace
    feed_forward: FeedForwardTrace
    weights: Tensor

    @property
    def output(self) -> Tensor:
        return self.feed_forward.stream


def stock_norm(x: Tensor, layer: nn.Module) -> Tensor:
    """The layer itself."""
    return layer(x)


def keep_nothing(name: str, x: Tensor) -> Tensor:
    return x


NORMS = (nn.LayerNorm, RmsNorm)


def weighted_layer_norm(x: Tensor, norm: nn.LayerNorm | RmsNorm, channel_weight: Tensor) -> Tensor:
    """A norm whose mean and variance weigh the channels; for weights in {0, 1} the same as removing channels.

    x: (B, N, D); channel_weight: (B, D). The output is multiplied by the weight.
    """
    w = channel_weight.unsqueeze(1)  # (B, 1, D)
    total = w.sum(-1, keepdim=True)
    if isinstance(norm, RmsNorm):
        return x * torch.rsqrt((w * x.square()).sum(-1, keepdim=True) / total + norm.eps) * norm.weight * w
    mean = (w * x).sum(-1, keepdim=True) / total
    centred = x - mean
    variance = (w * centred.square()).sum(-1, keepdim=True) / total
    return (centred * torch.rsqrt(variance + norm.eps) * norm.weight + norm.bias) * w


def all_but_one(channels: Tensor, width: int, inputs: int, like: Tensor, unit: int = 1) -> Tensor:
    """Weights (C · inputs, width · unit): 1, and 0 for the `unit` entries of the channel that is removed."""
    weight = torch.ones(len(channels), width, dtype=like.dtype, device=like.device)
    weight[torch.arange(len(channels), device=like.device), channels] = 0
    return weight.repeat_interleave(inputs, 0).repeat_interleave(unit, 1)


def repeated(x: Tensor, count: int) -> Tensor:
    """(B, ...) to (count · B, ...)."""
    return x.unsqueeze(0).expand(count, *x.shape).flatten(0, 1)


class TransformerAdapter(ABC):
    """The parts of `Adapter` that all families share; the model is neither changed nor copied.

    blocks: the model's block modules in order. scales: the softmax scale of each. causal: whether a token attends to
    itself and those before it only.
    """

    causal = False

    def __init__(self, model: nn.Module, shape: ModelShape, blocks: Sequence[Any], scales: Sequence[float]):
        self.model, self.shape, self.blocks, self.scales = model, shape, blocks, scales
        self.output: OutputDistribution | None = None if shape.features else SOFTMAX

    @abstractmethod
    def embed(self, inputs: Tensor) -> Tensor:
        """The embedded inputs, as in the Protocol."""

    @abstractmethod
    def attend(
        self, block: int, x: Tensor, norm: Norm = stock_norm, keep: Keep = keep_nothing, *, last: bool | None = None
    ) -> Tensor:
        """The stream (B, N, D) to the stream after attention (B, T, D).

        last: only the tokens that the head reads go on (None: in the last block).
        """

    @abstractmethod
    def feed(self, block: int, x: Tensor, norm: Norm = stock_norm, keep: Keep = keep_nothing) -> Tensor:
        """The stream to the stream after the FFN, (B, T, D) both."""

    @abstractmethod
    def head(self, x: Tensor, norm: Norm = stock_norm) -> Tensor:
        """Logits from what follows the last block."""

    @abstractmethod
    def projection(self, block: int) -> Tensor:
        """The vector that each attention channel writes to the stream, (A, D)."""

    def write(self, block: int, mixed: Tensor, norm: Norm = stock_norm) -> Tensor:
        """Attention's output projection, and a norm before it: (B, T, A) to what it adds to the stream, (B, T, D).

        Needed if whole heads are cut, or a norm precedes the projection.
        """
        raise NotImplementedError

    def bias(self, block: int, tokens: int) -> Tensor | None:
        """The bias of the products q·k of the first `tokens` queries, (heads, tokens, M); None: no bias."""
        return None

    @abstractmethod
    def output_layer(self, block: int) -> Tensor:
        """The vector that each hidden channel of the FFN writes to the stream, (H, D)."""

    def attention(self, block: int, x: Tensor, norm: Norm = stock_norm) -> AttentionTrace:
        kept: dict[str, Tensor] = {}
        return AttentionTrace(stream=self.attend(block, x, norm, kept.setdefault), **kept)

    def feed_forward(self, block: int, x: Tensor, norm: Norm = stock_norm) -> FeedForwardTrace:
        kept: dict[str, Tensor] = {}
        return FeedForwardTrace(stream=self.feed(block, x, norm, kept.setdefault), **kept)

    def logits(self, inputs: Tensor) -> Tensor:
        return self.model(inputs)

    def compared(self, outputs: Tensor) -> Tensor:
        """Outputs as least squares compares them: softmax ignores what the logits of all classes share."""
        return outputs if self.shape.features else outputs - outputs.mean(-1, keepdim=True)

    def before_block(self, block: int, x: Tensor, norm: Norm = stock_norm) -> Tensor:
        """The stream that a block takes, (B, N, D), from what comes before the block."""
        return x

    def after_block(self, block: int, x: Tensor, norm: Norm = stock_norm) -> Tensor:
        """The stream before the next block, from the stream after this one."""
        return x

    def norm_key(self, layer: nn.Module) -> tuple[str, bool]:
        """The key of the channels that a norm runs over, and whether its output is the stream itself."""
        return "residual", False

    def weigh(self, key: str, channel_weight: Tensor) -> Norm:
        """Every norm over the channels of `key` with these weights (B, channels); other norms as they are.

        Without a norm before the head, the head's input is weighed.
        """

        def norm(x: Tensor, layer: nn.Module) -> Tensor:
            if isinstance(layer, nn.Identity) and key == "residual":
                return x * channel_weight.unsqueeze(1)
            if isinstance(layer, NORMS) and self.norm_key(layer)[0] == key:
                return weighted_layer_norm(x, layer, channel_weight)
            return layer(x)

        return norm

    def first_block(self, key: str) -> int:
        return 0 if key == "residual" else int(key.split(".")[1])

    def run_block(self, block: int, x: Tensor, norm: Norm = stock_norm) -> Tensor:
        x = self.attend(block, self.before_block(block, x, norm), norm)
        return self.after_block(block, self.feed(block, x, norm), norm)

    def run_from(self, block: int, x: Tensor, norm: Norm = stock_norm) -> Tensor:
        for b in range(block, self.shape.depth):
            x = self.run_block(b, x, norm)
        return self.head(x, norm)

    def half_block(self, half: int, x: Tensor, *, last: bool | None = None) -> Tensor:
        """Attention of block b (half = 2b) or its FFN (2b + 1) on the stream (B, N, D)."""
        block, is_ffn = divmod(half, 2)
        return self.feed(block, x) if is_ffn else self.attend(block, x, last=last)

    def run_half_block(self, half: int, x: Tensor, *, previous: int | None = None, last: bool = False) -> Tensor:
        return self.half_block(half, x, last=last)

    def after_half_block(self, half: int, x: Tensor) -> Tensor:
        return self.head(x)

    def split_heads(self, block: int, x: Tensor) -> Tensor:
        """(B, M, A) to (B, heads, M, head_dim)."""
        return x.unflatten(-1, (self.shape.heads_in(self.shape.blocks[block]), -1)).transpose(1, 2)

    def mix(self, block: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention of queries (B, T, A) to keys and values (B, M, A), all heads side by side: (B, T, A)."""
        bias = self.bias(block, q.shape[1])
        q, k, v = (self.split_heads(block, t) for t in (q, k, v))
        out = F.scaled_dot_product_attention(q, k, v, bias, is_causal=self.causal, scale=self.scales[block])
        return out.transpose(1, 2).flatten(2)

    def softmax(self, block: int, products: Tensor) -> Tensor:
        """Attention weights from products q·k, (..., T, M)."""
        if self.causal:
            ahead = torch.ones(products.shape[-2:], dtype=torch.bool, device=products.device).triu(1)
            products = products.masked_fill(ahead, -torch.inf)
        bias = self.bias(block, products.shape[-2])
        products = products * self.scales[block]
        return (products if bias is None else products + bias).softmax(-1)

    def trace(self, block: int, x: Tensor) -> BlockTrace:
        attention = self.attention(block, self.before_block(block, x))
        q, k = (self.split_heads(block, t) for t in (attention.q, attention.k))
        weights = self.softmax(block, q @ k.transpose(-2, -1))
        return BlockTrace(attention, self.feed_forward(block, attention.stream), weights)

    def logits_without(self, key: str, x: Tensor, channels: Tensor, trace: BlockTrace | None = None) -> Tensor:
        block = self.first_block(key)
        if key.startswith("residual"):
            logits = self._without_residual(key, x, channels)
        else:
            trace = self.trace(block, x) if trace is None else trace
            after = self._without(key.split(".")[0], block, trace, channels)  # (C, B, T, D)
            logits = self.run_from(block + 1, self.after_block(block, after.flatten(0, 1)))
        return logits.unflatten(0, (len(channels), len(x)))

    def _without(self, component: str, block: int, trace: BlockTrace, channels: Tensor) -> Tensor:
        """The stream after the block without each channel of one component, one at a time: (C, B, T, D)."""
        if component == "attention":
            stream = self._without_attention(block, trace, channels)
            return self.feed(block, stream.flatten(0, 1)).unflatten(0, (len(channels), -1))
        if self.shape.structure.ffn_norm:
            weight = all_but_one(channels, self.shape.blocks[block].ffn, len(trace.output), trace.output)
            stream = repeated(trace.attention.stream, len(channels))
            return self.feed(block, stream, self.weigh(f"ffn.{block}", weight)).unflatten(0, (len(channels), -1))
        activation = trace.feed_forward.hidden[..., channels].permute(2, 0, 1).unsqueeze(-1)  # (C, B, T, 1)
        row = self.output_layer(block)[channels][:, None, None, :]  # (C, 1, 1, D)
        return torch.addcmul(trace.output.unsqueeze(0), activation, row, value=-1)

    def _without_residual(self, key: str, x: Tensor, channels: Tensor) -> Tensor:
        """Logits (C · B, classes): every LayerNorm leaves the channel out."""
        norm = self.weigh(key, all_but_one(channels, self.shape.embed_dim, len(x), x))
        return self.run_from(0, repeated(x, len(channels)), norm)

    def _without_attention(self, block: int, trace: BlockTrace, channels: Tensor) -> Tensor:
        """The stream after attention with each channel masked to 0 in q, k and v, one at a time: (C, B, T, D)."""
        attention, own = trace.attention, self.shape.blocks[block]
        if unit := self.shape.structure.head_dim:
            x, mixed = attention.shortcut, repeated(attention.mixed, len(channels))
            weight = all_but_one(channels, own.attention, len(x), x, unit)
            written = self.write(block, mixed * weight.unsqueeze(1), self.weigh(f"attention.{block}", weight))
            return x + written.unflatten(0, (len(channels), -1))
        d = own.head_dim
        heads, inside = channels // d, channels % d
        q, k, v = (
            self.split_heads(block, t)[:, heads].transpose(0, 1) for t in (attention.q, attention.k, attention.v)
        )
        each = torch.arange(len(channels), device=channels.device)
        products = q @ k.transpose(-2, -1)  # (C, B, T, M)
        products = products - q[each, :, :, inside].unsqueeze(-1) * k[each, :, :, inside].unsqueeze(-2)
        before = trace.weights[:, heads].transpose(0, 1) @ v  # (C, B, T, d)
        after = self.softmax(block, products) @ v
        after[each, :, :, inside] = 0
        projection = self.projection(block).unflatten(0, (-1, d))[heads]  # (C, d, D)
        return attention.stream + torch.einsum("cbtd,cdo->cbto", after - before, projection)

    def sensitivities(self, inputs: Tensor) -> Sensitivities:
        sites: dict[str, list[NormSite]] = {}
        activations: dict[str, tuple[Tensor, ...]] = {}

        def record(x: Tensor, layer: nn.Module) -> Tensor:
            out = layer(x)
            if isinstance(layer, NORMS):
                key, writes = self.norm_key(layer)
                bias = layer.bias if isinstance(layer, nn.LayerNorm) else None
                site = NormSite(x.detach(), out, layer.weight, bias, layer.eps, writes)
                sites.setdefault(key, []).append(site)
            elif isinstance(layer, nn.Identity):  # no norm before the head
                out = layer(x).clone()
                sites.setdefault("residual", []).append(NormSite(x.detach(), out, None, None, 0.0))
            return out

        x = self.embed(inputs).detach().requires_grad_()
        for b in range(self.shape.depth):
            attention = self.attention(b, self.before_block(b, x, record), record)
            feed_forward = self.feed_forward(b, attention.stream, record)
            heads = (attention.mixed,) if self.shape.structure.head_dim else (attention.q, attention.v)
            found = {f"attention.{b}": heads, f"ffn.{b}": (feed_forward.hidden,)}
            activations |= {key: parts for key, parts in found.items() if key not in sites}
            x = self.after_block(b, feed_forward.stream, record)
        return Sensitivities(self.head(x, record), sites, activations)
