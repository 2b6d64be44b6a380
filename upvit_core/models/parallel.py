"""timm's blocks of parallel attentions and parallel FFNs, as plain blocks with their heads and channels side by side.

All of them read the same stream, and what they write is added up. With norms and layer scales folded into the layers
beside them that is one attention of all heads and one FFN of all hidden channels, which computes the same. The biases
of the norms are part of those layers, so they stay as a constant when a residual channel is removed.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from timm.layers.attention import Attention
from timm.layers.mlp import Mlp
from timm.layers.norm import LayerNorm
from timm.models.vision_transformer import Block, ParallelThingsBlock
from torch import Tensor, nn

if TYPE_CHECKING:
    from upvit_core.models.build import Reader

LEAVES = ("weight", "bias")
HALVES = (("attns", "attn", "qkv", "proj", 3), ("ffns", "mlp", "fc1", "fc2", 1))
"""For attention and for FFN: the list of parallel ones, the name in a plain block, first and last layer, and the number
of equal parts in the first layer's output."""


def plain_blocks(vit: Any, read: Reader) -> Any:
    """The model with plain blocks, without weights, in place of parallel ones; a model without these as it is.

    Raises UnsupportedModelError where the parallel parts are other than an attention and an FFN of timm's.
    """
    if {type(block) for block in vit.blocks} != {ParallelThingsBlock}:
        return vit
    plain = copy.copy(vit)
    plain._modules = dict(vit._modules)
    plain.blocks = nn.Sequential(*(_plain(block, f"blocks.{b}", read) for b, block in enumerate(vit.blocks)))
    return plain


def _plain(block: Any, stem: str, read: Reader) -> Block:
    for number, (attention, ffn) in enumerate(zip(block.attns, block.ffns, strict=True)):
        read.check(f"{stem}.attns.{number}.attn", attention.attn, Attention)
        read.check(f"{stem}.ffns.{number}.mlp", ffn.mlp, Mlp)
        for part, norm in ((f"attns.{number}", attention.norm), (f"ffns.{number}", ffn.norm)):
            read.check(f"{stem}.{part}.norm", norm, nn.LayerNorm, LayerNorm)
    attn, mlp, count = block.attns[0].attn, block.ffns[0].mlp, len(block.attns)
    width, heads = attn.qkv.in_features, count * attn.num_heads
    eps = read.one(f"the norms' eps in {stem}", (each.norm.eps for each in (*block.attns, *block.ffns)))
    norm_layer: Any = partial(LayerNorm, eps=eps)
    made: Any = Block(width, heads, norm_layer=norm_layer, device="meta")
    made.attn = Attention(width, heads, attn_head_dim=attn.head_dim, qkv_bias=True, device="meta")
    made.mlp = Mlp(width, count * mlp.fc1.out_features, device="meta")
    made.mlp.act = mlp.act
    return made


def side_by_side(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of parallel attentions and FFNs joined in those of plain blocks; others as they are."""
    out = dict(tensors)
    for stem in sorted(
        {match[1] for match in (re.match(r"(blocks\.\d+\.)attns\.0\.", key) for key in tensors) if match}
    ):
        for half, (several, part, first, last, copies) in enumerate(HALVES, 1):
            read, write, number = [], [], 0
            leaves = (
                "norm.weight",
                "norm.bias",
                *(f"{part}.{layer}.{leaf}" for layer in (first, last) for leaf in LEAVES),
            )
            while all(f"{stem}{several}.{number}.{leaf}" in out for leaf in leaves):
                own = f"{stem}{several}.{number}."
                gamma, beta, weight, bias, written, shift = (out.pop(own + leaf) for leaf in leaves)
                scale = out.pop(f"{own}ls.gamma", torch.ones_like(shift))
                folded = torch.cat([weight * gamma, (bias + weight @ beta)[:, None]], 1)
                read.append(folded.unflatten(0, (copies, -1)))
                write.append(torch.cat([written, shift[:, None]], 1) * scale[:, None])
                number += 1
            if read:
                joined = torch.cat(read, 1).flatten(0, 1)
                out |= {f"{stem}norm{half}.weight": torch.ones_like(gamma), f"{stem}norm{half}.bias": 0 * beta}
                out |= {f"{stem}{part}.{first}.weight": joined[:, :-1], f"{stem}{part}.{first}.bias": joined[:, -1]}
                out[f"{stem}{part}.{last}.weight"] = torch.cat([each[:, :-1] for each in write], 1)
                out[f"{stem}{part}.{last}.bias"] = torch.stack([each[:, -1] for each in write]).sum(0)
    return out
