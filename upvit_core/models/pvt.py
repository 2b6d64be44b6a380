"""timm's PyramidVisionTransformerV2, run part by part.

The stream before a stage's first block is the map that its patch embedding reads: the image, or the map (B, D, H, W)
that the stage before it gave. Inside a stage it is (B, N, D). A residual channel belongs to one stage: the norm of its
patch embedding, both norms of its blocks and its last norm lose it, and so does what reads that last norm's map.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from upvit_core.models.transformer import (
    BlockTrace,
    Keep,
    Norm,
    TransformerAdapter,
    all_but_one,
    keep_nothing,
    repeated,
    stock_norm,
    weighted_layer_norm,
)
from upvit_core.records.shape import ModelShape


class PVTAdapter(TransformerAdapter):
    """Adapter of a timm PVTv2."""

    def __init__(self, model: nn.Module, shape: ModelShape):
        pvt: Any = model
        self.pvt = pvt
        blocks = [block for stage in pvt.stages for block in stage.blocks]
        super().__init__(model, shape, blocks, [block.attn.scale for block in blocks])
        self._first = {shape.first_block(stage) for stage in range(len(shape.stages))}
        self._norm_keys: dict[nn.Module, tuple[str, bool]] = {}
        for stage, module in enumerate(pvt.stages):
            inside = [norm for block in module.blocks for norm in (block.norm1, block.norm2)]
            self._norm_keys[self.opening(stage).norm] = (f"residual.{stage}", True)
            self._norm_keys |= {norm: (f"residual.{stage}", False) for norm in (*inside, module.norm)}
        for b, block in enumerate(blocks):
            if block.attn.sr is not None:
                self._norm_keys[block.attn.norm] = (f"reduction.{b}", False)

    def embed(self, images: Tensor) -> Tensor:
        return images

    def opening(self, stage: int) -> Any:
        """The patch embedding before a stage: a convolution `proj` and a `norm`."""
        return self.pvt.stages[stage].downsample if stage else self.pvt.patch_embed

    def enter(self, stage: int, x: Tensor, norm: Norm = stock_norm) -> Tensor:
        """The map before a stage to its stream (B, N, D)."""
        opening = self.opening(stage)
        return norm(opening.proj(x).flatten(2).transpose(1, 2), opening.norm)

    def leave(self, stage: int, x: Tensor, norm: Norm = stock_norm) -> Tensor:
        """The stream (B, N, D) after a stage's last block to the map (B, D, H, W) that it gives."""
        return norm(x, self.pvt.stages[stage].norm).transpose(1, 2).unflatten(2, self.shape.map_size(stage))

    def before_block(self, block: int, x: Tensor, norm: Norm = stock_norm) -> Tensor:
        return self.enter(self.shape.stage_of(block), x, norm) if block in self._first else x

    def after_block(self, block: int, x: Tensor, norm: Norm = stock_norm) -> Tensor:
        stage = self.shape.stage_of(block)
        return self.leave(stage, x, norm) if block + 1 == self.shape.first_block(stage + 1) else x

    def norm_key(self, layer: nn.Module) -> tuple[str, bool]:
        return self._norm_keys[layer]

    def first_block(self, key: str) -> int:
        component, place = key.split(".")
        return self.shape.first_block(int(place)) if component == "residual" else int(place)

    def grid(self, block: int, x: Tensor) -> Tensor:
        """(B, N, C) to (B, C, H, W)."""
        return x.transpose(1, 2).unflatten(2, self.shape.map_size(self.shape.stage_of(block)))

    def reduce(self, block: int, normed: Tensor) -> Tensor | None:
        """The normed stream (B, N, D), spatially reduced to (B, M, R); None in blocks that reduce nothing."""
        attn = self.blocks[block].attn
        return None if attn.sr is None else attn.sr(self.reduced_map(block, normed)).flatten(2).transpose(1, 2)

    def reduced_map(self, block: int, normed: Tensor) -> Tensor:
        """The map (B, D, H, W) that the spatial reduction reads."""
        grid, pool = self.grid(block, normed), self.blocks[block].attn.pool
        return grid if pool is None else pool(grid)

    def read_by_keys(self, block: int, normed: Tensor) -> Tensor:
        """The input of keys and values, from the normed reduction."""
        act = self.blocks[block].attn.act
        return normed if act is None else act(normed)

    def attend(
        self, block: int, x: Tensor, norm: Norm = stock_norm, keep: Keep = keep_nothing, *, last: bool | None = None
    ) -> Tensor:
        blk = self.blocks[block]
        read = normed = keep("normed", norm(x, blk.norm1))
        if (reduced := self.reduce(block, normed)) is not None:
            read = self.read_by_keys(block, norm(keep("reduced", reduced), blk.attn.norm))
        k, v = blk.attn.kv(read).chunk(2, -1)  # (B, M, A)
        mixed = keep("mixed", self.mix(block, keep("q", blk.attn.q(normed)), keep("k", k), keep("v", v)))
        return keep("shortcut", x) + keep("written", blk.attn.proj(mixed))

    def feed(self, block: int, x: Tensor, norm: Norm = stock_norm, keep: Keep = keep_nothing) -> Tensor:
        blk = self.blocks[block]
        before = self.grid(block, keep("before", blk.mlp.fc1(keep("normed", norm(x, blk.norm2)))))
        hidden = keep("hidden", blk.mlp.act(blk.mlp.dwconv(blk.mlp.relu(before)).flatten(2).transpose(1, 2)))
        return keep("shortcut", x) + keep("written", blk.mlp.fc2(hidden))

    def head(self, x: Tensor, norm: Norm = stock_norm) -> Tensor:
        return self.pvt.head(x.mean((-1, -2)))

    def run_half_block(self, half: int, x: Tensor, *, previous: int | None = None, last: bool = False) -> Tensor:
        stage = self.shape.stage_of(half // 2)
        if previous is None:
            x = self.enter(stage, x)
        elif (before := self.shape.stage_of(previous // 2)) != stage:
            x = self.enter(stage, self.leave(before, x))
        return self.half_block(half, x)

    def after_half_block(self, half: int, x: Tensor) -> Tensor:
        return self.head(self.leave(self.shape.stage_of(half // 2), x))

    def projection(self, block: int) -> Tensor:
        return self.blocks[block].attn.proj.weight.T

    def output_layer(self, block: int) -> Tensor:
        return self.blocks[block].mlp.fc2.weight.T

    def _without(self, component: str, block: int, trace: BlockTrace, channels: Tensor) -> Tensor:
        if component != "reduction":
            return super()._without(component, block, trace, channels)
        attention, attn = trace.attention, self.blocks[block].attn
        assert attention.reduced is not None
        weight = all_but_one(channels, attention.reduced.shape[-1], len(attention.q), attention.q)
        read = weighted_layer_norm(repeated(attention.reduced, len(channels)), attn.norm, weight)
        k, v = attn.kv(self.read_by_keys(block, read)).chunk(2, -1)
        written = attn.proj(self.mix(block, repeated(attention.q, len(channels)), k, v))
        stream = repeated(attention.shortcut, len(channels)) + written
        return self.feed(block, stream).unflatten(0, (len(channels), -1))

    def _without_residual(self, key: str, x: Tensor, channels: Tensor) -> Tensor:
        first = self.first_block(key)
        stage = self.shape.stage_of(first)
        norm = self.weigh(key, all_but_one(channels, self.shape.embed_dims[stage], len(x), x))
        opening = self.opening(stage)
        embedded = opening.proj(x).flatten(2).transpose(1, 2)  # (B, N, D), the same for every channel
        stream = norm(repeated(embedded, len(channels)), opening.norm)
        end = self.shape.first_block(stage + 1)
        for b in range(first, end):
            stream = self.feed(b, self.attend(b, stream, norm), norm)
        return self.run_from(end, self.leave(stage, stream, norm))
