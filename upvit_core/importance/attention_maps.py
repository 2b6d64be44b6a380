"""Attention maps of one head with and without one of its channels, for architectures whose adapter has them."""

import torch
from torch import Tensor

from upvit_core.importance.criterion import frozen
from upvit_core.models.adapter import Adapter


def attention_maps(adapter: Adapter, images: Tensor, block: int, channel: int) -> tuple[Tensor, Tensor] | None:
    """Attention of the channel's head to the patches, with and without the channel: (B, rows, columns) each.

    The class token's own where there is one, else the mean over all tokens; each map sums to the share of attention
    that goes to patches. None for architectures without them, or that attend to fewer tokens than patches.
    """
    attention_without = getattr(adapter, "attention_without", None)
    shape = adapter.shape
    if attention_without is None:
        return None
    device = next(adapter.model.parameters()).device
    with frozen(adapter.model), torch.inference_mode():
        x = adapter.embed(images.to(device))
        for b in range(block):
            x = adapter.trace(b, x).output
        both = attention_without(block, adapter.trace(block, x), channel)
    rows, columns = (size // patch for size, patch in zip(shape.img_size, shape.patch_size, strict=True))
    maps = []
    for weights in both:  # (B, T, N)
        seen = weights[:, 0] if shape.class_token else weights.mean(1)
        patches = seen[:, shape.num_prefix_tokens :]
        if patches.shape[1] != rows * columns:
            return None
        maps.append(patches.unflatten(1, (rows, columns)).cpu())
    return maps[0], maps[1]
