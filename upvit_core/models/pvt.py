"""timm's PyramidVisionTransformerV2, run part by part.

The stream before a stage's first block is the map that its patch embedding reads: the image, or the map (B, D, H, W)
that the stage before it gave. Inside a stage it is (B, N, D). A residual channel belongs to one stage: the norm of its
patch embedding, both norms of its blocks and its last norm lose it, and so does what reads that last norm's map.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from upvit_core.models.adapter import NormSite, Sensitivities
from upvit_core.models.vit import weighted_layer_norm
from upvit_core.records.shape import ModelShape


@dataclass(frozen=True)
class PVTTrace:
    """One block's forward pass. M tokens are looked at, fewer than N where there is a spatial reduction.

    q: (B, heads, N, head_dim); k, v: (B, heads, M, head_dim); reduced: (B, M, R), before its norm; weights: softmax
    attention (B, heads, N, M); stream, after_attention and output: (B, N, D); hidden: (B, N, H).
    """

    stream: Tensor
    reduced: Tensor | None
    q: Tensor
    k: Tensor
    v: Tensor
    weights: Tensor
    after_attention: Tensor
    hidden: Tensor
    output: Tensor


class PVTAdapter:
    """Adapter of a timm PVTv2; the model is neither changed nor copied."""

    def __init__(self, model: nn.Module, shape: ModelShape):
        pvt: Any = model
        self.model, self._m, self.shape = model, pvt, shape
        self._blocks: list[Any] = [block for stage in pvt.stages for block in stage.blocks]
        self._first = {shape.first_block(stage) for stage in range(len(shape.stages))}

    def embed(self, images: Tensor) -> Tensor:
        return images

    def logits(self, images: Tensor) -> Tensor:
        return self.model(images)

    def _opening(self, stage: int) -> Any:
        return self._m.stages[stage].downsample if stage else self._m.patch_embed

    def _enter(self, stage: int, x: Tensor) -> Tensor:
        """The map before a stage to its stream (B, N, D)."""
        opening = self._opening(stage)
        return opening.norm(opening.proj(x).flatten(2).transpose(1, 2))

    def _leave(self, stage: int, x: Tensor, weight: Tensor | None = None) -> Tensor:
        """The stream (B, N, D) after a stage's last block to the map (B, D, H, W) that it gives."""
        x = weighted_layer_norm(x, self._m.stages[stage].norm, weight)
        return x.transpose(1, 2).unflatten(2, self.shape.map_size(stage))

    def _inside(self, block: int, x: Tensor) -> Tensor:
        """The stream of a block's stage, from what comes before the block."""
        return self._enter(self.shape.stage_of(block), x) if block in self._first else x

    def _after(self, block: int, x: Tensor, weight: Tensor | None = None) -> Tensor:
        """What comes before the next block, from the stream after this one."""
        stage = self.shape.stage_of(block)
        return self._leave(stage, x, weight) if block + 1 == self.shape.first_block(stage + 1) else x

    def _grid(self, block: int, x: Tensor) -> Tensor:
        """(B, N, C) to (B, C, H, W)."""
        return x.transpose(1, 2).unflatten(2, self.shape.map_size(self.shape.stage_of(block)))

    def _reduce(self, block: int, normed: Tensor) -> Tensor | None:
        attn = self._blocks[block].attn
        return None if attn.sr is None else attn.sr(self._grid(block, normed)).flatten(2).transpose(1, 2)

    def _split(self, block: int, x: Tensor, copies: int) -> tuple[Tensor, ...]:
        """(B, M, copies · A) to as many tensors (B, heads, M, head_dim)."""
        heads = self._blocks[block].attn.num_heads
        return x.unflatten(-1, (copies, heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)

    def _keys_values(
        self, block: int, normed: Tensor, reduced: Tensor | None, weight: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        attn = self._blocks[block].attn
        source = normed if reduced is None else weighted_layer_norm(reduced, attn.norm, weight)
        return self._split(block, attn.kv(source), 2)

    def _attend(self, block: int, x: Tensor, weight: Tensor | None = None) -> Tensor:
        blk = self._blocks[block]
        normed = weighted_layer_norm(x, blk.norm1, weight)
        k, v = self._keys_values(block, normed, self._reduce(block, normed))
        (q,) = self._split(block, blk.attn.q(normed), 1)
        return x + blk.attn.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))

    def _hidden(self, block: int, normed: Tensor) -> Tensor:
        mlp = self._blocks[block].mlp
        return mlp.act(mlp.dwconv(self._grid(block, mlp.fc1(normed))).flatten(2).transpose(1, 2))

    def _feed_forward(self, block: int, x: Tensor, weight: Tensor | None = None) -> Tensor:
        blk = self._blocks[block]
        return x + blk.mlp.fc2(self._hidden(block, weighted_layer_norm(x, blk.norm2, weight)))

    def run_block(self, block: int, x: Tensor) -> Tensor:
        return self._after(block, self._feed_forward(block, self._attend(block, self._inside(block, x))))

    def _head(self, x: Tensor) -> Tensor:
        return self._m.head(x.mean((-1, -2)))

    def run_from(self, block: int, x: Tensor) -> Tensor:
        for b in range(block, self.shape.depth):
            x = self.run_block(b, x)
        return self._head(x)

    def run_half_block(self, half: int, x: Tensor, *, previous: int | None = None, last: bool = False) -> Tensor:
        block, is_ffn = divmod(half, 2)
        stage = self.shape.stage_of(block)
        if previous is None:
            x = self._enter(stage, x)
        elif (before := self.shape.stage_of(previous // 2)) != stage:
            x = self._enter(stage, self._leave(before, x))
        return self._feed_forward(block, x) if is_ffn else self._attend(block, x)

    def after_half_block(self, half: int, x: Tensor) -> Tensor:
        return self._head(self._leave(self.shape.stage_of(half // 2), x))

    # Parts by themselves, of streams inside their stage, for repair.

    def block(self, number: int) -> Any:
        return self._blocks[number]

    def opening(self, stage: int) -> Any:
        return self._opening(stage)

    @property
    def head(self) -> Any:
        return self._m.head

    def enter(self, stage: int, x: Tensor) -> Tensor:
        return self._enter(stage, x)

    def leave(self, stage: int, x: Tensor) -> Tensor:
        return self._leave(stage, x)

    def grid(self, block: int, x: Tensor) -> Tensor:
        return self._grid(block, x)

    def inside(self, half: int, x: Tensor) -> Tensor:
        """Half-block `half` on a stream (B, N, D) of its own stage."""
        block, is_ffn = divmod(half, 2)
        return self._feed_forward(block, x) if is_ffn else self._attend(block, x)

    def key_source(self, block: int, x: Tensor) -> Tensor:
        """What keys and values are made from, (B, M, R): the normed stream, or its normed reduction."""
        blk = self._blocks[block]
        normed = blk.norm1(x)
        reduced = self._reduce(block, normed)
        return normed if reduced is None else blk.attn.norm(reduced)

    def mixed(self, block: int, x: Tensor) -> Tensor:
        """What attention hands to proj, (B, N, A)."""
        blk = self._blocks[block]
        (q,) = self._split(block, blk.attn.q(blk.norm1(x)), 1)
        k, v = self._split(block, blk.attn.kv(self.key_source(block, x)), 2)
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)

    def hidden(self, block: int, x: Tensor) -> Tensor:
        """What the FFN hands to fc2, (B, N, H)."""
        return self._hidden(block, self._blocks[block].norm2(x))

    def first_block(self, key: str) -> int:
        component, place = key.split(".")
        return self.shape.first_block(int(place)) if component == "residual" else int(place)

    def trace(self, block: int, x: Tensor) -> PVTTrace:
        blk = self._blocks[block]
        x = self._inside(block, x)
        normed = blk.norm1(x)
        reduced = self._reduce(block, normed)
        k, v = self._keys_values(block, normed, reduced)
        (q,) = self._split(block, blk.attn.q(normed), 1)
        weights = (q @ k.transpose(-2, -1) * blk.attn.scale).softmax(-1)
        after_attention = x + blk.attn.proj((weights @ v).transpose(1, 2).flatten(2))
        hidden = self._hidden(block, blk.norm2(after_attention))
        return PVTTrace(x, reduced, q, k, v, weights, after_attention, hidden, after_attention + blk.mlp.fc2(hidden))

    def logits_without(self, key: str, x: Tensor, channels: Tensor, trace: PVTTrace | None = None) -> Tensor:
        C, B, block = len(channels), len(x), self.first_block(key)
        if key.startswith("residual"):
            return self._without_residual(block, x, channels).unflatten(0, (C, B))
        trace = self.trace(block, x) if trace is None else trace
        if key.startswith("attention"):
            after = self._without_attention(block, trace, channels)
        elif key.startswith("reduction"):
            after = self._without_reduction(block, trace, channels)
        else:
            activation = trace.hidden[..., channels].permute(2, 0, 1).unsqueeze(-1)  # (C, B, N, 1)
            column = self._blocks[block].mlp.fc2.weight[:, channels].T[:, None, None, :]  # (C, 1, 1, D)
            after = torch.addcmul(trace.output.unsqueeze(0), activation, column, value=-1)
        return self.run_from(block + 1, self._after(block, after.flatten(0, 1))).unflatten(0, (C, B))

    def _weights(self, channels: Tensor, width: int, images: int, like: Tensor) -> Tensor:
        """Ones (C · B, width) but for the channel that goes."""
        weight = torch.ones(len(channels), width, dtype=like.dtype, device=like.device)
        weight[torch.arange(len(channels), device=like.device), channels] = 0
        return weight.repeat_interleave(images, 0)

    def _without_residual(self, block: int, x: Tensor, channels: Tensor) -> Tensor:
        stage, B = self.shape.stage_of(block), len(x)
        weight = self._weights(channels, self.shape.embed_dims[stage], B, x)
        opening = self._opening(stage)
        embedded = opening.proj(x).flatten(2).transpose(1, 2)  # (B, N, D), the same for every channel
        stream = embedded.unsqueeze(0).expand(len(channels), *embedded.shape).flatten(0, 1)
        stream = weighted_layer_norm(stream, opening.norm, weight)
        end = self.shape.first_block(stage + 1)
        for b in range(block, end):
            stream = self._feed_forward(b, self._attend(b, stream, weight), weight)
        return self.run_from(end, self._leave(stage, stream, weight))

    def _without_attention(self, block: int, trace: PVTTrace, channels: Tensor) -> Tensor:
        attn = self._blocks[block].attn
        d = attn.head_dim
        heads, inside = channels // d, channels % d
        q, k, v = (t[:, heads].transpose(0, 1) for t in (trace.q, trace.k, trace.v))  # (C, B, N or M, d)
        each = torch.arange(len(channels), device=channels.device)
        scores = q @ k.transpose(-2, -1)  # (C, B, N, M)
        scores = scores - q[each, :, :, inside].unsqueeze(-1) * k[each, :, :, inside].unsqueeze(-2)
        before = trace.weights[:, heads].transpose(0, 1) @ v  # (C, B, N, d)
        after = (scores * attn.scale).softmax(-1) @ v
        after[each, :, :, inside] = 0
        projection = attn.proj.weight.unflatten(1, (-1, d))[:, heads].permute(1, 2, 0)  # (C, d, D)
        stream = trace.after_attention + torch.einsum("cbnd,cdo->cbno", after - before, projection)
        return self._feed_forward(block, stream.flatten(0, 1)).unflatten(0, (len(channels), -1))

    def _without_reduction(self, block: int, trace: PVTTrace, channels: Tensor) -> Tensor:
        assert trace.reduced is not None
        attn, (B, _, width), C = self._blocks[block].attn, trace.reduced.shape, len(channels)
        reduced = trace.reduced.unsqueeze(0).expand(C, *trace.reduced.shape).flatten(0, 1)
        k, v = self._keys_values(block, reduced, reduced, self._weights(channels, width, B, reduced))
        q = trace.q.unsqueeze(0).expand(C, *trace.q.shape).flatten(0, 1)
        out = attn.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        stream = trace.stream.unsqueeze(0).expand(C, *trace.stream.shape).flatten(0, 1) + out
        return self._feed_forward(block, stream).unflatten(0, (C, B))

    def sensitivities(self, images: Tensor) -> Sensitivities:
        sites: dict[str, list[NormSite]] = {}
        activations: dict[str, tuple[Tensor, ...]] = {}

        def norm(key: str, x: Tensor, layer: Any, *, writes: bool = False) -> Tensor:
            out = layer(x)
            sites.setdefault(key, []).append(NormSite(x.detach(), out, layer.weight, layer.bias, layer.eps, writes))
            return out

        x = images
        for stage in range(len(self.shape.stages)):
            key, opening = f"residual.{stage}", self._opening(stage)
            embedded = opening.proj(x).flatten(2).transpose(1, 2)
            x = norm(key, embedded if stage else embedded.detach().requires_grad_(), opening.norm, writes=True)
            first = self.shape.first_block(stage)
            for b in range(first, first + self.shape.stages[stage].depth):
                blk = self._blocks[b]
                normed = norm(key, x, blk.norm1)
                reduced = self._reduce(b, normed)
                source = normed if reduced is None else norm(f"reduction.{b}", reduced, blk.attn.norm)
                q = blk.attn.q(normed)  # (B, N, A)
                k, v = blk.attn.kv(source).chunk(2, -1)  # (B, M, A)
                activations[f"attention.{b}"] = (q, v)
                split = [self._split(b, t, 1)[0] for t in (q, k, v)]
                out = F.scaled_dot_product_attention(split[0], split[1], split[2])
                x = x + blk.attn.proj(out.transpose(1, 2).flatten(2))
                hidden = self._hidden(b, norm(key, x, blk.norm2))
                activations[f"ffn.{b}"] = (hidden,)
                x = x + blk.mlp.fc2(hidden)
            x = norm(key, x, self._m.stages[stage].norm).transpose(1, 2).unflatten(2, self.shape.map_size(stage))
        return Sensitivities(self._head(x), sites, activations)
