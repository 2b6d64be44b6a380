"""Tensor names of several libraries, and their translation to timm's.

Each function takes the tensors of one model, without prefix, and gives them under timm's names, and the number of heads
where a layout shows it. Names were read off models that the libraries themselves make.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from upvit_core.errors import CheckpointError, UnsupportedModelError
from upvit_core.files import Json
from upvit_core.models.config import DEIT_CFG, VIT_CFG
from upvit_core.models.parallel import side_by_side
from upvit_core.models.pvt_build import from_authors, is_pvt
from upvit_core.models.tensors import listed

Tensors = dict[str, Tensor]
Translated = tuple[Tensors, int | None]
Translate = Callable[[Tensors, str], Translated]

IMAGENET = "ImageNet's mean and standard deviation, as DeiT"
HALVES = "mean and standard deviation 0.5, as Google's ViTs"
NEVER = re.compile(r"(?!)")
ALWAYS = re.compile("")


@dataclass(frozen=True)
class Form:
    """A layout of names, and what its library takes for granted.

    `anchor` finds its patch embedding, `mark` tells it from other layouts with the same one. `norm_eps` is the norms'
    eps, `cfg` how images are prepared, and `images` says whose way that is. `features`: its outputs are no classes.
    `pixel_norm`: the pixels of a patch are normalised before they are embedded.
    """

    name: str
    anchor: re.Pattern[str]
    mark: re.Pattern[str]
    translate: Translate
    norm_eps: float
    cfg: Json
    images: str
    assumes: str = ""
    features: bool = False
    pixel_norm: bool = False


def renamed(tensors: Mapping[str, Tensor], rules: tuple[tuple[str, str], ...]) -> Tensors:
    """The tensors by new names: of each the first rule that fits, its own name where none does."""
    out: Tensors = {}
    for key, tensor in tensors.items():
        new = next((re.sub(pattern, name, key) for pattern, name in rules if re.search(pattern, key)), key)
        out[new] = tensor
    return out


def joined(parts: Mapping[str, Mapping[str, Tensor]], source: str) -> Tensors:
    """Query, key and value stacked as timm stacks them. Raises CheckpointError where one is missing or differs."""
    out: Tensors = {}
    for key, found in parts.items():
        if missing := [{"q": "query", "k": "key", "v": "value"}[letter] for letter in "qkv" if letter not in found]:
            raise CheckpointError(
                f"{source} misses the {listed(missing)} part of {key}; give a complete checkpoint with all three of "
                "query, key and value."
            )
        if len({tuple(part.shape) for part in found.values()}) > 1:
            raise CheckpointError(
                f"{source}: query, key and value of {key} have the shapes "
                f"{', '.join(str(tuple(found[letter].shape)) for letter in 'qkv')}, expected three equal ones."
            )
        out[key] = torch.cat([found["q"], found["k"], found["v"]])
    return out


TIMM_RULES = (
    (r"\.gamma_([12])$", r".ls\1.gamma"),  # DeiT III
    (r"^blocks\.\d+\.(\d+)\.(?=\D)", r"blocks.\1."),  # DINOv2 in chunks, whose blocks keep their own numbers
    (r"\.mlp\.w12\.", ".mlp.fc1."),  # DINOv2-g, whose FFN is gated
    (r"\.mlp\.w3\.", ".mlp.fc2."),
    (r"^register_tokens$", "reg_token"),
    (r"^(?:fc|classifier|linear|cls_head|mlp_head|linear_head)\.(weight|bias)$", r"head.\1"),
)
TIMM_QKV = re.compile(r"^(blocks\.\d+\.attn\.)(?:to_)?([qkv])(?:_proj)?\.(weight|bias)$")


def from_timm(tensors: Tensors, source: str) -> Translated:
    """timm's own names, DeiT's, MAE's and DINOv2's; PVTv2's authors'."""
    if is_pvt(tensors):
        return from_authors(tensors), None
    tensors = side_by_side(tensors)
    apart: dict[str, dict[str, str]] = {}
    for key in tensors:
        if match := TIMM_QKV.match(key):
            apart.setdefault(f"{match[1]}qkv.{match[3]}", {})[match[2]] = key
    apart = {key: parts for key, parts in apart.items() if len(parts) == len("qkv")}
    gone = {key for parts in apart.values() for key in parts.values()}
    out = renamed({key: tensor for key, tensor in tensors.items() if key not in gone}, TIMM_RULES)
    out |= joined({key: {part: tensors[name] for part, name in parts.items()} for key, parts in apart.items()}, source)
    for key in ("cls_token", "dist_token", "reg_token", "pos_embed"):
        if key in out and out[key].ndim in (1, 2):
            out[key] = out[key].reshape(1, -1, out[key].shape[-1])
    if "register_tokens" in tensors and "cls_token" in out and "pos_embed" in out:
        # DINOv2 adds the first position to the class token before it puts the registers in between.
        out["cls_token"] = out["cls_token"] + out["pos_embed"][:, :1]
        out["pos_embed"] = out["pos_embed"][:, 1:]
    return out, None


HF_BLOCK = r"^(?:encoder\.layer|layers)\.(\d+)\."
HF_RULES = (
    (r"^embeddings\.cls_token$", "cls_token"),
    (r"^embeddings\.distillation_token$", "dist_token"),
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^embeddings\.register_tokens$", "register_tokens"),
    (HF_BLOCK + r"(?:layernorm_before|norm1)\.", r"blocks.\1.norm1."),
    (HF_BLOCK + r"(?:layernorm_after|norm2)\.", r"blocks.\1.norm2."),
    (HF_BLOCK + r"layer_scale([12])\.lambda1$", r"blocks.\1.ls\2.gamma"),
    (HF_BLOCK + r"attention\.(?:output\.dense|o_proj)\.", r"blocks.\1.attn.proj."),
    (HF_BLOCK + r"(?:intermediate\.dense|mlp\.fc1|mlp\.weights_in)\.", r"blocks.\1.mlp.fc1."),
    (HF_BLOCK + r"(?:output\.dense|mlp\.fc2|mlp\.weights_out)\.", r"blocks.\1.mlp.fc2."),
    (r"^layernorm\.", "norm."),
    (r"^(?:cls_)?classifier\.", "head."),
    (r"^distillation_classifier\.", "head_dist."),
)
HF_QKV = re.compile(
    HF_BLOCK + r"attention\.(?:attention\.(?P<old>query|key|value)|(?P<new>[qkv])_proj)\.(?P<leaf>weight|bias)$"
)


def from_transformers(tensors: Tensors, source: str) -> Translated:
    """Hugging Face's ViT, DeiT, ViT-MSN, I-JEPA and DINOv2, in the names of version 4 and 5.

    Its `DeiTForImageClassification` has a distillation token that no head reads: to timm that is a register token.
    """
    rest: Tensors = {}
    apart: dict[str, Tensors] = {}
    for full, tensor in tensors.items():
        key = re.sub(r"^(vit|deit|ijepa|dinov2(_with_registers)?)\.", "", full)
        if match := HF_QKV.match(key):
            letter = (match["old"] or match["new"])[0]
            apart.setdefault(f"blocks.{match[1]}.attn.qkv.{match['leaf']}", {})[letter] = tensor
        else:
            rest[key] = tensor
    out = renamed(rest, HF_RULES) | joined(apart, source)
    if "dist_token" in out and not any(key.startswith("head_dist.") for key in out):
        out["reg_token"] = out.pop("dist_token")
    return from_timm(out, source)


TV_BLOCK = r"^encoder\.layers\.encoder_layer_(\d+)\."
TV_RULES = (
    (r"^class_token$", "cls_token"),
    (r"^encoder\.pos_embedding$", "pos_embed"),
    (r"^conv_proj\.", "patch_embed.proj."),
    (TV_BLOCK + r"ln_([12])\.", r"blocks.\1.norm\2."),
    (TV_BLOCK + r"self_attention\.in_proj_", r"blocks.\1.attn.qkv."),
    (TV_BLOCK + r"self_attention\.out_proj\.", r"blocks.\1.attn.proj."),
    (TV_BLOCK + r"mlp\.(?:0|linear_1)\.", r"blocks.\1.mlp.fc1."),
    (TV_BLOCK + r"mlp\.(?:3|linear_2)\.", r"blocks.\1.mlp.fc2."),
    (r"^encoder\.ln\.", "norm."),
    (r"^heads(?:\.head)?\.(?=weight|bias)", "head."),
)


def from_torchvision(tensors: Tensors, source: str) -> Translated:
    """torchvision's `VisionTransformer`, whose attention is `nn.MultiheadAttention`."""
    return renamed(tensors, TV_RULES), None


