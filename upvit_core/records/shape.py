"""Widths of a model, block by block: all that planning and counting need. Imports no torch, so pages open fast.

`groups` lists the channels that are scored and cut together, whatever the architecture: a plain transformer has one
`residual`, a staged one (PVTv2) `residual.0` … and, where a block reduces its keys and values in space, `reduction.b`.
Code that goes by `groups` and `with_widths` works for every family.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Literal, get_args

from upvit_core.errors import UnsupportedModelError
from upvit_core.files import Json
from upvit_core.limits import MOST_BLOCKS
from upvit_core.records.family import FAMILIES, Family, load
from upvit_core.records.structure import PLAIN, Structure, check_numbers

Activation = Literal["gelu", "quick_gelu", "gelu_tanh", "silu"]
"""The activation function of the FFN, by timm's name."""
Component = Literal["residual", "attention", "ffn", "reduction"]
OUTPUT_BYTES = 1 << 28
"""The most that the outputs of one batch may take, unless a single input's take more."""
COMPONENTS: tuple[Component, ...] = ("residual", "attention", "ffn")
"""The components of a plain transformer; `ModelShape.components` has those of any."""


@dataclass(frozen=True)
class Group:
    """Channels that are ranked together; `key` names them in scores and plans.

    `place` is the stage of a residual (0 where there is only one) and the block of anything else; `heads` into how many
    equal parts the channels fall.
    """

    key: str
    component: Component
    place: int
    width: int
    heads: int = 1


@dataclass(frozen=True)
class BlockShape:
    """Widths of one block: attention heads, attention channels over all heads, hidden FFN channels.

    If heads are cut whole (`Structure.head_dim`), `attention` is the number of heads and `num_heads` is 1 (none merge).
    `reduction` counts the channels of a spatial reduction of keys and values (0: there is none).
    """

    num_heads: int
    attention: int
    ffn: int
    reduction: int = 0

    @property
    def head_dim(self) -> int:
        return self.attention // self.num_heads


@dataclass(frozen=True)
class StageShape:
    """A stage of a pyramid: residual width, number of blocks, and how its patch embedding and attention go by space.

    `kernel` and `stride` are of the convolution that opens the stage; keys and values come from a map smaller by
    `reduction_ratio` each way. A ratio of 0 is linear attention: keys and values come from a map pooled to `POOLED`
    each way, with GELU after their norm, and a ReLU stands before the FFN's depthwise convolution.
    """

    embed_dim: int
    depth: int
    kernel: int
    stride: int
    reduction_ratio: int

    @property
    def is_linear(self) -> bool:
        return self.reduction_ratio == 0

    @property
    def reduces(self) -> bool:
        """True if a convolution stands before keys and values."""
        return self.reduction_ratio != 1


POOLED = 7


