"""The tensors of a model of a given shape, and the channels that each of their axes holds. Imports no torch.

One function per family makes the table by which checkpoints are checked, the weights of a channel (`l1`, `l2`) and all
parameters counted, and tensors sliced.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from upvit_core.records.family import load
from upvit_core.records.shape import ModelShape
from upvit_core.records.structure import Structure


@dataclass(frozen=True)
class Axis:
    """One axis of a tensor: the channels of group `key`, `repeat` times (queries, keys, values); None: no channels.

    `unit` adjacent entries make one channel of the group: those of a head, if whole heads are cut.
    """

    size: int
    key: str | None = None
    repeat: int = 1
    unit: int = 1


@dataclass(frozen=True)
class Part:
    """A tensor and its place in the model.

    `half` is its half-block (2b: attention of block b, 2b + 1: its FFN), None outside the blocks; `leaf` its name
    inside the block. `queries` is True where its first attention channels are queries, which carry the scale.
    """

    axes: tuple[Axis, ...]
    half: int | None = None
    leaf: str = ""
    queries: bool = False

    @property
    def size(self) -> tuple[int, ...]:
        return tuple(axis.size for axis in self.axes)


Layout = dict[str, Part]


def layout(shape: ModelShape) -> Layout:
    """Every tensor by name, in the library's order of parts."""
    parts: Layout = load(shape.architecture.layout)(shape)
    return parts


def block_stem(shape: ModelShape, block: int) -> str:
    """The beginning of the names of a block's tensors."""
    stem: str = load(shape.architecture.stem)(shape, block)
    return stem


def count_in_layout(shape: ModelShape) -> int:
    """Number of weights."""
    return sum(math.prod(part.size) for part in layout(shape).values())


class Collector:
    """Collects the parts of a layout; `half` and `stem` apply to all parts until they are changed."""

    def __init__(self) -> None:
        self.parts: Layout = {}
        self.stem, self.half = "", None  # type: tuple[str, int | None]

    def add(self, leaf: str, *axes: Axis, queries: bool = False) -> None:
        inside = self.half is not None
        self.parts[f"{self.stem}.{leaf}" if inside else leaf] = Part(axes, self.half, leaf if inside else "", queries)

    def norm(self, leaf: str, width: Axis, *, bias: bool = True) -> None:
        self.add(f"{leaf}.weight", width)
        if bias:
            self.add(f"{leaf}.bias", width)

    def linear(
        self, leaf: str, outputs: Axis, inputs: Axis, *extra: Axis, bias: bool = True, queries: bool = False
    ) -> None:
        """A linear layer, or with `extra` axes (kernel) a convolution."""
        self.add(f"{leaf}.weight", outputs, inputs, *extra, queries=queries)
        if bias:
            self.add(f"{leaf}.bias", outputs, queries=queries)


def vit_layout(shape: ModelShape, scale: str = "ls{}.gamma") -> Layout:
    parts, own = Collector(), shape.structure
    width, one, centred = Axis(shape.embed_dim, "residual"), Axis(1), not own.rms
    if shape.class_token:
        parts.add("cls_token", one, one, width)
    if shape.distilled:
        parts.add("dist_token", one, one, width)
    if shape.num_reg_tokens:
        parts.add("reg_token", one, Axis(shape.num_reg_tokens), width)
    if own.positions:
        positions = shape.num_patches if shape.no_embed_class else shape.num_tokens
        parts.add("pos_embed", one, Axis(positions), width)
    height, breadth = shape.patch_size
    parts.linear("patch_embed.proj", width, Axis(shape.in_chans), Axis(height), Axis(breadth), bias=not shape.pre_norm)
    if own.patch_norm:
        parts.norm("patch_embed.norm", width, bias=centred)
    if shape.pre_norm:
        parts.norm("norm_pre", width, bias=centred)
    for b in range(shape.depth):
        parts.stem = f"blocks.{b}"
        _vit_block(parts, shape, b, scale)
    parts.half = None
    if shape.final_norm:
        parts.norm("fc_norm" if shape.fc_norm else "norm", width, bias=centred)
    read = width
    if own.pool:
        read = Axis(own.pool[0])
        _attention_pool(parts, own, width, read)
    if shape.num_classes:
        parts.linear("head", Axis(shape.num_classes), read)
    if shape.distilled:
        parts.linear("head_dist", Axis(shape.num_classes), width)
    return parts.parts


