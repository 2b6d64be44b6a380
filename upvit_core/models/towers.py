"""Tensor names of vision towers without a classifier, CLIP's and SigLIP's, and their translation to timm's."""

from __future__ import annotations

import re

from torch import Tensor

from upvit_core.errors import UnsupportedModelError
from upvit_core.files import Json
from upvit_core.models.config import CLIP_CFG, VIT_CFG
from upvit_core.models.names import HALVES, NEVER, Form, Tensors, Translated, anchored, joined, renamed, unfolded

CLIPS = "mean and standard deviation of CLIP"
HF_BLOCK = r"^encoder\.layers\.(\d+)\."
HF_RULES = (
    (r"^embeddings\.class_embedding$", "cls_token"),
    (r"^embeddings\.position_embedding\.weight$", "pos_embed"),
    (r"^embeddings\.patch_embedding\.", "patch_embed.proj."),
    (r"^pre_layrnorm\.", "norm_pre."),
    (HF_BLOCK + r"layer_norm([12])\.", r"blocks.\1.norm\2."),
    (HF_BLOCK + r"self_attn\.out_proj\.", r"blocks.\1.attn.proj."),
    (HF_BLOCK + r"mlp\.", r"blocks.\1.mlp."),
    (r"^post_layernorm\.", "norm."),
    (r"^(?:visual_projection|classifier)\.", "head."),
    (r"^head\.probe$", "attn_pool.latent"),
    (r"^head\.attention\.out_proj\.", "attn_pool.proj."),
    (r"^head\.layernorm\.", "attn_pool.norm."),
    (r"^head\.mlp\.", "attn_pool.mlp."),
)
HF_QKV = re.compile(HF_BLOCK + r"self_attn\.([qkv])_proj\.(weight|bias)$")
CLIP_BLOCK = r"^transformer\.resblocks\.(\d+)\."
CLIP_RULES = (
    (r"^class_embedding$", "cls_token"),
    (r"^positional_embedding$", "pos_embed"),
    (r"^conv1\.", "patch_embed.proj."),
    (r"^ln_pre\.", "norm_pre."),
    (CLIP_BLOCK + r"ln_([12])\.", r"blocks.\1.norm\2."),
    (CLIP_BLOCK + r"ls_([12])\.", r"blocks.\1.ls\2."),
    (CLIP_BLOCK + r"attn\.in_proj_", r"blocks.\1.attn.qkv."),
    (CLIP_BLOCK + r"attn\.out_proj\.", r"blocks.\1.attn.proj."),
    (CLIP_BLOCK + r"mlp\.c_fc\.", r"blocks.\1.mlp.fc1."),
    (CLIP_BLOCK + r"mlp\.c_proj\.", r"blocks.\1.mlp.fc2."),
    (r"^ln_post\.", "norm."),
)


def _shaped(tensors: Tensors) -> Tensors:
    """The tensors with tokens and positions (1, n, D), and with zeros for the bias of a projection that has none."""
    out = dict(tensors)
    for key in ("cls_token", "pos_embed"):
        if key in out:
            out[key] = out[key].reshape(1, -1, out[key].shape[-1])
    if "head.weight" in out:
        out.setdefault("head.bias", out["head.weight"].new_zeros(len(out["head.weight"])))
    return out


def from_transformers_tower(tensors: Tensors, source: str) -> Translated:
    """transformers' vision towers of CLIP, whose projection is kept where there is one, and of SigLIP 1 and 2.

    A classifier reads the mean over patches: of CLIP before the last norm, which nothing reads then, of SigLIP after
    it.
    """
    if any(key.startswith("classifier.") for key in tensors):
        unread = r"^(head|post_layernorm)\." if any(key.startswith("pre_layrnorm.") for key in tensors) else r"^head\."
        tensors = {key: tensor for key, tensor in tensors.items() if not re.search(unread, key)}
    rest: Tensors = {}
    apart: dict[str, Tensors] = {}
    for key, tensor in tensors.items():
        if match := HF_QKV.match(key):
            apart.setdefault(f"blocks.{match[1]}.attn.qkv.{match[3]}", {})[match[2]] = tensor
        elif key.startswith("head.attention.in_proj_"):
            q, kv = tensor.split([len(tensor) // 3, 2 * len(tensor) // 3])
            leaf = key.removeprefix("head.attention.in_proj_")
            rest |= {f"attn_pool.q.{leaf}": q, f"attn_pool.kv.{leaf}": kv}
        else:
            rest[key] = tensor
    out = _shaped(renamed(rest, HF_RULES) | joined(apart, source))
    weight = out.get("patch_embed.proj.weight")
    if weight is not None and weight.ndim == 2:  # SigLIP 2, here at the size of its own grid
        out["patch_embed.proj.weight"] = unfolded(weight, source)
    return out, None


def from_clip(tensors: Tensors, source: str) -> Translated:
    """The tower of OpenAI's CLIP and of open_clip; its projection is kept."""
    if any(key.startswith("attn_pool") for key in tensors):
        raise UnsupportedModelError(f"{source} has open_clip's attention pooling, which is not supported.")
    out = renamed(tensors, CLIP_RULES)
    projection: Tensor | None = out.pop("proj", None)
    if projection is not None:
        out["head.weight"] = projection.T
    return _shaped(out), None


def _tower(name: str, anchor: str, mark: re.Pattern[str], of_clip: bool, cfg: Json, images: str) -> Form:
    translate = from_clip if anchor.startswith("ln_pre") else from_transformers_tower
    return Form(name, anchored(anchor), mark, translate, 1e-5 if of_clip else 1e-6, cfg, images, features=of_clip)


PATCHES = r"embeddings\.patch_embedding\.weight"
TOWERS: tuple[Form, ...] = (
    _tower("the names of transformers' CLIP", PATCHES, re.compile(r"pre_layrnorm\."), True, CLIP_CFG, CLIPS),
    _tower("the names of transformers' SigLIP", PATCHES, re.compile(r"."), False, VIT_CFG, HALVES),
    _tower("the names of OpenAI's CLIP", r"ln_pre\.weight", NEVER, True, CLIP_CFG, CLIPS),
)
