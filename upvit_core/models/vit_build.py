"""Between a `ModelShape` and a live timm ViT or DeiT: build one of any widths, read the shape of one.

Uneven widths are timm's own modules too: `Attention` takes its head width, `Mlp` its hidden width.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

import torch
from timm.layers.activations import GELU, GELUTanh, QuickGELU
from timm.layers.attention import Attention
from timm.layers.create_act import get_act_layer
from timm.layers.layer_scale import LayerScale
from timm.layers.mlp import Mlp
from timm.layers.norm import LayerNorm
from timm.layers.patch_embed import PatchEmbed
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import Block, VisionTransformer
from torch import nn

from upvit_core.files import Json
from upvit_core.models.build import Reader, Untyped, mlp_ratio
from upvit_core.records.shape import Activation, BlockShape, ModelShape

INIT_VALUES = 1e-5
NORMS = (nn.LayerNorm, LayerNorm)


def timm_arguments(shape: ModelShape) -> Json:
    """Arguments of timm's class for a uniform shape, in values that JSON keeps."""
    block = shape.blocks[0]
    average = not shape.head_tokens
    return {
        "img_size": list(shape.img_size),
        "patch_size": shape.patch_size[0] if len(set(shape.patch_size)) == 1 else list(shape.patch_size),
        "in_chans": shape.in_chans,
        "embed_dim": shape.embed_dim,
        "depth": shape.depth,
        "num_heads": block.num_heads,
        "mlp_ratio": mlp_ratio(block.ffn, shape.embed_dim),
        "qkv_bias": shape.qkv_bias,
        "init_values": INIT_VALUES if shape.layer_scale else None,
        "global_pool": "avg" if average else "token",
        "class_token": shape.class_token,
        "reg_tokens": shape.num_reg_tokens,
        "no_embed_class": shape.no_embed_class,
        "final_norm": shape.final_norm,
        "fc_norm": shape.fc_norm if average or shape.fc_norm else None,
        "pre_norm": shape.pre_norm,
        "act_layer": None if shape.act == "gelu" else shape.act,
    }


def build_vit(
    shape: ModelShape,
    *,
    weight_init: str = "",
    drop_path_rate: float = 0.0,
    device: torch.device | str = "cpu",
) -> nn.Module:
    """A fresh model in training mode, its weights drawn from the global generator."""
    stock = shape.is_uniform
    arguments = timm_arguments(shape) | {
        "num_classes": shape.num_classes,
        "norm_layer": partial(LayerNorm, eps=shape.norm_eps),
        "drop_path_rate": drop_path_rate,
        "weight_init": weight_init,
        "device": device,
    }
    if not stock:
        arguments |= {"num_heads": 1, "mlp_ratio": 1.0}
    model: VisionTransformer = (VisionTransformerDistilled if shape.distilled else VisionTransformer)(**arguments)
    if not stock:
        for module, block in zip(model.blocks, shape.blocks, strict=True):
            module.attn = Attention(
                shape.embed_dim,
                block.num_heads,
                attn_head_dim=block.head_dim,
                qkv_bias=shape.qkv_bias,
                device=device,
            )
            module.mlp = Mlp(shape.embed_dim, block.ffn, act_layer=get_act_layer(shape.act), device=device)
        model.init_weights()
    return model