VP_BLOCK = r"^transformer\.layers\.(\d+)\."
VP_RULES = (
    (r"^pos_embedding$", "pos_embed"),
    (r"^(?:to_patch_embedding\.1|patch_to_embedding)\.", "patch_embed.proj."),
    (VP_BLOCK + r"0\.(?:fn\.)?norm\.", r"blocks.\1.norm1."),
    (VP_BLOCK + r"0\.(?:fn\.)*to_qkv\.", r"blocks.\1.attn.qkv."),
    (VP_BLOCK + r"0\.(?:fn\.)*to_out\.0\.", r"blocks.\1.attn.proj."),
    (VP_BLOCK + r"1\.(?:(?:fn\.)?norm|net\.0)\.(?=\w+$)", r"blocks.\1.norm2."),
    (VP_BLOCK + r"1\.(?:fn\.)+net\.0\.", r"blocks.\1.mlp.fc1."),
    (VP_BLOCK + r"1\.(?:fn\.)+net\.3\.", r"blocks.\1.mlp.fc2."),
    (VP_BLOCK + r"1\.net\.1\.", r"blocks.\1.mlp.fc1."),
    (VP_BLOCK + r"1\.net\.4\.", r"blocks.\1.mlp.fc2."),
    (r"^(?:transformer\.norm|mlp_head\.0)\.", "norm."),
    (r"^mlp_head\.(?:1\.)?(?=weight|bias)", "head."),
)
VP_NEWER_RULES = (
    (r"^to_patch_embedding\.1\.", "pixel_norm."),
    (r"^to_patch_embedding\.2\.", "patch_embed.proj."),
    (r"^to_patch_embedding\.3\.", "patch_embed.norm."),
    *VP_RULES,
)


