"""Translate a checkpoint's tensor names to timm's: prefixes, DeiT III's layer scale, the PVTv2 authors'
own, Hugging Face's ViT and DeiT.

Hugging Face `transformers` keeps query, key and value apart (timm stacks them) and has two generations of names. Its
`DeiTForImageClassification` has a distillation token that no head reads: to timm that is a register token.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from upvit_core.errors import CheckpointError
from upvit_core.models.pvt_build import from_authors, is_pvt
from upvit_core.models.tensors import listed

Flavour = Literal["timm", "vit", "deit", "pvt"]
PREFIXES = ("module.", "_orig_mod.", "model.")
HF_MARK = "embeddings.patch_embeddings.projection.weight"
HF_BLOCK = r"^(?:encoder\.layer|layers)\.(\d+)\."
HF_NAMES = (
    (r"^embeddings\.cls_token$", "cls_token"),
    (r"^embeddings\.distillation_token$", "dist_token"),
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (HF_BLOCK + r"layernorm_before\.", r"blocks.\1.norm1."),
    (HF_BLOCK + r"layernorm_after\.", r"blocks.\1.norm2."),
    (HF_BLOCK + r"attention\.(?:output\.dense|o_proj)\.", r"blocks.\1.attn.proj."),
    (HF_BLOCK + r"(?:intermediate\.dense|mlp\.fc1)\.", r"blocks.\1.mlp.fc1."),
    (HF_BLOCK + r"(?:output\.dense|mlp\.fc2)\.", r"blocks.\1.mlp.fc2."),
    (r"^layernorm\.", "norm."),
    (r"^(?:cls_)?classifier\.", "head."),
    (r"^distillation_classifier\.", "head_dist."),
)
HF_QKV = re.compile(
    HF_BLOCK + r"attention\.(?:attention\.(?P<old>query|key|value)|(?P<new>[qkv])_proj)\.(?P<leaf>weight|bias)$"
)
HF_UNREAD = re.compile(r"^pooler\.|^embeddings\.mask_token$")


def to_timm_names(tensors: Mapping[str, Tensor], source: str) -> tuple[dict[str, Tensor], Flavour]:
    """The same tensors under timm's names, and the flavour of the names that they had."""
    renamed = dict(tensors)
    while prefix := next((p for p in PREFIXES if renamed and all(key.startswith(p) for key in renamed)), None):
        renamed = {key.removeprefix(prefix): tensor for key, tensor in renamed.items()}
    if any(key.endswith(HF_MARK) for key in renamed):
        return _from_transformers(renamed, source)
    if is_pvt(renamed):
        return from_authors(renamed), "pvt"
    return {re.sub(r"\.gamma_([12])$", r".ls\1.gamma", key): tensor for key, tensor in renamed.items()}, "timm"


def _from_transformers(tensors: dict[str, Tensor], source: str) -> tuple[dict[str, Tensor], Flavour]:
    deit = any(key.startswith("deit.") or key.endswith("distillation_token") for key in tensors)
    renamed: dict[str, Tensor] = {}
    apart: dict[str, dict[str, Tensor]] = {}
    for full, tensor in tensors.items():
        key = re.sub(r"^(vit|deit)\.", "", full)
        if HF_UNREAD.match(key):
            continue
        if match := HF_QKV.match(key):
            letter = (match["old"] or match["new"])[0]
            apart.setdefault(f"blocks.{match[1]}.attn.qkv.{match['leaf']}", {})[letter] = tensor
            continue
        for pattern, replacement in HF_NAMES:
            key, count = re.subn(pattern, replacement, key)
            if count:
                break
        renamed[key] = tensor
    for key, parts in apart.items():
        if missing := [{"q": "query", "k": "key", "v": "value"}[letter] for letter in "qkv" if letter not in parts]:
            raise CheckpointError(
                f"{source} misses the {listed(missing)} part of {key}; give a complete checkpoint with all three of "
                "query, key and value."
            )
        if len({tuple(part.shape) for part in parts.values()}) > 1:
            raise CheckpointError(
                f"{source}: query, key and value of {key} have the shapes "
                f"{', '.join(str(tuple(parts[letter].shape)) for letter in 'qkv')}, expected three equal ones."
            )
        renamed[key] = torch.cat([parts["q"], parts["k"], parts["v"]])
    if "dist_token" in renamed and not any(key.startswith("head_dist.") for key in renamed):
        renamed["reg_token"] = renamed.pop("dist_token")
    return renamed, "deit" if deit else "vit"
