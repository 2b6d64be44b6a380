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
    """A LayerNorm or RMSNorm over some of its channels; the others come out as zero, or as their `constant`."""

    def __init__(self, norm: Any, gone: Sequence[int], constant: bool = False):
        super().__init__()
        self.constant = constant
        self.norm, self.kept = norm, [c for c in range(norm.weight.numel()) if c not in set(gone)]

    def forward(self, x: Tensor) -> Tensor:
        part = x[..., self.kept]
        bias = getattr(self.norm, "bias", None)
        if bias is not None:
            part = part - part.mean(-1, keepdim=True)
        part = part / (part.square().mean(-1, keepdim=True) + self.norm.eps).sqrt() * self.norm.weight[self.kept]
        out = self.norm.bias.expand(x.shape).clone() if self.constant else torch.zeros_like(x)
        out[..., self.kept] = part if bias is None else part + bias[self.kept]
        return out


def without(model: Any, gone: dict[str, Sequence[int]], head_dim: int = 0) -> Any:
    """A copy of a model with these channels masked, by key; attention counts whole heads where `head_dim` is given."""
    masked = copy.deepcopy(model)
    for key, channels in gone.items():
        component, _, place = key.partition(".")
        if component == "residual":
            _residual(masked, channels)
            continue
        wide = list(channels)
        if head_dim and component == "attention":
            wide = [head * head_dim + c for head in channels for c in range(head_dim)]
        for part in parts(masked.blocks[int(place)], component):
            last = part.fc2 if component == "ffn" else part.proj
            width = last.in_features
            own, wide = [c for c in wide if c < width], [c - width for c in wide if c >= width]
            _zero(last.weight, 1, own)
            _keep(part, "norm", own)
            if component == "attention" and not head_dim:
                for tensor in filter(lambda tensor: tensor is not None, (part.qkv.weight, part.qkv.bias)):
                    _zero(tensor, 0, [copy * width + c for copy in range(3) for c in own])
    return masked


def parts(block: Any, component: str) -> list[Any]:
    """The attentions or FFNs of a block: one, or several in parallel, whose channels lie side by side."""
    several, name = {"attention": ("attns", "attn"), "ffn": ("ffns", "mlp")}[component]
    return [getattr(each, name) for each in getattr(block, several, [block])]


def _residual(model: Any, channels: Sequence[int]) -> None:
    if not any(hasattr(getattr(model, name), "weight") for name in ("norm", "fc_norm")):
        model.norm = Without(channels)
    _keep(model.patch_embed, "norm", channels)
    for branch in (part for b in model.blocks for part in (*getattr(b, "attns", ()), *getattr(b, "ffns", ()))):
        # our plain block keeps the norm's bias in the layer after it
        branch.norm = KeptNorm(branch.norm, channels, constant=True)
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
    tensor.index_fill_(axis, torch.tensor(list(channels), dtype=torch.long), 0.0)
