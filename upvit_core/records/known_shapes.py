"""Shapes that the libraries have names for: DeiT and PVTv2."""

from collections.abc import Sequence
from typing import Literal

from upvit_core.records.shape import BlockShape, ModelShape, StageShape

DeitVariant = Literal["base", "small", "tiny"]


def deit_shape(variant: DeitVariant, *, distilled: bool = False) -> ModelShape:
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


PvtVariant = Literal["b0", "b1", "b2", "b3", "b4", "b5", "b2_li"]


PVT_VARIANTS: dict[PvtVariant, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]] = {
    "b0": ((2, 2, 2, 2), (32, 64, 160, 256), (8, 8, 4, 4)),
    "b1": ((2, 2, 2, 2), (64, 128, 320, 512), (8, 8, 4, 4)),
    "b2": ((3, 4, 6, 3), (64, 128, 320, 512), (8, 8, 4, 4)),
    "b3": ((3, 4, 18, 3), (64, 128, 320, 512), (8, 8, 4, 4)),
    "b4": ((3, 8, 27, 3), (64, 128, 320, 512), (8, 8, 4, 4)),
    "b5": ((3, 6, 40, 3), (64, 128, 320, 512), (4, 4, 4, 4)),
    "b2_li": ((3, 4, 6, 3), (64, 128, 320, 512), (8, 8, 4, 4)),
}
"""Depths, residual widths and FFN ratios of the stages of PVTv2."""


def staged_shape(
    name: str,
    stages: Sequence[StageShape],
    blocks: Sequence[BlockShape],
    *,
    img_size: tuple[int, int],
    in_chans: int,
    num_classes: int,
    qkv_bias: bool = True,
    norm_eps: float = 1e-6,
) -> ModelShape:
    """Shape of a PVTv2, whose head reads the average over the last map."""
    return ModelShape(
        name=name,
        embed_dim=stages[-1].embed_dim,
        blocks=tuple(blocks),
        img_size=img_size,
        patch_size=(stages[0].stride, stages[0].stride),
        in_chans=in_chans,
        num_classes=num_classes,
        features=not num_classes,
        num_prefix_tokens=0,
        head_tokens=0,
        qkv_bias=qkv_bias,
        class_token=False,
        norm_eps=norm_eps,
        family="pvt_v2",
        stages=tuple(stages),
    )


def pvt_shape(
    variant: PvtVariant, *, img_size: tuple[int, int] = (224, 224), in_chans: int = 3, num_classes: int = 1000
) -> ModelShape:
    """Shape of timm's pvt_v2_b0 … b5 and b2_li."""
    depths, dims, ratios = PVT_VARIANTS[variant]
    stages, blocks = [], []
    for stage, (depth, dim, ratio) in enumerate(zip(depths, dims, ratios, strict=True)):
        own = StageShape(
            dim, depth, 3 if stage else 7, 2 if stage else 4, 0 if "li" in variant else (8, 4, 2, 1)[stage]
        )
        stages.append(own)
        blocks += [BlockShape((1, 2, 5, 8)[stage], dim, ratio * dim, dim * own.reduces)] * depth
    return staged_shape(
        f"pvt_v2_{variant}", stages, blocks, img_size=img_size, in_chans=in_chans, num_classes=num_classes
    )


def deit_shapes(shape: ModelShape) -> dict[str, ModelShape]:
    """DeiT-T, -S and -B, distilled where `shape` is."""
    suffix = " distilled" if shape.distilled else ""
    variants: tuple[DeitVariant, ...] = ("tiny", "small", "base")
    return {f"DeiT-{v[0].upper()}{suffix}": deit_shape(v, distilled=shape.distilled) for v in variants}


def pvt_shapes(shape: ModelShape) -> dict[str, ModelShape]:
    """PVTv2-B0 … B5, and B2 with linear attention."""
    return {f"PVTv2-{variant.upper().replace('_', '-')}": pvt_shape(variant) for variant in PVT_VARIANTS}


def no_shapes(shape: ModelShape) -> dict[str, ModelShape]:
    """For a family whose library has no named shapes."""
    return {}
