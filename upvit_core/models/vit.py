"""timm's VisionTransformer and VisionTransformerDistilled, run part by part.

The forward pass is written out as functions of the stream, so that a criterion can start in the middle, weigh the
channels of every LayerNorm, or skip tokens that the classifier never reads.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from upvit_core.models.transformer import BlockTrace, Keep, Norm, TransformerAdapter, keep_nothing, stock_norm
from upvit_core.records.shape import ModelShape


def _scaled(x: Tensor, layer_scale: Any) -> Tensor:
    return x if isinstance(layer_scale, nn.Identity) else x * layer_scale.gamma


class ViTAdapter(TransformerAdapter):
    """Adapter of a timm ViT or DeiT."""

    def __init__(self, model: nn.Module, shape: ModelShape):
        vit: Any = model
        super().__init__(model, shape, list(vit.blocks), [block.attn.scale for block in vit.blocks])
        self.vit = vit

    def embed(self, images: Tensor) -> Tensor:
        return self.vit._pos_embed(self.vit.patch_embed(images))  # (B, N, D)

    def before_block(self, block: int, x: Tensor, norm: Norm = stock_norm) -> Tensor:
        return norm(x, self.vit.norm_pre) if block == 0 else x

    def norm_key(self, layer: nn.Module) -> tuple[str, bool]:
        return "residual", layer is self.vit.norm_pre

    def run_half_block(self, half: int, x: Tensor, *, previous: int | None = None, last: bool = False) -> Tensor:
        return self.half_block(half, self.vit.norm_pre(x) if previous is None else x, last=last)

    def kept_tokens(self, block: int, x: Tensor, last: bool | None = None) -> Tensor:
        """The tokens of x (B, N, ...) whose output of `block` matters: in the last one those that the head reads."""
        last = block == self.shape.depth - 1 if last is None else last
        return x[:, : self.shape.head_tokens] if last and self.shape.head_tokens else x

    def attend(
        self, block: int, x: Tensor, norm: Norm = stock_norm, keep: Keep = keep_nothing, *, last: bool | None = None
    ) -> Tensor:
        blk = self.blocks[block]
        q, k, v = blk.attn.qkv(keep("normed", norm(x, blk.norm1))).chunk(3, dim=-1)  # (B, N, A) each
        q, x = (self.kept_tokens(block, t, last) for t in (q, x))
        mixed = keep("mixed", self.mix(block, keep("q", q), keep("k", k), keep("v", v)))
        return keep("shortcut", x) + keep("written", _scaled(blk.attn.proj(mixed), blk.ls1))

    def feed(self, block: int, x: Tensor, norm: Norm = stock_norm, keep: Keep = keep_nothing) -> Tensor:
        blk = self.blocks[block]
        hidden = keep("hidden", blk.mlp.act(keep("before", blk.mlp.fc1(keep("normed", norm(x, blk.norm2))))))
        return keep("shortcut", x) + keep("written", _scaled(blk.mlp.fc2(hidden), blk.ls2))

    def features(self, x: Tensor, norm: Norm = stock_norm) -> Tensor:
        """The stream after the last block to what the heads read: (B, T, D), T = 1 for an average over patches."""
        if self.shape.head_tokens:
            return norm(norm(x[:, : self.shape.head_tokens], self.vit.norm), self.vit.fc_norm)
        pooled = norm(x[:, self.shape.num_prefix_tokens :], self.vit.norm).mean(1, keepdim=True)
        return norm(pooled, self.vit.fc_norm)

    def classify(self, features: Tensor) -> Tensor:
        """Logits (B, classes) from the features that the heads read, (B, T, D)."""
        if self.shape.distilled:
            return (self.vit.head(features[:, 0]) + self.vit.head_dist(features[:, 1])) / 2
        return self.vit.head(features[:, 0])

    def head(self, x: Tensor, norm: Norm = stock_norm) -> Tensor:
        return self.classify(self.features(x, norm))

    def projection(self, block: int) -> Tensor:
        return _scaled(self.blocks[block].attn.proj.weight.T, self.blocks[block].ls1)

    def output_layer(self, block: int) -> Tensor:
        return _scaled(self.blocks[block].mlp.fc2.weight.T, self.blocks[block].ls2)

    def attention_without(self, block: int, trace: BlockTrace, channel: int) -> tuple[Tensor, Tensor]:
        """Softmax attention of the head that holds one channel, with and without it: (B, T, N) each."""
        head, inside = divmod(channel, self.shape.blocks[block].head_dim)
        q, k = (self.split_heads(block, t)[:, head] for t in (trace.attention.q, trace.attention.k))  # (B, T or N, d)
        products = q @ k.transpose(-2, -1) - q[:, :, inside, None] * k[:, None, :, inside]
        return trace.weights[:, head], self.softmax(block, products)