def _vit_block(parts: Collector, shape: ModelShape, b: int, scale: str) -> None:
    own, block, channels = shape.structure, shape.blocks[b], shape.channels_in(shape.blocks[b])
    width, hidden, centred = Axis(shape.embed_dim, "residual"), Axis(block.ffn, f"ffn.{b}"), not own.rms
    attention, qkv = (Axis(n * channels, f"attention.{b}", n, own.unit) for n in (1, 3))
    parts.half = 2 * b
    parts.norm("norm1", width, bias=centred)
    parts.linear("attn.qkv", qkv, width, bias=shape.qkv_bias, queries=True)
    if own.qk_norm:
        for leaf in ("attn.q_norm", "attn.k_norm"):
            parts.norm(leaf, Axis(own.head_dim), bias=centred)
    if own.relative:
        height, breadth = (side // patch for side, patch in zip(shape.img_size, shape.patch_size, strict=True))
        distances = Axis((2 * height - 1) * (2 * breadth - 1) + 3)
        parts.add("attn.relative_position_bias_table", distances, Axis(block.attention, f"attention.{b}"))
    if own.learns_angles:
        parts.add("attn.freqs", Axis(2), Axis(block.attention, f"attention.{b}"), Axis(own.head_dim // 2))
    if own.attention_norm:
        parts.norm("attn.norm", attention, bias=centred)
    parts.linear("attn.proj", width, attention, bias=own.biases)
    if shape.layer_scale:
        parts.add(scale.format(1), width)
    parts.half = 2 * b + 1
    parts.norm("norm2", width, bias=centred)
    for leaf in ("mlp.fc1_g", "mlp.fc1_x") if own.gate == "split" else ():
        parts.linear(leaf, hidden, width, bias=own.biases)
    if own.gate != "split":
        count = own.first_layers
        parts.linear("mlp.fc1", Axis(count * block.ffn, f"ffn.{b}", count), width, bias=own.biases)
    if own.ffn_norm:
        parts.norm("mlp.norm", hidden, bias=centred)
    parts.linear("mlp.fc2", width, hidden, bias=own.biases)
    if shape.layer_scale:
        parts.add(scale.format(2), width)


def _attention_pool(parts: Collector, own: Structure, width: Axis, read: Axis) -> None:
    """Attention pooling, which keeps its own width; only its input, the residual, is cut."""
    one, hidden = Axis(1), Axis(own.pool[2])
    parts.add("attn_pool.latent", one, one, read)
    parts.linear("attn_pool.q", read, read)
    parts.linear("attn_pool.kv", Axis(2 * own.pool[0]), width)
    parts.linear("attn_pool.proj", read, read)
    parts.norm("attn_pool.norm", read, bias=not own.rms)
    parts.linear("attn_pool.mlp.fc1", hidden, read)
    parts.linear("attn_pool.mlp.fc2", read, hidden)


def eva_layout(shape: ModelShape) -> Layout:
    """A ViT's layout with the names that timm's Eva and Beit give to layer scale."""
    return vit_layout(shape, "gamma_{}")


def pvt_layout(shape: ModelShape) -> Layout:
    parts = Collector()
    inputs = Axis(shape.in_chans)
    for number, stage in enumerate(shape.stages):
        width = Axis(stage.embed_dim, f"residual.{number}")
        stem = f"stages.{number}"
        embed = "patch_embed" if number == 0 else f"{stem}.downsample"
        kernel = Axis(stage.kernel)
        parts.linear(f"{embed}.proj", width, inputs, kernel, kernel)
        parts.norm(f"{embed}.norm", width)
        first = shape.first_block(number)
        for index in range(stage.depth):
            b = first + index
            block = shape.blocks[b]
            attention, hidden = Axis(block.attention, f"attention.{b}"), Axis(block.ffn, f"ffn.{b}")
            parts.stem, parts.half = f"{stem}.blocks.{index}", 2 * b
            parts.norm("norm1", width)
            parts.linear("attn.q", attention, width, bias=shape.qkv_bias, queries=True)
            source = width
            if block.reduction:
                source, ratio = Axis(block.reduction, f"reduction.{b}"), Axis(stage.reduction_ratio or 1)
                parts.linear("attn.sr", source, width, ratio, ratio)
                parts.norm("attn.norm", source)
            kv = Axis(2 * block.attention, f"attention.{b}", 2)
            parts.linear("attn.kv", kv, source, bias=shape.qkv_bias)
            parts.linear("attn.proj", width, attention)
            parts.half = 2 * b + 1
            parts.norm("norm2", width)
            parts.linear("mlp.fc1", hidden, width)
            parts.linear("mlp.dwconv", hidden, Axis(1), Axis(3), Axis(3))
            parts.linear("mlp.fc2", width, hidden)
        parts.half = None
        parts.norm(f"{stem}.norm", width)
        inputs = width
    if shape.num_classes:
        parts.linear("head", Axis(shape.num_classes), inputs)
    return parts.parts


def gpt2_layout(shape: ModelShape) -> Layout:
    """Linear maps of GPT-2 hold their inputs first (`Conv1D`); the output layer is `wte` again."""
    parts = Collector()
    width = Axis(shape.embed_dim, "residual")
    parts.add("transformer.wte.weight", Axis(shape.num_classes), width)
    parts.add("transformer.wpe.weight", Axis(shape.img_size[1]), width)
    for b, block in enumerate(shape.blocks):
        attention, hidden = Axis(block.attention, f"attention.{b}"), Axis(block.ffn, f"ffn.{b}")
        qkv = Axis(3 * block.attention, f"attention.{b}", 3)
        parts.stem, parts.half = f"transformer.h.{b}", 2 * b
        parts.norm("ln_1", width)
        parts.add("attn.c_attn.weight", width, qkv, queries=True)
        parts.add("attn.c_attn.bias", qkv, queries=True)
        parts.add("attn.c_proj.weight", attention, width)
        parts.add("attn.c_proj.bias", width)
        parts.half = 2 * b + 1
        parts.norm("ln_2", width)
        parts.add("mlp.c_fc.weight", width, hidden)
        parts.add("mlp.c_fc.bias", hidden)
        parts.add("mlp.c_proj.weight", hidden, width)
        parts.add("mlp.c_proj.bias", width)
    parts.half = None
    parts.norm("transformer.ln_f", width)
    return parts.parts


def vit_stem(shape: ModelShape, block: int) -> str:
    return f"blocks.{block}"


def pvt_stem(shape: ModelShape, block: int) -> str:
    stage = shape.stage_of(block)
    return f"stages.{stage}.blocks.{block - shape.first_block(stage)}"


def gpt2_stem(shape: ModelShape, block: int) -> str:
    return f"transformer.h.{block}"