def shape_of_vit(model: nn.Module, name: str) -> ModelShape:
    """Shape of a live timm ViT or DeiT.

    Raises UnsupportedModelError, naming the part, where the model has anything that a `ModelShape` cannot say.
    """
    vit: Untyped = model
    distilled = type(model) is VisionTransformerDistilled
    read = Reader(name)
    _check_ends(vit, distilled, read)
    layer_scale = {type(getattr(block, "ls1", None)) is LayerScale for block in vit.blocks} == {True}
    blocks = tuple(_read_block(block, f"blocks.{b}", layer_scale, read) for b, block in enumerate(vit.blocks))
    for part in ("norm", "fc_norm"):
        read.check(part, getattr(vit, part), nn.Identity, *NORMS)
    norms = [norm for block in vit.blocks for norm in (block.norm1, block.norm2)]
    norms += [norm for norm in (vit.norm_pre, vit.norm, vit.fc_norm) if not isinstance(norm, nn.Identity)]
    shape = ModelShape(
        name=name,
        embed_dim=vit.embed_dim,
        blocks=blocks,
        img_size=tuple(vit.patch_embed.img_size),
        patch_size=tuple(vit.patch_embed.patch_size),
        in_chans=vit.patch_embed.proj.in_channels,
        num_classes=vit.head.out_features,
        num_prefix_tokens=vit.num_prefix_tokens,
        head_tokens=2 if distilled else int(vit.global_pool == "token"),
        distilled=distilled,
        qkv_bias=vit.blocks[0].attn.qkv.bias is not None,
        layer_scale=layer_scale,
        no_embed_class=bool(vit.no_embed_class),
        final_norm=not (isinstance(vit.norm, nn.Identity) and isinstance(vit.fc_norm, nn.Identity)),
        class_token=vit.cls_token is not None,
        fc_norm=not isinstance(vit.fc_norm, nn.Identity),
        norm_eps=read.one_eps(norms),
        pre_norm=not isinstance(vit.norm_pre, nn.Identity),
        act=_activation(vit.blocks, read),
    )
    read.check_tensors(model, shape)
    return shape


def _activation(blocks: Iterable[Untyped], read: Reader) -> Activation:
    found: set[Activation] = set()
    for b, block in enumerate(blocks):
        act = block.mlp.act
        read.check(f"blocks.{b}.mlp.act", act, nn.GELU, GELU, GELUTanh, QuickGELU)
        tanh = type(act) is GELUTanh or getattr(act, "approximate", "none") == "tanh"
        found.add("quick_gelu" if type(act) is QuickGELU else "gelu_tanh" if tanh else "gelu")
    if len(found) > 1:
        read.refuse("the activations of the blocks", sorted(found), "one for all")
    return found.pop()


def _check_ends(vit: Untyped, distilled: bool, read: Reader) -> None:
    """Check the parts before and after the blocks."""
    read.check("patch_embed", vit.patch_embed, PatchEmbed)
    read.check("patch_embed.norm", vit.patch_embed.norm, nn.Identity)
    read.check("norm_pre", vit.norm_pre, nn.Identity, *NORMS)
    read.check("attn_pool", vit.attn_pool, type(None))
    if vit.num_classes == 0:
        read.refuse("head", "absent (0 classes)", "a model with a classifier")
    read.check("head", vit.head, nn.Linear)
    if vit.pos_embed is None:
        read.refuse("pos_embed", "absent", "a learned position embedding")
    if vit.global_pool not in ("token", "avg"):
        read.refuse("global_pool", repr(vit.global_pool), "'token' or 'avg'")
    if vit.global_pool == "avg" and vit.pool_include_prefix:
        read.refuse("pool_include_prefix", True, "an average over patches alone")
    if distilled and (vit.no_embed_class or vit.num_reg_tokens or not isinstance(vit.fc_norm, nn.Identity)):
        read.refuse("the distilled model's token layout", "unusual", "class and distillation token with one final norm")


def _read_block(block: Untyped, stem: str, layer_scale: bool, read: Reader) -> BlockShape:
    read.check(stem, block, Block)
    read.check(f"{stem}.attn", block.attn, Attention)
    read.check(f"{stem}.mlp", block.mlp, Mlp)
    for part in ("norm1", "norm2"):
        read.check(f"{stem}.{part}", getattr(block, part), *NORMS)
    for part in ("q_norm", "k_norm", "norm"):
        read.check(f"{stem}.attn.{part}", getattr(block.attn, part), nn.Identity)
    read.check(f"{stem}.attn.gate", getattr(block.attn, "gate", None), type(None))
    read.check(f"{stem}.mlp.norm", block.mlp.norm, nn.Identity)
    read.check(f"{stem}.mlp.fc1", block.mlp.fc1, nn.Linear)
    for part in ("ls1", "ls2"):
        read.check(f"{stem}.{part}", getattr(block, part), LayerScale if layer_scale else nn.Identity)
    return BlockShape(block.attn.num_heads, block.attn.attn_dim, block.mlp.fc1.out_features)
