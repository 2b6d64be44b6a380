"""Tiny models of several shapes, with generic weights, and images for them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache

import timm
import torch
from torch import Tensor, nn

from upvit_core.models.checkpoint import shape_of
from upvit_core.records.shape import ModelShape

VARIANTS = {
    "class token": ("deit_tiny_patch16_224", {}),
    "distilled": ("deit_tiny_distilled_patch16_224", {}),
    "3 heads, 5 blocks": ("deit_tiny_patch16_224", {"depth": 5, "embed_dim": 12, "num_heads": 3}),
    "average pool": ("vit_tiny_patch16_224", {"global_pool": "avg", "class_token": True}),
    "no qkv bias, layer scale": ("vit_tiny_patch16_224", {"qkv_bias": False, "init_values": 0.1}),
    "registers": ("vit_tiny_patch16_224", {"reg_tokens": 2}),
    "norm before the blocks": ("vit_tiny_patch16_224", {"pre_norm": True, "act_layer": "quick_gelu"}),
}
HEADLESS = {
    "features": ("vit_tiny_patch16_224", {"num_classes": 0, "init_values": 0.1, "reg_tokens": 2}),
    "features, average pool": ("vit_tiny_patch16_224", {"num_classes": 0, "global_pool": "avg", "class_token": False}),
    "features, norm before": ("vit_tiny_patch16_224", {"num_classes": 0, "pre_norm": True, "act_layer": "quick_gelu"}),
}
"""Without a classifier, in the manner of DINOv2, I-JEPA and CLIP."""
PARTS = {
    "gated FFN": ("vit_giant_patch14_dinov2", {"mlp_ratio": 4}),
    "attention pooling": ("vit_base_patch16_siglip_224", {}),
}
"""Parts that `tests/oracle/masked.py` removes channels of, and the other oracles do not know."""
ROTATED = (*(name for name, (_, overrides) in VARIANTS.items() if "pre_norm" not in overrides), *PARTS)
"""Those whose residual can be rotated."""


@cache
def tiny(variant: str = "class token", dtype: torch.dtype = torch.float64) -> tuple[nn.Module, ModelShape]:
    """A model with perturbed weights (norms and biases too) in eval mode, and its shape. Treat as read-only."""
    name, overrides = (VARIANTS | HEADLESS | PARTS)[variant]
    arguments = {
        "img_size": 16,
        "patch_size": 8,
        "embed_dim": 16,
        "depth": 3,
        "num_heads": 4,
        "num_classes": 5,
        **overrides,
    }
    generator = torch.Generator().manual_seed(7)
    with torch.random.fork_rng():
        torch.manual_seed(11)
        model = timm.create_model(name, **arguments).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return model.to(dtype), shape_of(model, variant)


def images(count: int = 6, dtype: torch.dtype = torch.float64, seed: int = 1) -> Tensor:
    return torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@torch.no_grad()
def kl_sum(teacher: nn.Module, student: nn.Module, x: Tensor) -> float:
    """KL(teacher || student) by its definition, in nats, summed over inputs (and over the tokens of a text)."""
    q, p = teacher(x).log_softmax(-1), student(x).log_softmax(-1)
    return float((q.exp() * (q - p)).sum())


@dataclass(frozen=True)
class TensorProxy:
    """A proxy set held in memory."""

    tensor: Tensor
    name: str = "noise"
    digest: str = "noise"
    seed: int = 0

    def __len__(self) -> int:
        return len(self.tensor)

    def part(self, start: int, end: int) -> TensorProxy:
        return replace(self, tensor=self.tensor[start:end], digest=f"noise[{start}:{end}]")

    def batches(self, batch_size: int, device: torch.device | str = "cpu") -> Iterator[tuple[Tensor, Tensor]]:
        for part in self.tensor.split(batch_size):
            yield part.to(device), torch.arange(len(part), device=device) % 5
