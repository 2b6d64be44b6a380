"""A tiny PVTv2 with generic weights, and images for it."""

from functools import cache
from typing import Any

import torch
from timm.models.pvt_v2 import PyramidVisionTransformerV2
from torch import Tensor, nn

from upvit_core.models.checkpoint import shape_of
from upvit_core.records.shape import ModelShape

HEADS = [1, 2, 1, 2]
SIZES: dict[str, Any] = {
    "depths": (1, 2, 1, 1), "embed_dims": (4, 6, 7, 8), "num_heads": tuple(HEADS), "sr_ratios": (8, 4, 2, 1),
    "mlp_ratios": (2, 2, 1, 1), "num_classes": 5,
}  # fmt: skip


@cache
def tiny_pvt(dtype: torch.dtype = torch.float64, **changes: Any) -> tuple[nn.Module, ModelShape]:
    """A model of three channels and 64 by 64 pixels with perturbed weights, in eval mode. Treat as read-only."""
    generator = torch.Generator().manual_seed(7)
    with torch.random.fork_rng():
        torch.manual_seed(11)
        model = PyramidVisionTransformerV2(**{**SIZES, **changes}).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    model.pretrained_cfg = {"input_size": (3, 64, 64)}
    return model.to(dtype), shape_of(model, "tiny pvt")


def images(count: int = 4, dtype: torch.dtype = torch.float64, seed: int = 1) -> Tensor:
    return torch.randn(count, 3, 64, 64, generator=torch.Generator().manual_seed(seed), dtype=dtype)