@dataclass(frozen=True)
class ModelShape:
    """Shape of a transformer as its library builds it; `family` says by which classes.

    `num_prefix_tokens` counts class, distillation and register tokens; `head_tokens` is how many of them the
    classifier reads (0: it reads the average over patches). `fc_norm` says that the final norm comes after pooling,
    `pre_norm` that a norm stands before the blocks, as in CLIP.
    With `stages`, `embed_dim` is the width of the last one, which the head reads.
    `features` says that the outputs are features, not logits of classes; `num_classes` is then their number where a
    linear layer makes them, and 0 where they are what a head would read.
    `structure` has the parts beyond a plain ViT's.
    """

    name: str
    embed_dim: int
    blocks: tuple[BlockShape, ...]
    img_size: tuple[int, int]
    patch_size: tuple[int, int]
    in_chans: int
    num_classes: int
    num_prefix_tokens: int = 1
    head_tokens: int = 1
    distilled: bool = False
    qkv_bias: bool = True
    layer_scale: bool = False
    no_embed_class: bool = False
    final_norm: bool = True
    class_token: bool = True
    fc_norm: bool = False
    norm_eps: float = 1e-6
    pre_norm: bool = False
    act: Activation = "gelu"
    features: bool = False
    family: str = "vit"
    stages: tuple[StageShape, ...] = ()
    structure: Structure = PLAIN

    def __post_init__(self) -> None:
        if self.stages and (
            sum(stage.depth for stage in self.stages) != len(self.blocks) or self.embed_dim != self.stages[-1].embed_dim
        ):
            raise ValueError("the stages do not add up to the blocks, or embed_dim is not the last stage's width")

    @property
    def depth(self) -> int:
        return len(self.blocks)

    @property
    def architecture(self) -> Family:
        """The registry's entry. Raises UnsupportedModelError where it has none."""
        if self.family not in FAMILIES:
            raise UnsupportedModelError(f"{self.name} is of the family {self.family!r}, which is not understood.")
        return FAMILIES[self.family]

    @property
    def has_directions(self) -> bool:
        """True where the residual can be rotated, and directions cut in place of channels."""
        return not self.unrotated

    @property
    def unrotated(self) -> str:
        """The reason why its residual is not rotated; empty where it is."""
        own = self.structure
        if self.pre_norm or own.patch_norm:
            return "a norm writes to its residual, and that norm's weights would not survive a rotation"
        if own.head_dim:
            return "positions or norms inside its heads belong to single channels, which factors of a head would mix"
        if own.rms:
            return "its norms take no mean away, on which the cut to fewer directions relies"
        if own.ffn_norm or not own.biases:
            return "its FFN has a norm inside or no biases, so that the other channels cannot make up for one"
        if not self.architecture.has_directions:
            return f"rotation is written for plain ViTs, not for {self.architecture.title}"
        return ""

    @property
    def one_share(self) -> bool:
        """True where a plan takes one share of a component from all blocks; elsewhere each may have other widths."""
        return self.architecture.one_share

    @property
    def is_language(self) -> bool:
        """True for a model that reads the tokens of a text and predicts the next one."""
        return self.architecture.task == "text"

    @property
    def library(self) -> str:
        """The library whose own classes build it where the widths allow."""
        return self.architecture.library

    @property
    def outputs(self) -> int:
        """Numbers in one answer: logits of classes or tokens, or features."""
        return self.num_classes or (self.structure.pool or (self.embed_dim,))[0]

    @property
    def classes(self) -> int | None:
        """The number of classes that it tells apart; None where its outputs are features."""
        return None if self.features else self.num_classes

    def outputs_at(self, embed_dim: int) -> int:
        """`num_classes` at another residual width, at which the same number of features needs a linear layer."""
        linear = self.features and not self.structure.pool and embed_dim != self.embed_dim
        return self.outputs if linear else self.num_classes

    def heads_in(self, block: BlockShape) -> int:
        """The number of heads of a block, whether they are cut whole or not."""
        return block.attention if self.structure.head_dim else block.num_heads

    def channels_in(self, block: BlockShape) -> int:
        """The attention channels of a block over all heads."""
        return block.attention * self.structure.unit

    def with_linear_features(self) -> ModelShape:
        """The same model with its features made by a linear layer, as a thinner residual needs to make all of them."""
        return replace(self, num_classes=self.outputs)

    @property
    def answers(self) -> int:
        """Answers to one input: one to an image, one for every token of a block of text."""
        return self.num_tokens if self.is_language else 1

    @property
    def output_bytes(self) -> int:
        """Bytes of the float32 outputs of one input."""
        return self.answers * self.outputs * 4

    @property
    def is_small(self) -> bool:
        """True where inputs are small: pictures of fewer than 100 pixels a side, texts of fewer than 100 tokens."""
        return self.img_size[1 if self.is_language else 0] < 100

    def batch_size(self, small: int, large: int | None = None) -> int:
        """Inputs to run at once: `small`, `large` of large inputs; fewer where their outputs exceed OUTPUT_BYTES."""
        most = small if large is None or self.is_small else large
        return max(1, min(most, OUTPUT_BYTES // max(self.output_bytes, 1)))

    @property
    def depths(self) -> tuple[int, ...]:
        """Blocks of each stage; of one, where there are no stages."""
        return tuple(stage.depth for stage in self.stages) or (self.depth,)

    @property
    def embed_dims(self) -> tuple[int, ...]:
        """Residual width of each stage; of one, where there are no stages."""
        return tuple(stage.embed_dim for stage in self.stages) or (self.embed_dim,)

    def stage_of(self, block: int) -> int:
        """The stage that a block belongs to; 0 where there are no stages."""
        stage, first = 0, self.depths[0]
        while block >= first and stage + 1 < len(self.depths):
            stage += 1
            first += self.depths[stage]
        return stage

    def first_block(self, stage: int) -> int:
        """Number of a stage's first block."""
        return sum(self.depths[:stage])

    def map_size(self, stage: int) -> tuple[int, int]:
        """Height and width of a stage's map of tokens."""
        height, width = self.img_size
        for own in self.stages[: stage + 1]:
            height, width = ((side + 2 * (own.kernel // 2) - own.kernel) // own.stride + 1 for side in (height, width))
        return height, width

    def tokens_at(self, block: int) -> int:
        """Tokens that a block works on."""
        tokens: int = load(self.architecture.tokens)(self, block)[0]
        return tokens

    def keys_at(self, block: int) -> int:
        """Tokens that a block's queries attend to: fewer than its tokens where there is a spatial reduction."""
        keys: int = load(self.architecture.tokens)(self, block)[1]
        return keys

    @property
    def groups(self) -> tuple[Group, ...]:
        """Everything that can be cut: residuals first, then block by block."""
        residual = [
            Group(f"residual.{number}" if self.stages else "residual", "residual", number, width)
            for number, width in enumerate(self.embed_dims)
        ]
        inner = []
        for b, block in enumerate(self.blocks):
            inner.append(Group(f"attention.{b}", "attention", b, block.attention, block.num_heads))
            inner.append(Group(f"ffn.{b}", "ffn", b, block.ffn))
            if block.reduction:
                inner.append(Group(f"reduction.{b}", "reduction", b, block.reduction))
        return (*residual, *inner)

    def key_of(self, component: Component, place: int) -> str:
        """Key of a component's channels at a stage (residual) or in a block."""
        return "residual" if component == "residual" and not self.stages else f"{component}.{place}"

    def groups_of(self, component: Component) -> tuple[Group, ...]:
        """The groups of one component, in the order of the model."""
        return tuple(group for group in self.groups if group.component == component)

    @property
    def components(self) -> tuple[Component, ...]:
        """The components that this model has."""
        return (*COMPONENTS, "reduction") if any(block.reduction for block in self.blocks) else COMPONENTS

    def with_widths(self, widths: Mapping[str, int], heads: Mapping[int, int] | None = None) -> ModelShape:
        """The same model with other widths by key, and heads by block; what is not named stays."""
        blocks = tuple(
            replace(
                block,
                num_heads=(heads or {}).get(b, block.num_heads),
                attention=widths.get(f"attention.{b}", block.attention),
                ffn=widths.get(f"ffn.{b}", block.ffn),
                reduction=widths.get(f"reduction.{b}", block.reduction),
            )
            for b, block in enumerate(self.blocks)
        )
        stages = tuple(
            replace(stage, embed_dim=widths.get(f"residual.{number}", stage.embed_dim))
            for number, stage in enumerate(self.stages)
        )
        embed_dim = stages[-1].embed_dim if stages else widths.get("residual", self.embed_dim)
        outputs = self.outputs_at(embed_dim)
        return replace(self, embed_dim=embed_dim, blocks=blocks, stages=stages, num_classes=outputs)

    @property
    def num_patches(self) -> int:
        return (self.img_size[0] // self.patch_size[0]) * (self.img_size[1] // self.patch_size[1])

    @property
    def num_tokens(self) -> int:
        """Tokens of a block; the most of any, where stages differ."""
        return self.tokens_at(0)

    @property
    def num_reg_tokens(self) -> int:
        return self.num_prefix_tokens - self.class_token - self.distilled

    @property
    def num_heads(self) -> int | None:
        """The heads of every block where all blocks have the same number, else None."""
        heads = {block.num_heads for block in self.blocks}
        return heads.pop() if len(heads) == 1 else None

    @property
    def is_uniform(self) -> bool:
        """True where the library's own classes build such widths: equal blocks, attention as wide as the residual.

        In a staged model that holds for each stage, and a spatial reduction is as wide as the residual too.
        """
        for stage, width in enumerate(self.embed_dims):
            first = self.first_block(stage)
            blocks = self.blocks[first : first + self.depths[stage]]
            reduces = bool(self.stages) and self.stages[stage].reduces
            wide = self.channels_in(blocks[0])
            if len(set(blocks)) != 1 or wide != width or blocks[0].reduction != width * reduces:
                return False
        block, own = self.blocks[0], self.structure
        pooled = own.pool in ((), (self.embed_dim, self.heads_in(block), block.ffn))
        return own == PLAIN or (pooled and bool(own.timm) and not own.relative and not own.learns_angles)

    def to_dict(self) -> Json:
        """Lists and plain values only, equal to what JSON gives back; what only other families have is left out."""
        values = asdict(self)
        values |= {name: list(values[name]) for name in ("blocks", "img_size", "patch_size", "stages")}
        for block in values["blocks"]:
            if not block["reduction"]:
                del block["reduction"]
        if not self.stages:
            del values["stages"]
        if self.family == "vit":
            del values["family"]
        for name in ("pre_norm", "features"):
            if not values[name]:
                del values[name]
        if self.act == "gelu":
            del values["act"]
        if self.structure == PLAIN:
            del values["structure"]
        else:
            values["structure"] = self.structure.to_dict()
        return values

    @classmethod
    def from_dict(cls, values: Json) -> ModelShape:
        """Raises ValueError, TypeError or KeyError where the values make no model."""
        values = dict(values)
        if not 1 <= len(values["blocks"]) <= MOST_BLOCKS:
            raise ValueError(f"it has {len(values['blocks'])} blocks, expected 1 to {MOST_BLOCKS}")
        values["blocks"] = tuple(BlockShape(**block) for block in values["blocks"])
        values["img_size"], values["patch_size"] = tuple(values["img_size"]), tuple(values["patch_size"])
        values["stages"] = tuple(StageShape(**stage) for stage in values.get("stages", ()))
        values["structure"] = Structure.from_dict(values.get("structure", {}))
        for record in (*values["blocks"], *values["stages"]):
            check_numbers(type(record), vars(record))
        check_numbers(cls, values)
        shape = cls(**values)
        _check_shape(shape)
        return shape


def _check_shape(shape: ModelShape) -> None:
    """Raises ValueError where widths are no positive numbers, or heads do not divide attention."""
    for number, block in enumerate(shape.blocks):
        if min(block.num_heads, block.attention, block.ffn) < 1 or block.attention % block.num_heads:
            raise ValueError(f"block {number} has {block}, expected numbers above 0 and heads that divide attention")
    if shape.act not in get_args(Activation):
        raise ValueError(f"act is {str(shape.act)[:40]}, expected {', '.join(get_args(Activation))}")
    outputs = shape.num_classes or int(shape.features)
    if min(shape.embed_dim, shape.in_chans, outputs) < 1 or not (shape.is_language or shape.num_patches):
        raise ValueError("it has no channels, no classes or no patches")


def plain_tokens(shape: ModelShape, block: int) -> tuple[int, int]:
    """Tokens of a block and of its keys, where every block has all tokens."""
    tokens = shape.num_patches + shape.num_prefix_tokens
    return tokens, tokens


def reduced_tokens(shape: ModelShape, block: int) -> tuple[int, int]:
    """Tokens of a block and of its keys, where a stage has a map and a spatial reduction."""
    stage = shape.stage_of(block)
    height, width = shape.map_size(stage)
    ratio = shape.stages[stage].reduction_ratio
    return height * width, (height // ratio) * (width // ratio) if ratio else POOLED**2


def legal_head_counts(num_heads: int) -> tuple[int, ...]:
    """Head counts into which `num_heads` heads can be merged, descending."""
    return tuple(n for n in range(num_heads, 0, -1) if num_heads % n == 0)


def common_head_counts(blocks: tuple[BlockShape, ...]) -> tuple[int, ...]:
    """Head counts that are legal in every block, descending."""
    return tuple(n for n in legal_head_counts(blocks[0].num_heads) if all(block.num_heads % n == 0 for block in blocks))
