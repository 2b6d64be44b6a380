"""A model for images of another size than its checkpoint's: the position embedding is resampled, as timm does."""

from __future__ import annotations

from dataclasses import replace
from typing import TypeVar

from timm.layers.pos_embed import resample_abs_pos_embed
from torch import Tensor

from upvit_core.errors import CheckpointError
from upvit_core.records.family import load
from upvit_core.records.shape import ModelShape

Tensors = TypeVar("Tensors", dict[str, Tensor], dict[str, Tensor] | None)


def at_size(tensors: Tensors, shape: ModelShape, img_size: tuple[int, int]) -> tuple[Tensors, ModelShape]:
    """Tensors and shape for images of (height, width); tensors may be None. Unchanged where the size is the same.

    Raises CheckpointError where the patches do not divide the size, UnsupportedModelError where it is too small.
    """
    if img_size == shape.img_size:
        return tensors, shape
    return load(shape.architecture.resize)(tensors, shape, img_size), replace(shape, img_size=img_size)


def resample_positions(
    tensors: dict[str, Tensor] | None, shape: ModelShape, img_size: tuple[int, int]
) -> dict[str, Tensor] | None:
    """The tensors with the position embedding of another grid of patches."""
    height, width = img_size
    if min(img_size) < 1 or height % shape.patch_size[0] or width % shape.patch_size[1]:
        across = f"{shape.patch_size[0]} by {shape.patch_size[1]}"
        raise CheckpointError(
            f"Images of {height} by {width} pixels cannot be cut into patches of {across}; give a size that "
            "they divide."
        )
    if tensors is None or "pos_embed" not in tensors:
        return tensors
    old = [side // patch for side, patch in zip(shape.img_size, shape.patch_size, strict=True)]
    new = [side // patch for side, patch in zip(img_size, shape.patch_size, strict=True)]
    prefix = 0 if shape.no_embed_class else shape.num_prefix_tokens
    embedded = resample_abs_pos_embed(tensors["pos_embed"].float(), new, old, num_prefix_tokens=prefix)
    return {**tensors, "pos_embed": embedded}
