"""timm's FFNs, norms and attention pooling, built and read: the parts in which Vision Transformers differ."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

import torch
from timm.layers.activations import GELU, GELUTanh, QuickGELU
from timm.layers.attention_pool import AttentionPoolLatent
from timm.layers.create_act import get_act_layer
from timm.layers.mlp import GluMlp, Mlp, SwiGLU
from timm.layers.norm import LayerNorm, RmsNorm
from torch import Tensor, nn
from torch.nn import functional as F

from upvit_core.models.build import Reader, Untyped
from upvit_core.records.shape import Activation, ModelShape
from upvit_core.records.structure import Gate

FFNS: dict[Gate, type[nn.Module]] = {"": Mlp, "packed": GluMlp, "split": SwiGLU}
NORMS = (nn.LayerNorm, LayerNorm, RmsNorm)
ACTIVATIONS: dict[type[nn.Module], Activation] = {
    nn.GELU: "gelu", GELU: "gelu", GELUTanh: "gelu_tanh", QuickGELU: "quick_gelu", nn.SiLU: "silu"
}  # fmt: skip


class NormedPixels(nn.Conv2d):
    """Patch embedding that first normalises the pixels of every patch over positions and colours.

    A weight and a bias of that norm lie in those of the convolution.
    """

    eps = 1e-5

    def forward(self, input: Tensor) -> Tensor:
        """(B, C, H, W) to (B, D, H/p, W/p)."""
        height, width = self.kernel_size
        patches = input.unflatten(3, (-1, width)).unflatten(2, (-1, height))
        var, mean = torch.var_mean(patches, (1, 3, 5), correction=0, keepdim=True)
        return super().forward(((patches - mean) * torch.rsqrt(var + self.eps)).flatten(4).flatten(2, 3))


def norm_layer(shape: ModelShape) -> Untyped:
    """The `norm_layer` argument of timm's classes."""
    return partial(RmsNorm if shape.structure.rms else LayerNorm, eps=shape.norm_eps)


def ffn_layer(gate: Gate) -> Callable[..., nn.Module]:
    """The `mlp_layer` argument of timm's blocks; in gated FFNs the gate comes first."""
    return partial(GluMlp, gate_last=False) if gate == "packed" else FFNS[gate]


def build_ffn(shape: ModelShape, hidden: int, device: torch.device | str) -> nn.Module:
    own = shape.structure
    return ffn_layer(own.gate)(
        shape.embed_dim,
        2 * hidden if own.gate == "packed" else hidden,
        act_layer=get_act_layer(shape.act),
        norm_layer=norm_layer(shape) if own.ffn_norm else None,
        bias=own.biases,
        device=device,
    )


def read_ffn(mlp: Untyped, stem: str, read: Reader) -> tuple[Gate, int]:
    """The gate of an FFN and its number of hidden channels. Raises UnsupportedModelError for other modules."""
    read.check(stem, mlp, *FFNS.values())
    read.check(f"{stem}.norm", mlp.norm, nn.Identity, *NORMS)
    gate = next(gate for gate, kind in FFNS.items() if type(mlp) is kind)
    if gate == "packed" and mlp.gate_last:
        read.refuse(f"{stem}.gate_last", True, "a gate that comes first")
    return gate, mlp.fc2.in_features


def read_activation(blocks: Iterable[Untyped], read: Reader) -> Activation:
    found: set[Activation] = set()
    for b, block in enumerate(blocks):
        act = block.mlp.act
        read.check(f"blocks.{b}.mlp.act", act, *ACTIVATIONS)
        found.add("gelu_tanh" if getattr(act, "approximate", "none") == "tanh" else ACTIVATIONS[type(act)])
    return read.one("the activations of the blocks", found)


class ThinPool(AttentionPoolLatent):
    """Attention pooling whose input has fewer channels than its own width, which timm's cannot have."""

    def __init__(self, inputs: int, width: int, **arguments: Untyped):
        super().__init__(width, **arguments)
        self.kv = nn.Linear(inputs, 2 * width, device=arguments.get("device"))

    def forward(self, x: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        """(B, N, inputs) to (B, width)."""
        q = self.q(self.latent.expand(x.shape[0], -1, -1)).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        k, v = self.kv(x).unflatten(-1, (2, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        pooled = self.proj(F.scaled_dot_product_attention(q, k, v, attn_mask).transpose(1, 2).flatten(2))
        return (pooled + self.mlp(self.norm(pooled)))[:, 0]


def build_pool(shape: ModelShape, device: torch.device | str) -> nn.Module | None:
    """timm's attention pooling if its input is as wide as itself, else `ThinPool`; None without pooling."""
    if not shape.structure.pool:
        return None
    width, heads, hidden = shape.structure.pool
    made: Callable[..., nn.Module] = AttentionPoolLatent
    if width != shape.embed_dim:
        made = partial(ThinPool, shape.embed_dim)
    return made(
        width,
        num_heads=heads,
        mlp_ratio=(hidden + 0.5) / width,
        norm_layer=norm_layer(shape),
        act_layer=get_act_layer(shape.act),
        device=device,
    )


def read_pool(pool: Untyped, read: Reader) -> tuple[int, ...]:
    """(width, heads, hidden channels); () without pooling. Raises UnsupportedModelError for unusual ones."""
    read.check("attn_pool", pool, type(None), AttentionPoolLatent, ThinPool)
    if pool is None:
        return ()
    for part in ("q_norm", "k_norm"):
        read.check(f"attn_pool.{part}", getattr(pool, part), nn.Identity)
    if pool.latent_len != 1 or pool.pool != "token" or pool.pos_embed is not None or pool.mlp is None:
        read.refuse("attn_pool", "unusual", "one latent query without position embedding, followed by an FFN")
    return pool.latent_dim, pool.num_heads, pool.mlp.fc1.out_features
