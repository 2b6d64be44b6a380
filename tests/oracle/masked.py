"""Removal of channels from stock timm models of any structure, by masks: nothing here is shared with the fast code.

A channel is removed where all that writes it and all that reads it is zero and every norm over it leaves it out: mean
and variance are those of the channels that stay.
"""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn


class KeptNorm(nn.Module):
    """A LayerNorm or RMSNorm over some of its channels; the others come out as zero."""

    def __init__(self, norm: Any, gone: Sequence[int]):
        super().__init__()
        self.norm, self.kept = norm, [c for c in range(norm.weight.numel()) if c not in set(gone)]

    def forward(self, x: Tensor) -> Tensor:
        part = x[..., self.kept]
        bias = getattr(self.norm, "bias", None)
        if bias is not None:
            part = part - part.mean(-1, keepdim=True)
        part = part / (part.square().mean(-1, keepdim=True) + self.norm.eps).sqrt() * self.norm.weight[self.kept]
        out = torch.zeros_like(x)
        out[..., self.kept] = part if bias is None else part + bias[self.kept]
        return out


def without(model: Any, gone: dict[str, Sequence[int]], head_dim: int = 0) -> Any:
    """A copy of a model with these channels masked, by key; attention counts whole heads where `head_dim` is given."""
    masked = copy.deepcopy(model)
    for key, channels in gone.items():
        component, _, place = key.partition(".")
        if component == "residual":
            _residual(masked, channels)
        elif component == "ffn":
            mlp = masked.blocks[int(place)].mlp
            _zero(mlp.fc2.weight, 1, channels)
            _keep(mlp, "norm", channels)
        else:
            attn = masked.blocks[int(place)].attn
            wide = [head * head_dim + c for head in channels for c in range(head_dim)] if head_dim else channels
            _zero(attn.proj.weight, 1, wide)
            _keep(attn, "norm", wide)
            if not head_dim:
                width = attn.proj.in_features
                _zero(attn.qkv.weight, 0, [part * width + c for part in range(3) for c in wide])
                if attn.qkv.bias is not None:
                    _zero(attn.qkv.bias, 0, [part * width + c for part in range(3) for c in wide])
    return masked


def _residual(model: Any, channels: Sequence[int]) -> None:
    if not any(hasattr(getattr(model, name), "weight") for name in ("norm", "fc_norm")):
        model.norm = Without(channels)
    _keep(model.patch_embed, "norm", channels)
    for owner, names in [(model, ("norm_pre", "norm", "fc_norm"))] + [(b, ("norm1", "norm2")) for b in model.blocks]:
        for name in names:
            _keep(owner, name, channels)


class Without(nn.Module):
    """Some channels as zeros, where a head reads the residual without a norm."""

    def __init__(self, gone: Sequence[int]):
        super().__init__()
        self.gone = list(gone)

    def forward(self, x: Tensor) -> Tensor:
        return x.index_fill(-1, torch.tensor(self.gone), 0.0)


def _keep(owner: Any, name: str, channels: Sequence[int]) -> None:
    norm = getattr(owner, name, None)
    if norm is not None and hasattr(norm, "weight"):
        setattr(owner, name, KeptNorm(norm, channels))


@torch.no_grad()
def _zero(tensor: Tensor, axis: int, channels: Sequence[int]) -> None:
    tensor.index_fill_(axis, torch.tensor(list(channels)), 0.0)
