"""Between a `ModelShape` and a live timm ViT or DeiT: build one of any widths, read the shape of one.

Uneven widths are timm's own modules too: `Attention` takes its head width, `Mlp` its hidden width.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from timm.layers.attention import Attention
from timm.layers.layer_scale import LayerScale
from timm.layers.patch_embed import PatchEmbed
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import Block, VisionTransformer
from torch import nn

from upvit_core.files import Json
from upvit_core.models.build import Reader, Untyped, mlp_ratio
from upvit_core.models.parallel import plain_blocks
from upvit_core.models.parts import (
    NORMS,
    NormedPixels,
    build_ffn,
    build_pool,
    ffn_layer,
    norm_layer,
    read_activation,
    read_ffn,
    read_pool,
)
from upvit_core.records.shape import BlockShape, ModelShape
from upvit_core.records.structure import PLAIN, Structure

INIT_VALUES = 1e-5
PROJECTIONS = (512, 640, 768, 896, 1024, 1280)
"""Widths of the space that CLIP's images and texts share, in published models."""


def timm_arguments(shape: ModelShape) -> Json:
    """Arguments of timm's class for a uniform shape, in values that JSON keeps."""
    block, own = shape.blocks[0], shape.structure
    average = not shape.head_tokens
    hidden = 2 * block.ffn if own.gate == "packed" else block.ffn
    arguments = {
        "img_size": list(shape.img_size),
        "patch_size": shape.patch_size[0] if len(set(shape.patch_size)) == 1 else list(shape.patch_size),
        "in_chans": shape.in_chans,
        "embed_dim": shape.embed_dim,
        "depth": shape.depth,
        "num_heads": shape.heads_in(block),
        "mlp_ratio": mlp_ratio(hidden, shape.embed_dim),
        "qkv_bias": shape.qkv_bias,
        "init_values": INIT_VALUES if shape.layer_scale else None,
        "global_pool": "map" if own.pool else "avg" if average else "token",
        "class_token": shape.class_token,
        "reg_tokens": shape.num_reg_tokens,
        "no_embed_class": shape.no_embed_class,
        "final_norm": shape.final_norm,
        "fc_norm": shape.fc_norm if average or shape.fc_norm else None,
        "pre_norm": shape.pre_norm,
        "act_layer": None if shape.act == "gelu" else shape.act,
    }
    flags = {
        "qk_norm": own.qk_norm,
        "scale_attn_norm": own.attention_norm,
        "scale_mlp_norm": own.ffn_norm,
        "pool_include_prefix": own.pool_prefix,
    }
    return (
        arguments
        | {name: True for name, given in flags.items() if given}
        | ({} if own.biases else {"proj_bias": False})
    )


def build_vit(
    shape: ModelShape,
    *,
    weight_init: str = "",
    drop_path_rate: float = 0.0,
    device: torch.device | str = "cpu",
) -> nn.Module:
    """A fresh model in training mode, its weights drawn from the global generator."""
    stock, own = shape.is_uniform, shape.structure
    arguments = timm_arguments(shape) | {
        "num_classes": shape.num_classes,
        "norm_layer": norm_layer(shape),
        "mlp_layer": ffn_layer(own.gate),
        "embed_norm_layer": norm_layer(shape) if own.patch_norm else None,
        "drop_path_rate": drop_path_rate,
        "weight_init": weight_init,
        "device": device,
    }
    if not stock:
        arguments |= {"num_heads": 1, "mlp_ratio": 2.0}
    model: Untyped = (VisionTransformerDistilled if shape.distilled else VisionTransformer)(**arguments)
    if not stock:
        for module, block in zip(model.blocks, shape.blocks, strict=True):
            module.attn = Attention(
                shape.embed_dim,
                shape.heads_in(block),
                attn_head_dim=own.head_dim or block.head_dim,
                qkv_bias=shape.qkv_bias,
                qk_norm=own.qk_norm,
                scale_norm=own.attention_norm,
                proj_bias=own.biases,
                norm_layer=norm_layer(shape),
                device=device,
            )
            module.mlp = build_ffn(shape, block.ffn, device)
        if own.pool:
            model.attn_pool = build_pool(shape, device)
            model.head = nn.Linear(own.pool[0], shape.num_classes, device=device) if shape.num_classes else model.head
        if own.pixel_norm:
            model.patch_embed.proj = _normed(model.patch_embed.proj, shape)
        model.init_weights()
    built: nn.Module = model
    return built


