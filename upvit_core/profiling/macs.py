"""Parameters and multiply-accumulates in closed form, from the shape alone. Imports no torch."""

from __future__ import annotations

from upvit_core.models.shape import ModelShape


def count_parameters(shape: ModelShape) -> int:
    """Number of weights of the model, as `sum(p.numel())` counts them."""
    D, classes = shape.embed_dim, shape.num_classes
    patch = shape.in_chans * shape.patch_size[0] * shape.patch_size[1]
    positions = shape.num_patches + (0 if shape.no_embed_class else shape.num_prefix_tokens)
    total = D * patch + D + D * shape.num_prefix_tokens + D * positions
    for block in shape.blocks:
        A, H = block.attention, block.ffn
        total += 3 * A * D + 3 * A * shape.qkv_bias + A * D + D + 2 * D * H + H + D + 4 * D
        total += 2 * D * shape.layer_scale
    total += 2 * D * shape.final_norm
    return total + (D * classes + classes) * (1 + shape.distilled)


def count_macs(shape: ModelShape) -> int:
    """Multiply-accumulates of one image's forward pass; QKᵀ and AV included, softmax and normalisation not."""
    N, D = shape.num_tokens, shape.embed_dim
    patch = shape.in_chans * shape.patch_size[0] * shape.patch_size[1]
    total = shape.num_patches * D * patch
    for block in shape.blocks:
        total += 4 * N * D * block.attention + 2 * N * D * block.ffn + 2 * N * N * block.attention
    return total + D * shape.num_classes * (1 + shape.distilled)
