"""timm's VisionTransformer and VisionTransformerDistilled, run part by part.

The forward pass is written out as functions of the stream, so that a criterion can start in the middle, weigh the
channels of every LayerNorm, or skip tokens that the classifier never reads.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from upvit_core.models.adapter import NormSite, Sensitivities
from upvit_core.records.shape import ModelShape


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


def weighted_layer_norm(x: Tensor, norm: nn.LayerNorm, channel_weight: Tensor | None) -> Tensor:
    """LayerNorm whose mean and variance weigh the channels; for weights in {0, 1} the same as removing channels.

    x: (B, N, D); channel_weight: (B, D) or None for the stock LayerNorm. The output is multiplied by the weight.
    """
    if channel_weight is None:
        return norm(x)
    w = channel_weight.unsqueeze(1)  # (B, 1, D)
    total = w.sum(-1, keepdim=True)
    mean = (w * x).sum(-1, keepdim=True) / total
    centred = x - mean
    variance = (w * centred.square()).sum(-1, keepdim=True) / total
    return (centred * torch.rsqrt(variance + norm.eps) * norm.weight + norm.bias) * w


def _scaled(x: Tensor, layer_scale: Any) -> Tensor:
    return x if isinstance(layer_scale, nn.Identity) else x * layer_scale.gamma


class ViTAdapter:
    """Adapter of a timm ViT or DeiT; the model is neither changed nor copied."""

    def __init__(self, model: nn.Module, shape: ModelShape):
        self.model = model
        self._m: Any = model
        self.shape = shape
        self.head_tokens = shape.head_tokens or None  # None: the head averages over all patches

    def embed(self, images: Tensor) -> Tensor:
        m = self._m
        return m.norm_pre(m._pos_embed(m.patch_embed(images)))  # (B, N, D)

    def logits(self, images: Tensor) -> Tensor:
        return self.model(images)

    def _split_heads(self, block: int, normed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        attn = self._m.blocks[block].attn
        B, N, _ = normed.shape
        qkv = attn.qkv(normed).reshape(B, N, 3, attn.num_heads, attn.head_dim).permute(2, 0, 3, 1, 4)
        return qkv[0], qkv[1], qkv[2]  # (B, h, N, d) each

    def _is_cut_short(self, block: int) -> bool:
        """In the last block only the tokens that the head reads matter."""
        return block == self.shape.depth - 1 and self.head_tokens is not None

    def _attend(self, block: int, x: Tensor, residual_weight: Tensor | None, *, cut_short: bool) -> Tensor:
        """The stream after attention, (B, T, D); T is N, or the head's tokens where the rest is `cut_short`."""
        blk = self._m.blocks[block]
        q, k, v = self._split_heads(block, weighted_layer_norm(x, blk.norm1, residual_weight))
        if cut_short:
            q, x = q[:, :, : self.head_tokens], x[:, : self.head_tokens]
        out = F.scaled_dot_product_attention(q, k, v, scale=blk.attn.scale)
        out = out.transpose(1, 2).flatten(2)  # (B, T, A)
        return x + _scaled(blk.attn.proj(out), blk.ls1)

    def _feed_forward(self, block: int, x: Tensor, residual_weight: Tensor | None = None) -> Tensor:
        blk = self._m.blocks[block]
        hidden = blk.mlp.act(blk.mlp.fc1(weighted_layer_norm(x, blk.norm2, residual_weight)))
        return x + _scaled(blk.mlp.fc2(hidden), blk.ls2)

    def run_block(self, block: int, x: Tensor, residual_weight: Tensor | None = None) -> Tensor:
        """Input to output of one block, (B, N, D) to (B, T, D)."""
        x = self._attend(block, x, residual_weight, cut_short=self._is_cut_short(block))
        return self._feed_forward(block, x, residual_weight)

    def run_half_block(self, half: int, x: Tensor, *, previous: int | None = None, last: bool = False) -> Tensor:
        block, is_ffn = divmod(half, 2)
        if is_ffn:
            return self._feed_forward(block, x)
        return self._attend(block, x, None, cut_short=last and self.head_tokens is not None)

    def head(self, x: Tensor, residual_weight: Tensor | None = None) -> Tensor:
        """Stream after the last block to logits (B, classes)."""
        m = self._m
        if self.head_tokens is None:
            x = x[:, m.num_prefix_tokens :]
            if isinstance(m.norm, nn.LayerNorm):
                x = weighted_layer_norm(x, m.norm, residual_weight)
            x = x.mean(1, keepdim=True)
            if isinstance(m.fc_norm, nn.LayerNorm):
                x = weighted_layer_norm(x, m.fc_norm, residual_weight)
            return m.head(x[:, 0])
        x = x[:, : self.head_tokens]
        for norm in (m.norm, m.fc_norm):
            if isinstance(norm, nn.LayerNorm):
                x = weighted_layer_norm(x, norm, residual_weight)
        if self.shape.distilled:
            return (m.head(x[:, 0]) + m.head_dist(x[:, 1])) / 2
        return m.head(x[:, 0])

    def run_from(self, block: int, x: Tensor, residual_weight: Tensor | None = None) -> Tensor:
        """As in the Protocol; `residual_weight` (B, D) goes into every LayerNorm."""
        for b in range(block, self.shape.depth):
            x = self.run_block(b, x, residual_weight)
        return self.head(x, residual_weight)

    def after_half_block(self, half: int, x: Tensor) -> Tensor:
        return self.head(x)

    def first_block(self, key: str) -> int:
        return 0 if key == "residual" else int(key.split(".")[1])

    def logits_without(self, key: str, x: Tensor, channels: Tensor, trace: BlockTrace | None = None) -> Tensor:
        C, B = len(channels), len(x)
        block = self.first_block(key)
        if key == "residual":
            weight = torch.ones(C, self.shape.embed_dim, dtype=x.dtype, device=x.device)
            weight[torch.arange(C, device=x.device), channels] = 0
            stream = x.unsqueeze(0).expand(C, *x.shape).flatten(0, 1)
            logits = self.run_from(0, stream, weight.repeat_interleave(B, 0))
        else:
            trace = self.trace(block, x) if trace is None else trace
            if key.startswith("attention"):
                after = self.without_attention(block, x, trace, channels)
            else:
                after = self.without_ffn(block, trace, channels)
            logits = self.run_from(block + 1, after.flatten(0, 1))
        return logits.unflatten(0, (C, B))

    def trace(self, block: int, x: Tensor) -> BlockTrace:
        blk = self._m.blocks[block]
        q, k, v = self._split_heads(block, blk.norm1(x))
        if self._is_cut_short(block):
            q, x = q[:, :, : self.head_tokens], x[:, : self.head_tokens]
        weights = (q @ k.transpose(-2, -1) * blk.attn.scale).softmax(-1)
        out = (weights @ v).transpose(1, 2).flatten(2)  # (B, T, A)
        after_attention = x + _scaled(blk.attn.proj(out), blk.ls1)
        hidden = blk.mlp.act(blk.mlp.fc1(blk.norm2(after_attention)))
        output = after_attention + _scaled(blk.mlp.fc2(hidden), blk.ls2)
        return BlockTrace(q, k, v, weights, after_attention, hidden, output)

    def without_attention(self, block: int, x: Tensor, trace: BlockTrace, channels: Tensor) -> Tensor:
        """The block's output with each channel masked to 0 in q, k and v, one at a time: (C, B, T, D)."""
        blk = self._m.blocks[block]
        d = blk.attn.head_dim
        heads, inside = channels // d, channels % d
        q, k, v = (t[:, heads].transpose(0, 1) for t in (trace.q, trace.k, trace.v))  # (C, B, T or N, d)
        each = torch.arange(len(channels), device=channels.device)
        scores = q @ k.transpose(-2, -1)  # (C, B, T, N)
        scores = scores - q[each, :, :, inside].unsqueeze(-1) * k[each, :, :, inside].unsqueeze(-2)
        before = trace.weights[:, heads].transpose(0, 1) @ v  # (C, B, T, d)
        after = (scores * blk.attn.scale).softmax(-1) @ v
        after[each, :, :, inside] = 0
        projection = blk.attn.proj.weight.unflatten(1, (-1, d))[:, heads].permute(1, 2, 0)  # (C, d, D)
        change = torch.einsum("cbtd,cdo->cbto", after - before, projection)
        stream = trace.after_attention + _scaled(change, blk.ls1)
        return self._feed_forward(block, stream.flatten(0, 1)).unflatten(0, (len(channels), -1))

    def attention_without(self, block: int, trace: BlockTrace, channel: int) -> tuple[Tensor, Tensor]:
        """Softmax attention of the head that holds one channel, with and without it: (B, T, N) each."""
        attention = self._m.blocks[block].attn
        head, inside = divmod(channel, attention.head_dim)
        q, k = trace.q[:, head], trace.k[:, head]  # (B, T, d), (B, N, d)
        scores = q @ k.transpose(-2, -1) - q[:, :, inside, None] * k[:, None, :, inside]
        return trace.weights[:, head], (scores * attention.scale).softmax(-1)

    def without_ffn(self, block: int, trace: BlockTrace, channels: Tensor) -> Tensor:
        """The block's output with each hidden channel removed, one at a time: (C, B, T, D)."""
        blk = self._m.blocks[block]
        activation = trace.hidden[..., channels].permute(2, 0, 1).unsqueeze(-1)  # (C, B, T, 1)
        column = _scaled(blk.mlp.fc2.weight[:, channels].T, blk.ls2)[:, None, None, :]  # (C, 1, 1, D)
        return torch.addcmul(trace.output.unsqueeze(0), activation, column, value=-1)

    def sensitivities(self, images: Tensor) -> Sensitivities:
        m = self._m
        sites: list[NormSite] = []
        activations: dict[str, tuple[Tensor, ...]] = {}

        def norm(x: Tensor, layer: nn.Module) -> Tensor:
            if not isinstance(layer, nn.LayerNorm):
                return x
            out = layer(x)
            sites.append(NormSite(x.detach(), out, layer.weight, layer.bias, layer.eps))
            return out

        x = self.embed(images).detach().requires_grad_()
        for b, blk in enumerate(m.blocks):
            q, k, v = blk.attn.qkv(norm(x, blk.norm1)).chunk(3, dim=-1)  # (B, N, A) each
            if self._is_cut_short(b):
                q, x = q[:, : self.head_tokens], x[:, : self.head_tokens]
            activations[f"attention.{b}"] = (q, v)
            split = [t.unflatten(-1, (blk.attn.num_heads, -1)).transpose(1, 2) for t in (q, k, v)]
            out = F.scaled_dot_product_attention(split[0], split[1], split[2], scale=blk.attn.scale)
            x = x + _scaled(blk.attn.proj(out.transpose(1, 2).flatten(2)), blk.ls1)
            hidden = blk.mlp.act(blk.mlp.fc1(norm(x, blk.norm2)))
            activations[f"ffn.{b}"] = (hidden,)
            x = x + _scaled(blk.mlp.fc2(hidden), blk.ls2)
        if self.head_tokens is None:
            pooled = norm(x[:, m.num_prefix_tokens :], m.norm).mean(1, keepdim=True)
            logits = m.head(norm(pooled, m.fc_norm)[:, 0])
        else:
            x = norm(norm(x[:, : self.head_tokens], m.norm), m.fc_norm)
            logits = (m.head(x[:, 0]) + m.head_dist(x[:, 1])) / 2 if self.shape.distilled else m.head(x[:, 0])
        return Sensitivities(logits, {"residual": sites}, activations)
