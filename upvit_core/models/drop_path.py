"""Stochastic depth (Huang et al., ECCV 2016) for an existing model, with timm's module and rule."""

from __future__ import annotations

from typing import Any

from timm.layers.drop import DropPath, calculate_drop_path_rates
from torch import nn


def set_drop_path(model: nn.Module, rate: float) -> None:
    """Give block b of n the rate b / (n - 1) · `rate`, timm's linear rule; 0 removes stochastic depth."""
    owners = []
    for module in model.modules():
        if names := [name for name, _ in module.named_children() if name.startswith("drop_path")]:
            owners.append((module, names))
    rates: Any = calculate_drop_path_rates(rate, len(owners)) if owners else []
    for (owner, names), block_rate in zip(owners, rates, strict=True):
        for name in names:
            setattr(owner, name, DropPath(block_rate) if block_rate > 0 else nn.Identity())
