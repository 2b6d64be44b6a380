"""Between a `ModelShape` and a live timm model: build one of any shape, read the shape of one.

Here Vision Transformers; `pvt_build` has the pyramids. Uneven widths are timm's own modules too: `Attention` takes its
head width, `Mlp` its hidden width, so every ViT is run by timm's code. What no `ModelShape` can say is refused by name
rather than dropped.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from timm.layers.activations import GELU
from timm.layers.attention import Attention
from timm.layers.layer_scale import LayerScale
from timm.layers.mlp import Mlp
from timm.layers.norm import LayerNorm
from timm.layers.patch_embed import PatchEmbed
from timm.models.deit import VisionTransformerDistilled
from timm.models.pvt_v2 import PyramidVisionTransformerV2
from timm.models.vision_transformer import Block, VisionTransformer
from torch import nn

from upvit_core.errors import UnsupportedModelError
from upvit_core.models.adapter import Adapter
from upvit_core.models.gpt2 import GPT2Adapter, build_gpt2
from upvit_core.models.layout import layout
from upvit_core.models.pvt import PVTAdapter
from upvit_core.models.pvt_build import build_pvt, shape_of_pvt
from upvit_core.models.vit import ViTAdapter
from upvit_core.records.shape import BlockShape, ModelShape

INIT_VALUES = 1e-5
NORMS = (nn.LayerNorm, LayerNorm)


def expected_tensors(shape: ModelShape) -> dict[str, tuple[int, ...]]:
    """Name and dimensions of every tensor that the library's model of this shape holds."""
    return {name: part.size for name, part in layout(shape).items()}


