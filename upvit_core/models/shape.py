"""Widths of a model, block by block: all that planning and counting need. Imports no torch, so pages open fast."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

Component = Literal["residual", "attention", "ffn"]
COMPONENTS: tuple[Component, ...] = ("residual", "attention", "ffn")


@dataclass(frozen=True)
class BlockShape:
    """Widths of one block: attention heads, attention channels over all heads, hidden FFN channels."""

    num_heads: int
    attention: int
    ffn: int

    @property
    def head_dim(self) -> int:
        return self.attention // self.num_heads


@dataclass(frozen=True)
class ModelShape:
    """Shape of a Vision Transformer as timm builds it.

    `num_prefix_tokens` counts class, distillation and register tokens; `head_tokens` is how many of them the
    classifier reads (0: it reads the average over patches). `fc_norm` says that the final norm comes after pooling.
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

    @property
    def depth(self) -> int:
        return len(self.blocks)

    @property
    def num_patches(self) -> int:
        return (self.img_size[0] // self.patch_size[0]) * (self.img_size[1] // self.patch_size[1])

    @property
    def num_tokens(self) -> int:
        return self.num_patches + self.num_prefix_tokens

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
        """True where every block has the same widths and attention is as wide as the residual, as stock timm builds."""
        return len(set(self.blocks)) == 1 and self.blocks[0].attention == self.embed_dim

    def to_dict(self) -> dict[str, Any]:
        """Lists and plain values only, equal to what JSON gives back."""
        values = asdict(self)
        values |= {name: list(values[name]) for name in ("blocks", "img_size", "patch_size")}
        return values

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ModelShape:
        values = dict(values)
        values["blocks"] = tuple(BlockShape(**block) for block in values["blocks"])
        values["img_size"], values["patch_size"] = tuple(values["img_size"]), tuple(values["patch_size"])
        return cls(**values)


def deit_shape(variant: Literal["base", "small", "tiny"], *, distilled: bool = False) -> ModelShape:
    """Shape of DeiT-B, -S or -T at 224 pixels with 1,000 classes."""
    width, heads = {"base": (768, 12), "small": (384, 6), "tiny": (192, 3)}[variant]
    return ModelShape(
        name=f"deit_{variant}_{'distilled_' if distilled else ''}patch16_224",
        embed_dim=width,
        blocks=(BlockShape(heads, width, 4 * width),) * 12,
        img_size=(224, 224),
        patch_size=(16, 16),
        in_chans=3,
        num_classes=1000,
        num_prefix_tokens=1 + distilled,
        head_tokens=1 + distilled,
        distilled=distilled,
    )
