"""Parameters and multiply-accumulates in closed form, from the shape alone. Imports no torch."""

from __future__ import annotations

from upvit_core.models.layout import count_in_layout
from upvit_core.records.shape import ModelShape


def count_parameters(shape: ModelShape) -> int:
    """Number of weights of the model, as `sum(p.numel())` counts them."""
    if shape.family != "vit":
        return count_in_layout(shape)
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
    if shape.family == "gpt2":  # embeddings are looked up, and every token has its logits
        blocks = sum(sum(half_block_macs(shape, b)) for b in range(shape.depth))
        return blocks + shape.num_tokens * shape.embed_dim * shape.num_classes
    if shape.stages:
        embedding, inputs = 0, shape.in_chans
        for number, stage in enumerate(shape.stages):
            height, width = shape.map_size(number)
            embedding += height * width * inputs * stage.kernel**2 * stage.embed_dim
            inputs = stage.embed_dim
    else:
        patch = shape.in_chans * shape.patch_size[0] * shape.patch_size[1]
        embedding = shape.num_patches * shape.embed_dim * patch
    blocks = sum(sum(half_block_macs(shape, b)) for b in range(shape.depth))
    return embedding + blocks + shape.embed_dim * shape.num_classes * (1 + shape.distilled)


def half_block_macs(shape: ModelShape, number: int) -> tuple[int, int]:
    """Multiply-accumulates of one block's attention and of its FFN, for one image."""
    block, D = shape.blocks[number], shape.embed_dims[shape.stage_of(number)]
    N, keys, A, H = shape.tokens_at(number), shape.keys_at(number), block.attention, block.ffn
    attention = 2 * N * D * A + 2 * keys * (block.reduction or D) * A + 2 * N * keys * A
    if block.reduction:
        ratio = shape.stages[shape.stage_of(number)].reduction_ratio
        attention += keys * block.reduction * D * ratio**2
    ffn = 2 * N * D * H
    if shape.family == "pvt_v2":
        ffn += 9 * N * H  # the depthwise convolution
    return attention, ffn