def from_vit_pytorch(tensors: Tensors, source: str) -> Translated:
    """vit-pytorch's `ViT`; newer ones have norms before and after the linear layer that embeds patches."""
    if "pos_embedding" not in tensors:
        raise UnsupportedModelError(
            f"{source} is a SimpleViT of vit-pytorch, whose file tells neither its positions nor the size of its "
            "images; give a ViT of vit-pytorch, or a ViT of timm."
        )
    newer = "to_patch_embedding.2.weight" in tensors
    out = renamed(tensors, VP_NEWER_RULES if newer else VP_RULES)
    weight = out.get("patch_embed.proj.weight")
    if newer and weight is not None:
        scale, shift = out.pop("pixel_norm.weight"), out.pop("pixel_norm.bias")
        out["patch_embed.proj.bias"] = out["patch_embed.proj.bias"] + weight @ shift
        weight = out["patch_embed.proj.weight"] = weight * scale
    if "cls_token" in out and not out["cls_token"].numel():
        del out["cls_token"]  # the mean over patches is read
    if weight is not None and weight.ndim == 2:
        out["patch_embed.proj.weight"] = unfolded(weight, source)
    out |= {key: out[key][None] for key in ("pos_embed", "cls_token") if key in out and out[key].ndim == 2}
    return out, None