def _normed(proj: nn.Conv2d, shape: ModelShape) -> NormedPixels:
    made = NormedPixels(
        proj.in_channels, proj.out_channels, shape.patch_size, shape.patch_size, device=proj.weight.device
    )
    made.eps = shape.norm_eps
    return made


def plain_facts(vit: Untyped, name: str) -> dict[str, Untyped]:
    """Fields of a ModelShape that all of timm's ViTs hold under the same names."""
    return {
        "name": name,
        "embed_dim": vit.embed_dim,
        "img_size": tuple(vit.patch_embed.img_size),
        "patch_size": tuple(vit.patch_embed.patch_size),
        "in_chans": vit.patch_embed.proj.in_channels,
        "num_classes": vit.num_classes,
        "num_prefix_tokens": vit.num_prefix_tokens,
    }


def shape_of_vit(model: nn.Module, name: str) -> ModelShape:
    """Shape of a live timm ViT or DeiT.

    Raises UnsupportedModelError, naming the part, where the model has anything that a `ModelShape` cannot say.
    """
    read = Reader(name)
    vit: Untyped = plain_blocks(model, read)
    distilled = type(model) is VisionTransformerDistilled
    _check_ends(vit, distilled, read)
    layer_scale = {type(getattr(block, "ls1", None)) is LayerScale for block in vit.blocks} == {True}
    for b, block in enumerate(vit.blocks):
        _check_block(block, f"blocks.{b}", layer_scale, read)
    blocks, structure = read_blocks(vit, read)
    shape = ModelShape(
        **plain_facts(vit, name),
        blocks=blocks,
        head_tokens=2 if distilled else int(vit.global_pool == "token"),
        distilled=distilled,
        qkv_bias=vit.blocks[0].attn.qkv.bias is not None,
        layer_scale=layer_scale,
        no_embed_class=bool(vit.no_embed_class),
        final_norm=not (isinstance(vit.norm, nn.Identity) and isinstance(vit.fc_norm, nn.Identity)),
        class_token=vit.cls_token is not None,
        fc_norm=not isinstance(vit.fc_norm, nn.Identity),
        norm_eps=read.one("the norms' eps", (norm.eps for norm in norms_of(vit))),
        pre_norm=not isinstance(vit.norm_pre, nn.Identity),
        act=read_activation(vit.blocks, read),
        features=not vit.num_classes or projects(vit),
        structure=structure,
    )
    read.check_tensors(model, shape)
    return shape


