"""The architecture of a checkpoint's tensors, and their check against an architecture.

Names are timm's here; `keys` has translated them. Only the head count is nowhere in the tensors.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from upvit_core.errors import CheckpointError, UnsupportedModelError
from upvit_core.files import Content, digest
from upvit_core.models.build import expected_tensors
from upvit_core.records.family import VIT
from upvit_core.records.shape import BlockShape, ModelShape

ASSUMED_HEAD_DIM = 64
SHOWN = 4
FOREIGN_PARTS = (
    (r"\.attn\.[qk]_norm\.", "normalised queries and keys"),
    (r"\.attn\.gate\.", "gated attention"),
    (r"\.attn\.(norm|inner_attn_ln)\.|\.mlp\.(norm|ffn_layernorm)\.", "a norm inside attention or FFN"),
    (r"^(attn_pool|map_head)\.", "attention pooling"),
    (r"^norm_pre\.|^patch_embed\.norm\.", "a norm before the blocks"),
    (r"rope|rel_pos|relative_position", "rotary or relative positions"),
    (r"\.mlp\.(w12|w3|fc1_g|fc1_x|gate_proj)\b", "a gated FFN (SwiGLU)"),
    (r"\.attn\.lambda_", "differential attention"),
    (r"\.(attns|ffns)\.\d", "parallel blocks"),
    (r"^patch_embed\.backbone\.", "a convolutional stem"),
)


def dimensions(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "scalar"


def listed(names: list[str]) -> str:
    """The first few names, and how many more there are."""
    more = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {more} more" if more > 0 else "")


def shape_of_tensors(
    tensors: Mapping[str, Tensor],
    source: str,
    *,
    heads: int | None = None,
    img_size: tuple[int, int] | None = None,
    norm_eps: float = 1e-6,
) -> ModelShape:
    """Architecture of a state dict in timm's names, with `heads` in every block or else heads 64 wide.

    Raises UnsupportedModelError where the tensors are no plain ViT, CheckpointError where those that determine the
    architecture are missing or contradictory.
    """
    refuse_foreign_parts(tensors, source)
    depth = 1 + max((int(m[1]) for m in (re.match(r"blocks\.(\d+)\.", key) for key in tensors) if m), default=-1)
    if not depth or not any(key.startswith("patch_embed.proj.") for key in tensors):
        raise UnsupportedModelError(
            f"{source} is not a Vision Transformer that is understood: its tensors are {listed(sorted(tensors))}, none "
            f"of them {'patch_embed.proj.weight' if depth else 'blocks.0.attn.qkv.weight'}; give a ViT or DeiT."
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
    if "head.weight" not in tensors:
        raise CheckpointError(
            f"{source} has no classifier (head.weight), and scores compare its outputs; give a checkpoint fine-tuned "
            "for classification."
        )
    distilled = "dist_token" in tensors or "head_dist.weight" in tensors
    registers = size("reg_token", 1, 3) if "reg_token" in tensors else 0
    positions = size("pos_embed", 1, 3)
    fc_norm = "fc_norm.weight" in tensors
    class_token = "cls_token" in tensors or distilled or not _is_square(positions - registers)
    prefix = class_token + distilled + registers
    no_embed_class = prefix > 0 and _fits(positions, patch, img_size)
    patches = positions if no_embed_class else positions - prefix
    if img_size is None:
        if not _is_square(patches):
            raise CheckpointError(
                f"{source}: pos_embed has {positions} positions, which is no square grid of patches, with or without "
                f"{prefix} extra token(s); give a config.json beside it with the image size."
            )
        img_size = (math.isqrt(patches) * patch[0], math.isqrt(patches) * patch[1])
    blocks = []
    for index in range(depth):
        qkv = f"blocks.{index}.attn.qkv.weight"
        rows = size(qkv, 0, 2)
        if rows % 3:
            raise CheckpointError(f"{source}: {qkv} has {rows} rows, expected a multiple of 3 (queries, keys, values).")
        attention, ffn = rows // 3, size(f"blocks.{index}.mlp.fc1.weight", 0, 2)
        blocks.append(BlockShape(heads_of(attention, heads, f"{source}: block {index}"), attention, ffn))
    return ModelShape(
        name=source,
        embed_dim=width,
        blocks=tuple(blocks),
        img_size=img_size,
        patch_size=patch,
        in_chans=in_chans,
        num_classes=size("head.weight", 0, 2),
        num_prefix_tokens=prefix,
        head_tokens=2 if distilled else int(class_token and not fc_norm),
        distilled=distilled,
        qkv_bias=any(key.endswith(".attn.qkv.bias") for key in tensors),
        layer_scale=any(re.search(r"\.ls[12]\.gamma$", key) for key in tensors),
        no_embed_class=no_embed_class,
        class_token=class_token,
        fc_norm=fc_norm,
        norm_eps=norm_eps,
    )


def _is_square(count: int) -> bool:
    return count > 0 and math.isqrt(count) ** 2 == count


def _fits(patches: int, patch: tuple[int, int], img_size: tuple[int, int] | None) -> bool:
    if img_size is None:
        return _is_square(patches)
    return patches == (img_size[0] // patch[0]) * (img_size[1] // patch[1])


def heads_of(attention: int, heads: int | None, where: str) -> int:
    """Number of heads for `attention` channels: as given, or 64 channels each."""
    if heads is None:
        if attention % ASSUMED_HEAD_DIM:
            raise CheckpointError(
                f"{where} has {attention} attention channels, not a multiple of the usual head width "
                f"{ASSUMED_HEAD_DIM}, and no tensor holds the number of heads; give it (num_heads), or "
                "put the model's config.json beside it."
            )
        return attention // ASSUMED_HEAD_DIM
    if heads < 1 or attention % heads:
        raise CheckpointError(
            f"{where} has {attention} attention channels, which {heads} heads do not divide; give a number of heads "
            "that does."
        )
    return heads


def refuse_foreign_parts(tensors: Mapping[str, Tensor], source: str) -> None:
    """Raise UnsupportedModelError where a tensor belongs to a part that no plain ViT has."""
    for pattern, part in FOREIGN_PARTS:
        foreign = next((key for key in tensors if re.search(pattern, key)), None)
        if foreign:
            raise UnsupportedModelError(
                f"{source} has {part} ({foreign}), which is not understood; give a plain ViT or DeiT."
            )


def check_tensors(tensors: Mapping[str, Tensor], shape: ModelShape, source: str) -> None:
    """Raise CheckpointError, naming tensors, unless they are exactly those of `shape`, of floats, and all finite."""
    expected = expected_tensors(shape)
    missing = [key for key in expected if key not in tensors]
    surplus = [key for key in tensors if key not in expected]
    if missing or surplus:
        if shape.architecture is VIT:
            refuse_foreign_parts({key: tensors[key] for key in surplus}, source)
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
