"""timm's VisionTransformer and VisionTransformerDistilled, run part by part.

The forward pass is written out as functions of the stream, so that a criterion can start in the middle, weigh the
channels of every LayerNorm, or skip tokens that the classifier never reads.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from upvit_core.errors import UnsupportedModelError
from upvit_core.models.transformer import BlockTrace, Keep, Norm, TransformerAdapter, keep_nothing, stock_norm
from upvit_core.records.shape import ModelShape


def layer_scale(block: Any, half: int) -> Tensor | None:
    """Layer scale (D,) of a half-block (1: attention, 2: FFN) in any of timm's blocks; None without."""
    scale = getattr(block, f"ls{half}", None)
    gamma: Tensor | None = getattr(block, f"gamma_{half}", None) if scale is None else getattr(scale, "gamma", None)
    return gamma


def _scaled(x: Tensor, block: Any, half: int) -> Tensor:
    gamma = layer_scale(block, half)
    return x if gamma is None else x * gamma


class ViTAdapter(TransformerAdapter):
    """Adapter of a timm ViT or DeiT."""

    def __init__(self, model: nn.Module, shape: ModelShape):
        vit: Any = model
        if not hasattr(vit.blocks[0], "attn"):
            raise UnsupportedModelError(
                f"{shape.name} has blocks of other modules than ours; open it with load_model to run it."
            )
        super().__init__(model, shape, list(vit.blocks), [block.attn.scale for block in vit.blocks])
        self.vit = vit
        self.inner_norms: dict[nn.Module, str] = {}
        for b, block in enumerate(vit.blocks):
            if shape.structure.attention_norm:
                self.inner_norms[block.attn.norm] = f"attention.{b}"
            if shape.structure.ffn_norm:
                self.inner_norms[block.mlp.norm] = f"ffn.{b}"

    def embed(self, images: Tensor) -> Tensor:
        """The stream (B, N, D); with a norm of the patches, the patches before that norm, (B, patches, D)."""
        if not self.shape.structure.patch_norm:
            return self.positioned(self.vit.patch_embed(images))
        return self.vit.patch_embed.proj(images).flatten(2).transpose(1, 2)

    def positioned(self, patches: Tensor) -> Tensor:
        """Patches (B, patches, D) with positions added, after class and register tokens: (B, N, D)."""
        return self.vit._pos_embed(patches)

    def before_block(self, block: int, x: Tensor, norm: Norm = stock_norm) -> Tensor:
        if block == 0 and self.shape.structure.patch_norm:
            x = self.positioned(norm(x, self.vit.patch_embed.norm))
        return norm(x, self.vit.norm_pre) if block == 0 and self.shape.pre_norm else x

    def norm_key(self, layer: nn.Module) -> tuple[str, bool]:
        if layer in self.inner_norms:
            return self.inner_norms[layer], False
        return "residual", layer is getattr(self.vit, "norm_pre", None) or layer is self.vit.patch_embed.norm

    def run_half_block(self, half: int, x: Tensor, *, previous: int | None = None, last: bool = False) -> Tensor:
        return self.half_block(half, self.before_block(0, x) if previous is None else x, last=last)

    def kept_tokens(self, block: int, x: Tensor, last: bool | None = None) -> Tensor:
        """The tokens of x (B, N, ...) whose output of `block` matters: in the last one those that the head reads."""
        last = block == self.shape.depth - 1 if last is None else last
        return x[:, : self.shape.head_tokens] if last and self.shape.head_tokens else x

    def attend(
        self, block: int, x: Tensor, norm: Norm = stock_norm, keep: Keep = keep_nothing, *, last: bool | None = None
    ) -> Tensor:
        q, k, v = self.queries_keys_values(block, keep("normed", norm(x, self.blocks[block].norm1)))
        q, x = (self.kept_tokens(block, t, last) for t in (q, x))
        mixed = keep("mixed", self.mix(block, keep("q", q), keep("k", k), keep("v", v)))
        return keep("shortcut", x) + keep("written", self.write(block, mixed, norm))

    def queries_keys_values(self, block: int, normed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values as attention takes them, (B, N, A) each, from the normed stream (B, N, D)."""
        attn = self.blocks[block].attn
        q, k, v = attn.qkv(normed).chunk(3, dim=-1)
        if self.shape.structure.qk_norm:
            q, k = (
                layer(t.unflatten(-1, (-1, layer.weight.numel()))).flatten(-2)
                for layer, t in ((attn.q_norm, q), (attn.k_norm, k))
            )
        return q, k, v

    def write(self, block: int, mixed: Tensor, norm: Norm = stock_norm) -> Tensor:
        blk = self.blocks[block]
        if self.shape.structure.attention_norm:
            mixed = norm(mixed, blk.attn.norm)
        return _scaled(blk.attn.proj(mixed), blk, 1)

    def feed(self, block: int, x: Tensor, norm: Norm = stock_norm, keep: Keep = keep_nothing) -> Tensor:
        blk = self.blocks[block]
        hidden = self.activated(block, keep("before", self.first_layer(block, keep("normed", norm(x, blk.norm2)))))
        if self.shape.structure.ffn_norm:
            hidden = norm(hidden, blk.mlp.norm)
        return keep("shortcut", x) + keep("written", _scaled(blk.mlp.fc2(keep("hidden", hidden)), blk, 2))

    def first_layer(self, block: int, normed: Tensor) -> Tensor:
        """The FFN's first layer, (B, T, H); of a gated FFN the gate and then the value, (B, T, 2 H)."""
        mlp = self.blocks[block].mlp
        if self.shape.structure.gate == "split":
            return torch.cat([mlp.fc1_g(normed), mlp.fc1_x(normed)], -1)
        return mlp.fc1(normed)

    def activated(self, block: int, before: Tensor) -> Tensor:
        act = self.blocks[block].mlp.act
        if not self.shape.structure.gate:
            return act(before)
        gate, value = before.chunk(2, -1)
        return act(gate) * value

    def features(self, x: Tensor, norm: Norm = stock_norm) -> Tensor:
        """The stream after the last block to what the heads read: (B, T, D), T = 1 where tokens are pooled."""
        return self.pooled(self.last_read(x, norm))

    def pooled(self, read: Tensor) -> Tensor:
        """The features for the heads, from the output of the final norm; without attention pooling, that output."""
        return self.vit.attn_pool(read).unsqueeze(1) if self.shape.structure.pool else read

    def last_read(self, x: Tensor, norm: Norm = stock_norm) -> Tensor:
        """The input (B, T, D) of the linear layers after the final norm: attention pooling's, else the heads'."""
        if self.shape.structure.pool:
            return self.read_by_pool(x, norm)
        before, first = not self.shape.fc_norm, self.shape.num_prefix_tokens
        if self.shape.head_tokens:
            return norm(x[:, : self.shape.head_tokens], self.vit.norm if before else self.vit.fc_norm)
        if before:
            return norm(x[:, first:], self.vit.norm).mean(1, keepdim=True)
        return norm(x[:, first:].mean(1, keepdim=True), self.vit.fc_norm)

    def read_by_pool(self, x: Tensor, norm: Norm = stock_norm) -> Tensor:
        """The tokens that attention pooling reads, (B, T, D)."""
        first = 0 if self.shape.structure.pool_prefix else self.shape.num_prefix_tokens
        return norm(x, self.vit.norm)[:, first:]

    def classify(self, features: Tensor) -> Tensor:
        """Logits (B, classes) from the features that the heads read, (B, T, D)."""
        if self.shape.distilled:
            return (self.vit.head(features[:, 0]) + self.vit.head_dist(features[:, 1])) / 2
        return self.vit.head(features[:, 0])

    def head(self, x: Tensor, norm: Norm = stock_norm) -> Tensor:
        return self.classify(self.features(x, norm))

    def projection(self, block: int) -> Tensor:
        return _scaled(self.blocks[block].attn.proj.weight.T, self.blocks[block], 1)

    def output_layer(self, block: int) -> Tensor:
        return _scaled(self.blocks[block].mlp.fc2.weight.T, self.blocks[block], 2)

    def attention_without(self, block: int, trace: BlockTrace, channel: int) -> tuple[Tensor, Tensor]:
        """Softmax attention of the head that holds one channel, with and without it: (B, T, N) each."""
        if self.shape.structure.head_dim:
            return trace.weights[:, channel], torch.zeros_like(trace.weights[:, channel])
        head, inside = divmod(channel, self.shape.blocks[block].head_dim)
        q, k = (self.split_heads(block, t)[:, head] for t in (trace.attention.q, trace.attention.k))  # (B, T or N, d)
        products = q @ k.transpose(-2, -1) - q[:, :, inside, None] * k[:, None, :, inside]
        return trace.weights[:, head], self.softmax(block, products)
