"""Memory of a forward pass in inference, and of a training step: weights and what activations hold. Imports no torch.

Follows timm's block in eager mode, counting what Python still refers to while an operation runs:

- proj: the block's input x, norm1(x), qkv, attention's output and proj's own: 3·D + 4·A a token;
- GELU: the block's input, x after attention, norm2(x), fc1's output and GELU's own: 3·D + 2·H a token; fc2: 4·D + H;
- from the second block on, D more: the embedding, to which the forward pass still refers;
- the embedding itself: the convolution's output, its copy with the class token, and the sum with the positions.

A GPT-2 of `transformers` likewise, its GELU written out of four results as wide as the FFN:

- GELU: the embedding, the block's input, attention's output, the stream after it and its norm: 5·D + 4·H a token; the
  sum at the block's end 7·D; proj 4·D + 4·A; the output layer: the stream and a logit a word, D + vocabulary.

Training keeps for the backward pass, in every block: norm1's input and output, qkv, attention's output, norm2's input
and output, fc1's output and GELU's: 4·D + 4·A + 2·H a token; then the last norm's input and output. Under autocast to
two bytes the inputs of norms stay float32, all else and a copy of the weights take two. Beside a weight lie its
gradient, AdamW's two moments, its average where there is one, and the optimiser's own intermediate.

Buffers that a library allocates inside an operation (workspaces of matrix products, packed weights) are not counted.
"""

from dataclasses import dataclass

from upvit_core.profiling.macs import count_parameters
from upvit_core.records.family import load
from upvit_core.records.shape import ModelShape

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class Memory:
    """Bytes; activations is the peak beyond the weights and the batch of images."""

    weights: int
    activations: int

    @property
    def total(self) -> int:
        return self.weights + self.activations


def estimate_memory(shape: ModelShape, batch: int, dtype: str = "float32") -> Memory:
    """Weights and peak activations at one batch size, for a model held and run in one number type.

    Raises ValueError for an unknown number type.
    """
    if dtype not in BYTES:
        raise ValueError(f"dtype must be one of {', '.join(BYTES)}, not {dtype!r}.")
    size = BYTES[dtype]
    return Memory(count_parameters(shape) * size, load(shape.architecture.activations)(shape, batch) * size)


def vit_activations(shape: ModelShape, batch: int) -> int:
    """Numbers held at once for a batch of images, in the embedding or a block."""
    tokens, patches, D = batch * shape.num_tokens, batch * shape.num_patches, shape.embed_dim
    peaks = [D * (patches + tokens), 2 * D * tokens]
    for number, block in enumerate(shape.blocks):
        held = D * min(number, 1)
        own, channels = shape.structure, shape.channels_in(block)
        turned = 2 * bool(own.rope)  # rotated copies of queries and keys
        products = 2 * shape.heads_in(block) * shape.num_tokens * own.relative  # not fused with a table
        peaks.append(tokens * (held + 3 * D + (4 + turned) * channels + products))
        inside = 4 * block.ffn if own.gate else block.ffn + max(block.ffn, D)
        peaks.append(tokens * (held + 3 * D + inside))
    return max(peaks)


def gpt2_activations(shape: ModelShape, batch: int) -> int:
    """Numbers held at once for a batch of blocks of text, which share the positions."""
    D = shape.embed_dim
    within = (max(5 * D + 4 * b.ffn, 6 * D + b.ffn, 7 * D, 4 * D + 4 * b.attention) for b in shape.blocks)
    return shape.num_tokens * (batch * max(*within, D + shape.num_classes) + D)


def pvt_activations(shape: ModelShape, batch: int) -> int:
    """Numbers held at once for a batch of images: in patch embeddings, attention, and FFN (4·D + 2·H a token)."""
    peaks = []
    for b, block in enumerate(shape.blocks):
        tokens, D = shape.tokens_at(b), shape.embed_dims[shape.stage_of(b)]
        peaks.append(3 * D * tokens)
        peaks.append(
            tokens * (4 * D + 3 * block.attention) + shape.keys_at(b) * 2 * (block.attention + block.reduction)
        )
        peaks.append(tokens * (4 * D + block.ffn + max(block.ffn, D)))
    return batch * max(peaks)


@dataclass(frozen=True)
class TrainingMemory:
    """Bytes of a distillation step: what lies there whatever the batch, and the peak beside it for one image."""

    fixed: int
    per_image: int

    def total(self, images: int) -> int:
        return self.fixed + images * self.per_image

    def parts_for(self, free: int, batch: int) -> int | None:
        """The fewest parts, each half the one before, in which a batch fits into `free` bytes; None where none does."""
        parts = 1
        while self.total(-(-batch // parts)) > free:
            if parts >= batch:
                return None
            parts = min(2 * parts, batch)
        return parts


def estimate_training(
    teacher: ModelShape, student: ModelShape, *, dtype: str = "float32", averaged: bool = True
) -> TrainingMemory:
    """A step of distillation: teacher forward, student forward and backward, AdamW; `averaged`: with weight averaging.

    Raises ValueError for an unknown number type.
    """
    full, size = BYTES["float32"], estimate_memory(teacher, 1, dtype).activations
    mixed = BYTES[dtype] < full
    weights = count_parameters(student)
    fixed = full * (count_parameters(teacher) + weights * (5 + averaged))
    if mixed:
        fixed += BYTES[dtype] * (weights + count_parameters(teacher))
    low = BYTES[dtype]
    kept = passing = 0
    family = student.architecture
    for b, block in enumerate(student.blocks):
        N, M, D = student.tokens_at(b), student.keys_at(b), student.embed_dims[student.stage_of(b)]
        kept += N * D * (full + low) if b == student.first_block(student.stage_of(b)) else 0
        own, channels = student.structure, student.channels_in(block)
        inner = N * (
            2 * D + 2 * channels + family.ffn_kept * block.ffn * own.first_layers + 2 * D * student.layer_scale
        )
        inner += N * 2 * channels * bool(own.rope)
        kept += N * N * student.heads_in(block) * own.relative * (full + 2 * low * mixed)
        kept += N * 2 * D * full + (inner + M * 2 * (channels + block.reduction)) * low
        passing = max(passing, N * max(family.ffn_passing * block.ffn * own.first_layers, D) * full)
        if student.is_language:
            # The loss holds ten times its logits: theirs, the targets, what CE and KL keep, and their gradients.
            passing = max(passing, N * (D * full + 4 * block.attention * low))
            passing = max(passing, N * (2 * D + 10 * student.outputs) * full)
    images = full * student.in_chans * student.img_size[0] * student.img_size[1]
    return TrainingMemory(fixed, images + max(kept + passing, size))
