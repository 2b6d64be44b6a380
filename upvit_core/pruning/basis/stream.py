"""A timm ViT half a block at a time, with the intermediates that statistics and repair need."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from upvit_core.records.shape import ModelShape


@dataclass(frozen=True)
class AttentionTrace:
    """normed: (B, N, D); q, k, v: (B, N, A), q cut to the T tokens that matter; mixed: the input of proj, (B, T, A);
    written: proj's output (B, T, D); stream: the residual after it, (B, T, D)."""

    normed: Tensor
    q: Tensor
    k: Tensor
    v: Tensor
    mixed: Tensor
    written: Tensor
    stream: Tensor


@dataclass(frozen=True)
class FeedForwardTrace:
    """normed: (B, T, D); before, hidden: around the activation, (B, T, H); written, stream: (B, T, D)."""

    normed: Tensor
    before: Tensor
    hidden: Tensor
    written: Tensor
    stream: Tensor


class Stream:
    """Runs a model in parts; in the last block only the tokens that the heads read are kept."""

    def __init__(self, model: nn.Module, shape: ModelShape):
        self.model: Any = model
        self.shape = shape

    def embed(self, images: Tensor) -> Tensor:
        """(B, C, H, W) to (B, N, D)."""
        return self.model._pos_embed(self.model.patch_embed(images))

    def rows(self, block: int, x: Tensor) -> Tensor:
        """The tokens of x (B, N, ...) whose output of `block` matters."""
        last = block == self.shape.depth - 1 and self.shape.head_tokens
        return x[:, : self.shape.head_tokens] if last else x

    def attention(self, block: int, x: Tensor) -> AttentionTrace:
        blk = self.model.blocks[block]
        normed = blk.norm1(x)
        q, k, v = blk.attn.qkv(normed).chunk(3, dim=-1)  # (B, N, A) each
        q = self.rows(block, q)
        heads = [t.unflatten(-1, (blk.attn.num_heads, -1)).transpose(1, 2) for t in (q, k, v)]  # (B, h, N, d)
        out = F.scaled_dot_product_attention(heads[0], heads[1], heads[2], scale=blk.attn.scale)
        mixed = out.transpose(1, 2).flatten(2)  # (B, T, A)
        written = blk.ls1(blk.attn.proj(mixed))
        return AttentionTrace(normed, q, k, v, mixed, written, self.rows(block, x) + written)

    def feed_forward(self, block: int, x: Tensor) -> FeedForwardTrace:
        blk = self.model.blocks[block]
        normed = blk.norm2(x)
        before = blk.mlp.fc1(normed)
        hidden = blk.mlp.act(before)
        written = blk.ls2(blk.mlp.fc2(hidden))
        return FeedForwardTrace(normed, before, hidden, written, x + written)

    def features(self, x: Tensor) -> Tensor:
        """The stream after the last block to what the heads read: (B, T, D), T = 1 for an average over patches."""
        m = self.model
        if self.shape.head_tokens:
            return m.fc_norm(m.norm(x[:, : self.shape.head_tokens]))
        pooled = m.norm(x[:, self.shape.num_prefix_tokens :]).mean(1, keepdim=True)
        return m.fc_norm(pooled)

    def head(self, features: Tensor) -> Tensor:
        """(B, T, D) to logits (B, classes)."""
        if self.shape.distilled:
            return (self.model.head(features[:, 0]) + self.model.head_dist(features[:, 1])) / 2
        return self.model.head(features[:, 0])
