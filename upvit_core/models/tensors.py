"""The architecture of a checkpoint's tensors, and their check against an architecture.

Names are timm's here; `names` has translated them. Only the head counts are nowhere in the tensors; `heads` sets them.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from upvit_core.errors import CheckpointError, UnsupportedModelError
from upvit_core.files import Content, digest
from upvit_core.limits import MOST_BLOCKS
from upvit_core.models.build import expected_tensors
from upvit_core.models.foreign import foreign_part
from upvit_core.records.family import VIT
from upvit_core.records.shape import Activation, BlockShape, ModelShape
from upvit_core.records.structure import Structure

SHOWN = 4
GELU: Activation = "gelu"


def dimensions(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "scalar"


def listed(names: list[str]) -> str:
    """The first few names, and how many more there are."""
    more = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {more} more" if more > 0 else "")


def shape_of_tensors(
    tensors: Mapping[str, Tensor], source: str, *, img_size: tuple[int, int] | None = None, norm_eps: float = 1e-6
) -> ModelShape:
    """Architecture of a state dict in timm's names, with one head in every block, since no tensor tells how many.

    Raises UnsupportedModelError where the tensors are no plain ViT, CheckpointError where those that determine the
    architecture are missing or contradictory.
    """
    refuse_foreign_parts(tensors, source)
    depth = 1 + max((int(m[1]) for m in (re.match(r"blocks\.(\d+)\.", key) for key in tensors) if m), default=-1)
    if depth > MOST_BLOCKS:
        raise CheckpointError(f"{source} numbers its blocks up to {depth - 1}; models have at most {MOST_BLOCKS}.")
    if not depth:
        raise UnsupportedModelError(
            f"{source} is not a Vision Transformer that is understood: its tensors are {listed(sorted(tensors))}, none "
            "of them blocks.0.attn.qkv.weight; give a ViT or DeiT."
        )

    def size(key: str, axis: int, dims: int) -> int:
        if key not in tensors:
            raise CheckpointError(f"{source} misses the tensor {key}, without which the architecture is unknown.")
        tensor = tensors[key]
        if tensor.ndim != dims:
            raise CheckpointError(f"{source}: {key} has the shape {dimensions(tensor)}, expected {dims} dimensions.")
        return tensor.shape[axis]

    width, in_chans = size("patch_embed.proj.weight", 0, 4), size("patch_embed.proj.weight", 1, 4)
    patch = (size("patch_embed.proj.weight", 2, 4), size("patch_embed.proj.weight", 3, 4))
    _check_head(tensors, width, source)
    distilled = "dist_token" in tensors or "head_dist.weight" in tensors
    registers = size("reg_token", 1, 3) if "reg_token" in tensors else 0
    positions = size("pos_embed", 1, 3)
    fc_norm = "fc_norm.weight" in tensors
    if fc_norm and "norm.weight" in tensors:
        raise CheckpointError(
            f"{source} has both norm and fc_norm, and its classifier reads one of them; save it without norm "
            "if that is the mean over patches, without fc_norm if it is the class token."
        )
    fits = partial(_fits, patch=patch, img_size=img_size)
    class_token = "cls_token" in tensors or distilled or not (fits(positions) or fits(positions - registers))
    prefix = class_token + distilled + registers
    no_embed_class = prefix > 0 and fits(positions)
    patches = positions if no_embed_class else positions - prefix
    if img_size is None:
        if not _is_square(patches):
            raise CheckpointError(
                f"{source}: pos_embed has {positions} positions, which is no square grid of patches, with or without "
                f"{prefix} extra token(s); give the images' height and width (--img-size HEIGHT,WIDTH)."
            )
        img_size = (math.isqrt(patches) * patch[0], math.isqrt(patches) * patch[1])
    blocks = []
    for index in range(depth):
        qkv = f"blocks.{index}.attn.qkv.weight"
        rows = size(qkv, 0, 2)
        if rows % 3:
            raise CheckpointError(f"{source}: {qkv} has {rows} rows, expected a multiple of 3 (queries, keys, values).")
        blocks.append(BlockShape(1, rows // 3, size(f"blocks.{index}.mlp.fc1.weight", 0, 2)))
    structure, act = Structure(patch_norm="patch_embed.norm.weight" in tensors), GELU
    if size("blocks.0.mlp.fc1.weight", 0, 2) == 2 * size("blocks.0.mlp.fc2.weight", 1, 2):  # SwiGLU, as DINOv2-g
        structure, act = replace(structure, timm="vit_giant_patch14_dinov2", gate="packed"), "silu"
        blocks = [replace(block, ffn=block.ffn // 2) for block in blocks]
    if "attn_pool.latent" in tensors:  # with as many heads as the blocks have
        pool = (width, 1, size("attn_pool.mlp.fc1.weight", 0, 2))
        structure = Structure(timm="vit_base_patch16_siglip_224", pool=pool)
    return ModelShape(
        name=source,
        embed_dim=width,
        blocks=tuple(blocks),
        img_size=img_size,
        patch_size=patch,
        in_chans=in_chans,
        num_classes=size("head.weight", 0, 2) if "head.weight" in tensors else 0,
        num_prefix_tokens=prefix,
        head_tokens=2 if distilled else int(class_token and not fc_norm),
        distilled=distilled,
        qkv_bias=any(key.endswith(".attn.qkv.bias") for key in tensors),
        layer_scale=any(re.search(r"\.ls[12]\.gamma$", key) for key in tensors),
        no_embed_class=no_embed_class,
        class_token=class_token,
        fc_norm=fc_norm,
        norm_eps=norm_eps,
        pre_norm="norm_pre.weight" in tensors,
        act=act,
        features="head.weight" not in tensors,
        structure=structure,
    )


def _check_head(tensors: Mapping[str, Tensor], width: int, source: str) -> None:
    head = tensors.get("head.weight")
    if head is not None and not head.shape[0]:
        raise CheckpointError(f"{source} has a classifier of no classes (head.weight); give a complete checkpoint.")
    if head is not None and head.ndim == 2 and head.shape[1] > width and head.shape[1] % width == 0:
        many = "two" if head.shape[1] == 2 * width else str(head.shape[1] // width)
        raise UnsupportedModelError(
            f"{source} has a classifier that reads {many} features of {width} numbers (as DINOv2's reads the class "
            "token of one block or of four beside the mean over patches), which is not supported; give one that reads "
            "one."
        )


def _is_square(count: int) -> bool:
    return count > 0 and math.isqrt(count) ** 2 == count


def _fits(patches: int, patch: tuple[int, int], img_size: tuple[int, int] | None) -> bool:
    if img_size is None:
        return _is_square(patches)
    return patches == (img_size[0] // patch[0]) * (img_size[1] // patch[1])


def refuse_foreign_parts(tensors: Iterable[str], source: str) -> None:
    """Raise UnsupportedModelError where a tensor belongs to a part that no plain ViT has."""
    if found := foreign_part(tensors):
        part, key = found
        raise UnsupportedModelError(
            f"{source} has {part} ({key}), which is not understood from tensors alone; put a config.json with timm's "
            'name of the model beside it, as {"architecture": "eva02_base_patch14_224"}, or give a plain ViT or DeiT.'
        )


def check_tensors(tensors: Mapping[str, Tensor], shape: ModelShape, source: str) -> None:
    """Raise CheckpointError, naming tensors, unless they are exactly those of `shape`, of floats, and all finite."""
    expected = expected_tensors(shape)
    missing = [key for key in expected if key not in tensors]
    surplus = [key for key in tensors if key not in expected]
    if missing or surplus:
        if shape.architecture is VIT:
            refuse_foreign_parts(surplus, source)
        problems = [f"misses {listed(missing)}"] * bool(missing) + [f"has surplus {listed(surplus)}"] * bool(surplus)
        raise CheckpointError(
            f"{source} {' and '.join(problems)}, against a {shape.architecture.title} of {shape.depth} blocks and "
            f"width {', '.join(map(str, shape.embed_dims))}; give a complete checkpoint of one classifier."
        )
    for key, wanted in expected.items():
        tensor = tensors[key]
        if tuple(tensor.shape) != wanted:
            raise CheckpointError(
                f"{source}: {key} has the shape {dimensions(tensor)}, expected {'x'.join(map(str, wanted))}."
            )
        if (
            tensor.layout == torch.strided
            and not tensor.is_meta
            and tensor.untyped_storage().nbytes() < tensor.numel() * tensor.element_size()
        ):
            raise CheckpointError(
                f"{source}: {key} stores fewer numbers than its shape has; save it with .contiguous()."
            )
        if not tensor.is_floating_point() or tensor.layout != torch.strided or tensor.is_meta:
            kind = "no data" if tensor.is_meta else f"{tensor.dtype} ({tensor.layout})"
            raise CheckpointError(f"{source}: {key} holds {kind}, expected dense floating-point weights.")
        if not torch.isfinite(tensor.float()).all():
            raise CheckpointError(f"{source}: {key} holds NaN or infinity; such weights cannot be used.")


def digest_of(tensors: Mapping[str, Tensor], shape: ModelShape) -> str:
    """First 16 hex digits of the SHA-256 over names and float32 bytes, and over what no tensor holds (heads, eps …)."""
    values = {key: value for key, value in shape.to_dict().items() if key != "name"}

    def contents() -> Iterator[Content]:
        yield json.dumps(values, sort_keys=True)
        for key in sorted(tensors):
            tensor = tensors[key].detach().to("cpu", torch.float32).contiguous()
            yield f"{key}{tuple(tensor.shape)}"
            yield tensor.numpy().data

    return digest(contents())
