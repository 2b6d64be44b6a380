"""Memory of a forward pass in inference: weights, and the most that activations hold at once. Imports no torch.

Follows timm's block in eager mode, counting what Python still refers to while an operation runs:

- proj: the block's input x, norm1(x), qkv, attention's output and proj's own: 3·D + 4·A a token;
- GELU: the block's input, x after attention, norm2(x), fc1's output and GELU's own: 3·D + 2·H a token; fc2: 4·D + H;
- from the second block on, D more: the embedding, to which the forward pass still refers;
- the embedding itself: the convolution's output, its copy with the class token, and the sum with the positions.

Buffers that a library allocates inside an operation (workspaces of matrix products, packed weights) are not counted.
"""

from __future__ import annotations

from dataclasses import dataclass

from upvit_core.models.shape import ModelShape
from upvit_core.profiling.macs import count_parameters

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
    tokens, D = batch * shape.num_tokens, shape.embed_dim
    patches = batch * shape.num_patches
    peaks = [D * (patches + tokens), 2 * D * tokens]
    for number, block in enumerate(shape.blocks):
        held = D * min(number, 1)
        peaks.append(tokens * (held + 3 * D + 4 * block.attention))
        peaks.append(tokens * (held + 3 * D + block.ffn + max(block.ffn, D)))
    size = BYTES[dtype]
    return Memory(count_parameters(shape) * size, max(peaks) * size)