def unfolded(weight: Tensor, source: str) -> Tensor:
    """A convolution (D, C, p, p) for a linear layer on patches of p x p pixels with their C colours last."""
    for colours in (3, 1):
        side = math.isqrt(weight.shape[1] // colours)
        if side * side * colours == weight.shape[1]:
            return weight.reshape(-1, side, side, colours).permute(0, 3, 1, 2)
    raise UnsupportedModelError(
        f"{source} embeds patches of {weight.shape[1]} numbers, which is no square of pixels in 3 colours or 1; give "
        "square patches."
    )


NPZ_RULES = (
    (r"^cls$", "cls_token"),
    (r"^(?:Transformer/posembed_input/)?pos_embedding$", "pos_embed"),
    (r"^embedding/", "patch_embed.proj."),
    (r"^Transformer/encoderblock_(\d+)/LayerNorm_0/", r"blocks.\1.norm1."),
    (r"^Transformer/encoderblock_(\d+)/LayerNorm_[12]/", r"blocks.\1.norm2."),
    (r"^Transformer/encoderblock_(\d+)/MultiHeadDotProductAttention_[01]/out/", r"blocks.\1.attn.proj."),
    (r"^Transformer/encoderblock_(\d+)/MlpBlock_[0-9]/Dense_0/", r"blocks.\1.mlp.fc1."),
    (r"^Transformer/encoderblock_(\d+)/MlpBlock_[0-9]/Dense_1/", r"blocks.\1.mlp.fc2."),
    (r"^Transformer/encoder_norm/", "norm."),
)
NPZ_QKV = re.compile(
    r"^Transformer/encoderblock_(\d+)/MultiHeadDotProductAttention_[01]/(query|key|value)/(kernel|bias)$"
)
NPZ_LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias"}


def unstacked(tensors: Tensors) -> Tensors:
    """The arrays block by block; big_vision holds those of all blocks in one, the block first."""
    out: Tensors = {}
    for key, tensor in tensors.items():
        name = key.replace("/encoderblock/", "/encoderblock_{}/")
        out |= {key: tensor} if name == key else {name.format(b): one for b, one in enumerate(tensor)}
    return out


def from_google(tensors: Tensors, source: str) -> Translated:
    """The arrays of Google's `.npz` files, whose kernels have their inputs first and their heads apart."""
    if any(key.startswith("pre_logits/") for key in tensors):
        raise UnsupportedModelError(
            f"{source} has a hidden layer before its classifier (pre_logits), as Google's files for ImageNet-21k do; "
            "that is not supported; give a file fine-tuned on ImageNet."
        )
    apart: dict[str, Tensors] = {}
    rest: Tensors = {}
    heads = None
    for key, tensor in unstacked(tensors).items():
        if match := NPZ_QKV.match(key):
            heads = tensor.shape[-2]
            weight = tensor.flatten(1).T if match[3] == "kernel" else tensor.flatten()
            apart.setdefault(f"blocks.{match[1]}.attn.qkv.{NPZ_LEAVES[match[3]]}", {})[match[2][0]] = weight
        else:
            rest[key] = tensor
    out: Tensors = {}
    for key, tensor in renamed(rest, NPZ_RULES).items():
        owner, slash, leaf = key.rpartition("/") if "/" in key else key.rpartition(".")
        if leaf == "kernel":
            four = tensor.ndim == 4
            tensor = tensor.permute(3, 2, 0, 1) if four else tensor.flatten(0, -2).T
        out[f"{owner}.{NPZ_LEAVES[leaf]}" if slash and leaf in NPZ_LEAVES else key] = tensor
    return out | joined(apart, source), heads


MHA = re.compile(r"(?P<stem>(?:\w+\.)*?(?:\w*layers|\w*blocks))\.0\.(?:\w+\.)?in_proj_weight$")


def from_multihead(tensors: Tensors, source: str) -> Translated:
    """A ViT made of `nn.TransformerEncoder` or of blocks around `nn.MultiheadAttention`, whatever its parts are called.

    The parts are told by their shapes. Raises UnsupportedModelError where they do not fit one pre-norm ViT.
    """

    def refuse(what: str) -> UnsupportedModelError:
        return UnsupportedModelError(
            f"{source} has blocks around nn.MultiheadAttention, and {what}; give a pre-norm ViT with one patch "
            "embedding, one norm after the blocks and one linear classifier."
        )

    stem = next(match["stem"] for match in map(MHA.search, tensors) if match)
    width = next(t.shape[1] for key, t in tensors.items() if key.endswith("in_proj_weight"))
    out: Tensors = {}
    blocks: dict[int, dict[str, Tensors]] = {}
    outside: dict[str, Tensors] = {}
    for key, tensor in tensors.items():
        owner, _, leaf = key.rpartition(".")
        if match := re.match(re.escape(stem) + r"\.(\d+)\.(.*)$", owner):
            blocks.setdefault(int(match[1]), {}).setdefault(match[2], {})[leaf] = tensor
        elif tensor.ndim == 1 or (leaf in ("weight", "bias") and owner):
            outside.setdefault(owner, {})[leaf] = tensor
        elif "pos" in key and tensor.shape[-1] == width:
            out["pos_embed"] = tensor.reshape(1, -1, width)
        elif tensor.numel() == width:
            out["cls_token"] = tensor.reshape(1, 1, width)
        else:
            raise refuse(f"{key} is no known part")
    for owner, leaves in list(outside.items()):
        weight = leaves.get("weight")
        if weight is not None and "pos" in owner and weight.ndim == 2 and weight.shape[1] == width:
            out["pos_embed"] = outside.pop(owner)["weight"][None]
    norms = {owner: leaves for owner, leaves in outside.items() if leaves["weight"].ndim == 1}
    layers = {owner: leaves for owner, leaves in outside.items() if owner not in norms}
    if len(norms) != 1 or len(layers) != 2:
        raise refuse(f"outside them it has {len(norms)} norms and {len(layers)} layers ({listed(list(outside))})")
    heads = [
        owner for owner, leaves in layers.items() if leaves["weight"].ndim == 2 and leaves["weight"].shape[1] == width
    ]
    head = heads[-1] if heads else ""
    patches = next((owner for owner in layers if owner != head), "")
    if not head or layers[patches]["weight"].shape[0] != width:
        raise refuse(f"{listed(list(layers))} are not its patch embedding and classifier")
    for name, leaves in (
        ("norm", next(iter(norms.values()))),
        ("patch_embed.proj", layers[patches]),
        ("head", layers[head]),
    ):
        out |= {f"{name}.{leaf}": tensor for leaf, tensor in leaves.items()}
    if out["patch_embed.proj.weight"].ndim == 2:
        raise refuse("its patches are embedded by a linear layer, whose order of pixels no tensor tells")
    for number, parts in blocks.items():
        out |= {f"blocks.{number}.{key}": tensor for key, tensor in _multihead_block(parts, width, refuse).items()}
    return out, None


def _multihead_block(parts: dict[str, Tensors], width: int, refuse: Callable[[str], UnsupportedModelError]) -> Tensors:
    out: Tensors = {}
    norms: list[Tensors] = []
    layers: list[Tensors] = []
    for owner in sorted(parts):
        leaves = parts[owner]
        if "in_proj_weight" in leaves:
            out |= {f"attn.qkv.{leaf.removeprefix('in_proj_')}": tensor for leaf, tensor in leaves.items()}
        elif owner.endswith("out_proj"):
            out |= {f"attn.proj.{leaf}": tensor for leaf, tensor in leaves.items()}
        else:
            (norms if leaves["weight"].ndim == 1 else layers).append(leaves)
    if len(norms) != 2 or len(layers) != 2 or layers[0]["weight"].shape[1] != width:
        raise refuse(f"a block has {len(norms)} norms and {len(layers)} linear layers beside its attention")
    for name, leaves in zip(("norm1", "norm2", "mlp.fc1", "mlp.fc2"), [*norms, *layers], strict=True):
        out |= {f"{name}.{leaf}": tensor for leaf, tensor in leaves.items()}
    return out


def anchored(name: str) -> re.Pattern[str]:
    return re.compile(rf"(?:^|(?<=\.)){name}$")


PATCHES_HF = anchored(
    r"(?:(?:vit|deit|ijepa|dinov2(?:_with_registers)?)\.)?embeddings\.patch_embeddings\.projection\.weight"
)
PATCHES_VP = anchored(r"(?:to_patch_embedding\.[12]|patch_to_embedding)\.weight")
VP_READS = "its classifier is taken to read the class token where there is one"
FORMS: tuple[Form, ...] = (
    Form("timm's names", anchored(r"patch_embed1?\.proj\.weight"), NEVER, from_timm, 1e-6, DEIT_CFG, IMAGENET),
    Form(
        "the names of transformers' DeiT", PATCHES_HF, re.compile(r"(^|\.)deit\.|distillation_token$"),
        from_transformers, 1e-12, DEIT_CFG, IMAGENET,
    ),
    Form(
        "the names of transformers' DINOv2", PATCHES_HF, re.compile(r"\.layer_scale1\."), from_transformers, 1e-6,
        DEIT_CFG, IMAGENET,
    ),
    Form(
        "the names of transformers' ViT", PATCHES_HF, ALWAYS, from_transformers, 1e-12,
        VIT_CFG, HALVES,
    ),
    Form(
        "torchvision's names", anchored(r"conv_proj\.weight"), NEVER, from_torchvision, 1e-6,
        {**DEIT_CFG, "interpolation": "bilinear"}, IMAGENET,
    ),
    Form(
        "vit-pytorch's names", PATCHES_VP, re.compile(r"to_patch_embedding\.2\."), from_vit_pytorch, 1e-5, DEIT_CFG,
        IMAGENET, VP_READS, pixel_norm=True,
    ),
    Form("vit-pytorch's names", PATCHES_VP, ALWAYS, from_vit_pytorch, 1e-5, DEIT_CFG, IMAGENET, VP_READS),
    Form(
        "the arrays of Google's npz", re.compile(r"(?:^|(?<=/))embedding/kernel$"), NEVER, from_google, 1e-6,
        VIT_CFG, HALVES,
    ),
)  # fmt: skip
MULTIHEAD = Form(
    "a ViT of nn.MultiheadAttention", MHA, NEVER, from_multihead, 1e-5, DEIT_CFG, IMAGENET,
    "blocks are taken to be pre-norm with GELU, which no tensor tells",
)  # fmt: skip
