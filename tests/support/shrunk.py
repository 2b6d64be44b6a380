"""timm's registered Vision Transformers, each in its own structure at a few channels and two blocks."""

from __future__ import annotations

from functools import cache
from typing import Any

import timm
import torch
from torch import nn

from upvit_core.models.config import TIMM_MODULES

SMALL: dict[str, Any] = {"img_size": 16, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 4}
PYRAMID: dict[str, Any] = {"depths": (1, 1, 1, 1), "embed_dims": (8, 16, 20, 32), "mlp_ratios": (2, 2, 2, 2)}
NAMES = tuple(name for module in TIMM_MODULES for name in timm.list_models(module=module))


def shrunk(name: str, **overrides: Any) -> nn.Module:
    """A model of timm's with random weights, every one of them away from its neutral value, in eval mode."""
    small = PYRAMID if name.startswith("pvt") else SMALL | ({"num_kv_heads": 2} if "sapiens2" in name else {})
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = timm.create_model(name, **(small | overrides))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.2 * torch.randn(parameter.shape)
    return model.eval()


@cache
def structure_of(name: str) -> str:
    """The same for models of the same parts, whatever their widths: classes and names of modules of a shrunken one."""
    model = shrunk(name)
    parts = [f"{key} {type(module).__name__}" for key, module in model.named_modules()]
    tensors = [f"{key} {tensor.ndim}" for key, tensor in model.state_dict().items()]
    ends = [model.global_pool, getattr(model, "num_prefix_tokens", 0), model.num_classes > 0]
    return str((parts, tensors, ends))