def build_model(
    shape: ModelShape,
    *,
    seed: int = 0,
    weight_init: str = "",
    drop_path_rate: float = 0.0,
    device: torch.device | str = "cpu",
) -> nn.Module:
    """A fresh timm model of any shape, in training mode, its weights drawn by `seed` (global RNG untouched).

    `weight_init` is timm's (`""`, `"jax"`, …), for Vision Transformers. On the device `"meta"` nothing is drawn or
    stored.
    """
    if shape.family == "pvt_v2":
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return build_pvt(shape, drop_path_rate=drop_path_rate, device=device)
    if shape.family == "gpt2":
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return build_gpt2(shape, device=device)
    stock = shape.is_uniform
    arguments: dict[str, Any] = {
        "img_size": shape.img_size,
        "patch_size": shape.patch_size,
        "in_chans": shape.in_chans,
        "num_classes": shape.num_classes,
        "embed_dim": shape.embed_dim,
        "depth": shape.depth,
        "num_heads": shape.blocks[0].num_heads if stock else 1,
        "mlp_ratio": mlp_ratio(shape.blocks[0].ffn, shape.embed_dim) if stock else 1.0,
        "qkv_bias": shape.qkv_bias,
        "init_values": INIT_VALUES if shape.layer_scale else None,
        "global_pool": "token" if shape.head_tokens else "avg",
        "class_token": shape.class_token,
        "reg_tokens": shape.num_reg_tokens,
        "no_embed_class": shape.no_embed_class,
        "final_norm": shape.final_norm,
        "fc_norm": shape.fc_norm,
        "norm_layer": partial(LayerNorm, eps=shape.norm_eps),
        "drop_path_rate": drop_path_rate,
        "weight_init": weight_init,
        "device": device,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: Any = (VisionTransformerDistilled if shape.distilled else VisionTransformer)(**arguments)
        if not stock:
            for module, block in zip(model.blocks, shape.blocks, strict=True):
                module.attn = Attention(
                    shape.embed_dim,
                    block.num_heads,
                    attn_head_dim=block.head_dim,
                    qkv_bias=shape.qkv_bias,
                    device=device,
                )
                module.mlp = Mlp(shape.embed_dim, block.ffn, device=device)
            model.init_weights()
    built: nn.Module = model
    return built


def mlp_ratio(hidden: int, width: int) -> float:
    """The ratio from which timm's `int(width * ratio)` gives exactly `hidden`."""
    ratio = hidden / width
    return ratio if int(width * ratio) == hidden else (hidden + 0.5) / width


def shape_of(model: nn.Module, name: str = "model") -> ModelShape:
    """Shape of a live timm ViT, DeiT or PVTv2.

    Raises UnsupportedModelError, naming the part, where the model has anything that a `ModelShape` cannot say.
    """
    vit: Any = model
    if type(model) is PyramidVisionTransformerV2:
        return shape_of_pvt(model, name)
    if type(model) not in (VisionTransformer, VisionTransformerDistilled):
        raise UnsupportedModelError(
            f"{name} is a {type(model).__name__}, not a plain Vision Transformer; give a ViT, DeiT or PVTv2 of timm's "
            "classes VisionTransformer, VisionTransformerDistilled or PyramidVisionTransformerV2."
        )
    distilled = type(model) is VisionTransformerDistilled

    def refuse(part: str, found: object, wanted: str) -> None:
        raise UnsupportedModelError(f"{name}: {part} is {found}, which is not understood; only {wanted} is.")

    def check(part: str, module: object, *kinds: type) -> None:
        if type(module) not in kinds:
            refuse(part, type(module).__name__, " or ".join(dict.fromkeys(kind.__name__ for kind in kinds)))

    check("patch_embed", vit.patch_embed, PatchEmbed)
    check("patch_embed.norm", vit.patch_embed.norm, nn.Identity)
    check("norm_pre", vit.norm_pre, nn.Identity)
    check("attn_pool", vit.attn_pool, type(None))
    if vit.num_classes == 0:
        refuse("head", "absent (0 classes)", "a model with a classifier")
    check("head", vit.head, nn.Linear)
    if vit.pos_embed is None:
        refuse("pos_embed", "absent", "a learned position embedding")
    if vit.global_pool not in ("token", "avg"):
        refuse("global_pool", repr(vit.global_pool), "'token' or 'avg'")
    if vit.global_pool == "avg" and vit.pool_include_prefix:
        refuse("pool_include_prefix", True, "an average over patches alone")
    if distilled and (vit.no_embed_class or vit.num_reg_tokens or not isinstance(vit.fc_norm, nn.Identity)):
        refuse("the distilled model's token layout", "unusual", "class and distillation token with one final norm")

    layer_scale = {type(ls) is LayerScale for block in vit.blocks for ls in (getattr(block, "ls1", None),)}
    blocks, epsilons = [], set()
    for index, block in enumerate(vit.blocks):
        stem = f"blocks.{index}"
        check(stem, block, Block)
        check(f"{stem}.attn", block.attn, Attention)
        check(f"{stem}.mlp", block.mlp, Mlp)
        for part in ("norm1", "norm2"):
            check(f"{stem}.{part}", getattr(block, part), *NORMS)
            epsilons.add(getattr(block, part).eps)
        for part in ("q_norm", "k_norm", "norm"):
            check(f"{stem}.attn.{part}", getattr(block.attn, part), nn.Identity)
        check(f"{stem}.attn.gate", getattr(block.attn, "gate", None), type(None))
        check(f"{stem}.mlp.norm", block.mlp.norm, nn.Identity)
        check(f"{stem}.mlp.act", block.mlp.act, nn.GELU, GELU)
        if getattr(block.mlp.act, "approximate", "none") != "none":
            refuse(f"{stem}.mlp.act", f"GELU(approximate={block.mlp.act.approximate!r})", "exact GELU")
        check(f"{stem}.mlp.fc1", block.mlp.fc1, nn.Linear)
        for part in ("ls1", "ls2"):
            check(f"{stem}.{part}", getattr(block, part), LayerScale if layer_scale == {True} else nn.Identity)
        blocks.append(BlockShape(block.attn.num_heads, block.attn.attn_dim, block.mlp.fc1.out_features))
    for part in ("norm", "fc_norm"):
        check(part, getattr(vit, part), nn.Identity, *NORMS)
        if not isinstance(getattr(vit, part), nn.Identity):
            epsilons.add(getattr(vit, part).eps)
    if len(epsilons) > 1:
        refuse("the norms' eps", sorted(epsilons), "one value for all")

    shape = ModelShape(
        name=name,
        embed_dim=vit.embed_dim,
        blocks=tuple(blocks),
        img_size=tuple(vit.patch_embed.img_size),
        patch_size=tuple(vit.patch_embed.patch_size),
        in_chans=vit.patch_embed.proj.in_channels,
        num_classes=vit.head.out_features,
        num_prefix_tokens=vit.num_prefix_tokens,
        head_tokens=2 if distilled else int(vit.global_pool == "token"),
        distilled=distilled,
        qkv_bias=vit.blocks[0].attn.qkv.bias is not None,
        layer_scale=layer_scale == {True},
        no_embed_class=bool(vit.no_embed_class),
        final_norm=not (isinstance(vit.norm, nn.Identity) and isinstance(vit.fc_norm, nn.Identity)),
        class_token=vit.cls_token is not None,
        fc_norm=not isinstance(vit.fc_norm, nn.Identity),
        norm_eps=epsilons.pop(),
    )
    expected = expected_tensors(shape)
    found = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
    for key in [*expected, *found]:
        if expected.get(key) != found.get(key):
            refuse(key, found.get(key, "absent"), str(expected.get(key, "a model without it")))
    return shape


ADAPTERS: dict[str, Callable[[nn.Module, ModelShape], Adapter]] = {
    "vit": ViTAdapter,
    "pvt_v2": PVTAdapter,
    "gpt2": GPT2Adapter,
}


def adapt(model: nn.Module, shape: ModelShape) -> Adapter:
    """The adapter of a model that `load_model` accepted."""
    if shape.family not in ADAPTERS:
        raise UnsupportedModelError(f"{shape.name} is of the family {shape.family!r}, which is not understood.")
    return ADAPTERS[shape.family](model, shape)
