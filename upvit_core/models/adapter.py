"""The interface of an architecture to criteria and depth: its components, its blocks, and running from block b on.

Criteria and depth use this Protocol only; attribute names of a model stay in `upvit_core.models`. The keys of
`ModelShape.groups` name what can be cut (`residual` or `residual.{stage}`, `attention.{b}`, `ffn.{b}`,
`reduction.{b}`), so no criterion asks which architecture it scores. `TransformerAdapter` in `transformer.py` has all
that families share; `records/family.py` lists the steps to add one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

from torch import Tensor, nn

from upvit_core.models.layout import layout
from upvit_core.records.shape import ModelShape

if TYPE_CHECKING:
    from upvit_core.models.output import OutputDistribution
    from upvit_core.models.transformer import BlockTrace


class NormSite(NamedTuple):
    """A norm in a forward pass: a LayerNorm; without `bias` an RMSNorm; without `weight` the identity.

    `input`, `output`: (B, T, D). `writes`: its output is the stream itself, which other sites read.
    """

    input: Tensor
    output: Tensor
    weight: Tensor | None
    bias: Tensor | None
    eps: float
    writes: bool = False


@dataclass(frozen=True)
class Sensitivities:
    """Differentiable intermediates of one forward pass, from which gradients by channel masks follow in closed form.

    `norm_sites` maps a score key to every LayerNorm over its channels, which their removal narrows; `activations` maps
    the other keys to the tensors (B, ..., channels) that a mask multiplies. If whole heads are cut, the channels of a
    head are adjacent, and their changes add up.
    """

    logits: Tensor
    norm_sites: Mapping[str, Sequence[NormSite]]
    activations: Mapping[str, tuple[Tensor, ...]]


class Adapter(Protocol):
    """An architecture, seen as a stream of tokens that passes through blocks.

    The stream before block b is whatever that block takes: (B, N, D) in a plain transformer; where a stage opens with a
    patch embedding, the map (B, C, H, W) that it embeds.
    """

    model: nn.Module
    shape: ModelShape
    output: OutputDistribution | None  # None: that of features, which images must tell (`models.output.with_output`)

    def embed(self, inputs: Tensor) -> Tensor:
        """Images (B, C, H, W) to the stream before block 0."""

    def logits(self, inputs: Tensor) -> Tensor:
        """Images to logits (B, classes), as the model itself computes them in eval mode."""

    def run_block(self, block: int, x: Tensor) -> Tensor:
        """The stream before a block to the stream before the next one."""

    def run_from(self, block: int, x: Tensor) -> Tensor:
        """Logits (B, classes) from the stream before `block`; `shape.depth`: after the last one."""

    def run_half_block(self, half: int, x: Tensor, *, previous: int | None = None, last: bool = False) -> Tensor:
        """Attention of block b (half = 2b) or its FFN (2b + 1) on the stream, norm and shortcut included.

        `previous`: the half-block that x comes from (None: the embedding), so that a new stage can be entered. `last`:
        no other attention follows, so that the result may hold only the tokens that the head reads.
        """

    def after_half_block(self, half: int, x: Tensor) -> Tensor:
        """Logits (B, classes) from the stream after `half`, the last half-block that is left."""

    def first_block(self, key: str) -> int:
        """The block before which the removal of a channel of `key` first shows."""

    def trace(self, block: int, x: Tensor) -> BlockTrace:
        """Intermediate results of one block on its input, which make removals in it cheap."""

    def logits_without(self, key: str, x: Tensor, channels: Tensor, trace: BlockTrace | None = None) -> Tensor:
        """Logits (C, B, classes) without each of `channels` (C,) of `key`, one at a time, exactly as Eq. 1 removes it.

        x is the stream before `first_block(key)`, `trace` the result of `trace` on it (None: it is made here).
        """

    def sensitivities(self, inputs: Tensor) -> Sensitivities:
        """One differentiable forward pass; no parameter needs a gradient."""


def by_channel(values: Tensor, width: int) -> Tensor:
    """(..., A) to (..., width): sums of adjacent entries that are cut together, such as those of a head."""
    return values if values.shape[-1] == width else values.unflatten(-1, (width, -1)).sum(-1)


def carriers(model: nn.Module, shape: ModelShape, key: str) -> dict[str, Tensor]:
    """Weights that carry the channels of `key`, by name, each (channels, ...): views with the channel first.

    Where a tensor holds the channels several times over (queries, keys, values), each has its entry.
    """
    tensors = dict(model.named_parameters())
    found = {}
    for name, part in layout(shape).items():
        for number, axis in enumerate(part.axes):
            if axis.key != key:
                continue
            copies = tensors[name].movedim(number, 0).chunk(axis.repeat)
            for copy, tensor in enumerate(copies):
                rows = tensor.unflatten(0, (-1, axis.unit)).flatten(1)
                found[f"{name}[{copy}]" if axis.repeat > 1 else name] = rows
    return found
