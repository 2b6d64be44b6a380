"""Parameters and multiply-accumulates in closed form, from the shape alone. Imports no torch."""

from upvit_core.models.layout import count_in_layout
from upvit_core.records.family import load
from upvit_core.records.shape import ModelShape
from upvit_core.records.structure import PLAIN


def count_parameters(shape: ModelShape) -> int:
    """Number of weights of the model, as `sum(p.numel())` counts them."""
    count: int = load(shape.architecture.parameters)(shape)
    return count


def vit_parameters(shape: ModelShape) -> int:
    """`count_in_layout` of a ViT; of a plain one in closed form, since planning calls it often."""
    if shape.structure != PLAIN:
        return count_in_layout(shape)
    D, classes = shape.embed_dim, shape.num_classes
    patch = shape.in_chans * shape.patch_size[0] * shape.patch_size[1]
    positions = shape.num_patches + (0 if shape.no_embed_class else shape.num_prefix_tokens)
    total = D * patch + D + D * shape.pre_norm + D * shape.num_prefix_tokens + D * positions
    for block in shape.blocks:
        A, H = block.attention, block.ffn
        total += 3 * A * D + 3 * A * shape.qkv_bias + A * D + D + 2 * D * H + H + D + 4 * D
        total += 2 * D * shape.layer_scale
    total += 2 * D * shape.final_norm
    return total + (D * classes + classes) * (1 + shape.distilled)


def count_macs(shape: ModelShape) -> int:
    """Multiply-accumulates of one image's forward pass; QKᵀ and AV included, softmax and normalisation not."""
    ends: int = load(shape.architecture.end_macs)(shape)
    return ends + sum(sum(half_block_macs(shape, b)) for b in range(shape.depth))


def half_block_macs(shape: ModelShape, number: int) -> tuple[int, int]:
    """Multiply-accumulates of one block's attention and of its FFN, for one image."""
    both: tuple[int, int] = load(shape.architecture.block_macs)(shape, number)
    return both


def vit_ends(shape: ModelShape) -> int:
    """MACs of the patch embedding, of attention pooling if there is any, and of the classifier."""
    patch = shape.in_chans * shape.patch_size[0] * shape.patch_size[1]
    patches, D, own = shape.num_patches, shape.embed_dim, shape.structure
    if not own.pool:
        return D * (patches * patch + shape.num_classes * (1 + shape.distilled))
    width, _, hidden = own.pool
    tokens = shape.num_tokens if own.pool_prefix else patches
    pooling = tokens * width * (2 * D + 2) + 2 * width * (width + hidden)
    return D * patches * patch + pooling + width * shape.num_classes


def pvt_ends(shape: ModelShape) -> int:
    """The patch embeddings of all stages, and the head."""
    total, inputs = shape.embed_dim * shape.num_classes, shape.in_chans
    for number, stage in enumerate(shape.stages):
        height, width = shape.map_size(number)
        total += height * width * inputs * stage.kernel**2 * stage.embed_dim
        inputs = stage.embed_dim
    return total


def gpt2_ends(shape: ModelShape) -> int:
    """The logits of every token; embeddings are looked up."""
    return shape.num_tokens * shape.embed_dim * shape.num_classes


def plain_block(shape: ModelShape, number: int) -> tuple[int, int]:
    block, D, N = shape.blocks[number], shape.embed_dim, shape.num_tokens
    ffn = (1 + shape.structure.first_layers) * N * D * block.ffn
    return N * shape.channels_in(block) * (4 * D + 2 * N), ffn


def pvt_block(shape: ModelShape, number: int) -> tuple[int, int]:
    """With the spatial reduction of keys and values, and the depthwise convolution of the FFN."""
    block, D = shape.blocks[number], shape.embed_dims[shape.stage_of(number)]
    N, keys, A, H = shape.tokens_at(number), shape.keys_at(number), block.attention, block.ffn
    attention = 2 * N * D * A + 2 * keys * (block.reduction or D) * A + 2 * N * keys * A
    if block.reduction:
        ratio = shape.stages[shape.stage_of(number)].reduction_ratio
        attention += keys * block.reduction * D * (ratio or 1) ** 2
    return attention, 2 * N * D * H + 9 * N * H