def read_blocks(vit: Untyped, read: Reader, **more: Untyped) -> tuple[tuple[BlockShape, ...], Structure]:
    """Widths of all blocks, and all parts beyond a plain ViT's; `more` are fields of `Structure` that the caller read.

    Whole heads are cut if there are positions or norms inside attention, which would change with single channels.
    Raises UnsupportedModelError where blocks differ in their parts.
    """
    inner = nn.Identity, type(None)
    ffns = [read_ffn(block.mlp, f"blocks.{b}.mlp", read) for b, block in enumerate(vit.blocks)]
    attention = [block.attn for block in vit.blocks]
    first, mlp = attention[0], vit.blocks[0].mlp
    found = Structure(
        rms=read.one("the norms", (not hasattr(norm, "bias") for norm in norms_of(vit))),
        gate=read.one("the FFNs", (gate for gate, _ in ffns)),
        biases=mlp.fc2.bias is not None,
        attention_norm=not isinstance(getattr(first, "norm", None), inner),
        ffn_norm=not isinstance(mlp.norm, inner),
        qk_norm=not isinstance(getattr(first, "q_norm", None), inner),
        pixel_norm=isinstance(vit.patch_embed.proj, NormedPixels),
        patch_norm=not isinstance(vit.patch_embed.norm, inner),
        positions=vit.pos_embed is not None,
        pool=read_pool(getattr(vit, "attn_pool", None), read),
        pool_prefix=getattr(vit, "attn_pool", None) is not None and getattr(vit, "pool_include_prefix", True),
        **more,
    )
    channels = [attn.proj.in_features for attn in attention]
    if found.attention_norm or found.qk_norm or found.rope or found.relative:
        heads = {count // attn.num_heads for count, attn in zip(channels, attention, strict=True)}
        found = replace(found, head_dim=read.one("the widths of heads", heads))
    if found != PLAIN or not isinstance(vit, VisionTransformer):
        found = replace(found, timm=str((getattr(vit, "pretrained_cfg", None) or {}).get("architecture", "")))
    blocks = tuple(
        BlockShape(1, attn.num_heads, hidden) if found.head_dim else BlockShape(attn.num_heads, count, hidden)
        for attn, count, (_, hidden) in zip(attention, channels, ffns, strict=True)
    )
    return blocks, found


def norms_of(vit: Untyped) -> list[Untyped]:
    """All norms of the model, inside blocks too."""
    norms = [norm for block in vit.blocks for norm in (block.norm1, block.norm2)]
    for block in vit.blocks:
        norms += [getattr(block.attn, part, None) for part in ("q_norm", "k_norm", "norm")] + [block.mlp.norm]
    norms += [getattr(vit, part, None) for part in ("norm_pre", "norm", "fc_norm")] + [vit.patch_embed.norm]
    return [norm for norm in norms if isinstance(norm, NORMS)]


def projects(vit: Untyped) -> bool:
    """True of the towers of CLIP and PE as timm names them, whose `head` projects to the space shared with texts."""
    cfg = getattr(vit, "pretrained_cfg", None) or {}
    name = str(cfg.get("architecture", ""))
    tower = ("clip" in name or "pe_core" in name) and "_ft_" not in str(cfg.get("tag", ""))
    return tower and vit.num_classes in PROJECTIONS


def _check_ends(vit: Untyped, distilled: bool, read: Reader) -> None:
    """Check the parts before and after the blocks."""
    read.check("patch_embed", vit.patch_embed, PatchEmbed)
    for part in ("norm_pre", "norm", "fc_norm"):
        read.check(part, getattr(vit, part), nn.Identity, *NORMS)
    read.check("patch_embed.norm", vit.patch_embed.norm, nn.Identity, *NORMS)
    read.check("head", vit.head, nn.Linear if vit.num_classes else nn.Identity)
    if distilled and not vit.num_classes:
        read.refuse("the distilled model's heads", "absent (0 classes)", "one with both")
    if vit.pos_embed is None:
        read.refuse("pos_embed", "absent", "a learned position embedding")
    if vit.global_pool not in ("token", "avg", "map"):
        read.refuse("global_pool", repr(vit.global_pool), "'token', 'avg' or 'map'")
    if vit.global_pool == "avg" and vit.pool_include_prefix:
        read.refuse("pool_include_prefix", True, "an average over patches alone")
    if vit.global_pool == "map" and not isinstance(vit.fc_norm, nn.Identity):
        read.refuse("fc_norm", "a norm after attention pooling", "one before it")
    if distilled and (vit.no_embed_class or vit.num_reg_tokens or not isinstance(vit.fc_norm, nn.Identity)):
        read.refuse("the distilled model's token layout", "unusual", "class and distillation token with one final norm")


def _check_block(block: Untyped, stem: str, layer_scale: bool, read: Reader) -> None:
    read.check(stem, block, Block)
    read.check(f"{stem}.attn", block.attn, Attention)
    for part in ("norm1", "norm2"):
        read.check(f"{stem}.{part}", getattr(block, part), *NORMS)
    for part in ("q_norm", "k_norm", "norm"):
        read.check(f"{stem}.attn.{part}", getattr(block.attn, part), nn.Identity, *NORMS)
    read.check(f"{stem}.attn.gate", getattr(block.attn, "gate", None), type(None))
    for part in ("ls1", "ls2"):
        read.check(f"{stem}.{part}", getattr(block, part), LayerScale if layer_scale else nn.Identity)
