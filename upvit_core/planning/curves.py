"""The score lost at every width: the curves over which allocation and budgets decide.

The loss of a set of channels is taken to be the sum of the scores of its members, in nats an image. Each score is a
KL divergence (Eq. 1) or its second-order form, so the sum is the diagonal of the quadratic form of the KL in the
removed channels: it leaves out that removals interact. It orders plans well while little is removed; it is far too low
once a large share of the residual goes (every LayerNorm then normalises another vector), and it knows nothing of what
merging heads does by itself. It is a prediction to compare plans of one model by, not a forecast of accuracy.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from upvit_core.errors import PlanError
from upvit_core.records.plan import PruningPlan
from upvit_core.records.scores import ImportanceScores
from upvit_core.records.shape import ModelShape, legal_head_counts


@dataclass(frozen=True)
class Curve:
    """Score lost at every legal width; widths (n,) ascend, lost (n,) falls, and falls ever more slowly."""

    widths: np.ndarray
    lost: np.ndarray

    def nearest(self, width: float) -> int:
        """The legal width nearest to `width`; of two, the wider."""
        return int(self.widths[::-1][np.argmin(np.abs(self.widths[::-1] - width))])

    def at(self, widths: int | np.ndarray) -> np.ndarray:
        """Score lost at legal widths."""
        return np.asarray(self.lost[np.searchsorted(self.widths, widths)])


@dataclass(frozen=True)
class Curves:
    """The curves of one model for given heads and rounding; attention, ffn and heads hold one entry a block."""

    residual: Curve
    attention: tuple[Curve, ...]
    ffn: tuple[Curve, ...]
    heads: tuple[int, ...]
    shape: ModelShape

    def loss_at(self, widths: Widths) -> float:
        """Score lost at given legal widths, in nats an image."""
        total = float(self.residual.at(widths.embed_dim))
        for attention, ffn, (_, a, h) in zip(self.attention, self.ffn, widths.blocks, strict=True):
            total += float(attention.at(a) + ffn.at(h))
        return total


@dataclass(frozen=True)
class Widths:
    """Widths of a plan: residual channels and, block by block, (heads, attention channels, FFN channels)."""

    embed_dim: int
    blocks: tuple[tuple[int, int, int], ...]


def legal_widths(width: int, multiple_of: int) -> np.ndarray:
    """Multiples of `multiple_of` up to `width`, ascending; `width` alone where there is none."""
    if multiple_of > width:
        return np.array([width])
    return np.arange(multiple_of, width + 1, multiple_of)


def resolve_heads(shape: ModelShape, heads: int | Sequence[int] | None) -> tuple[int, ...]:
    """Heads of every block after merging, from one number, a number a block, or None (as they are).

    Raises PlanError where a block's heads cannot be merged so.
    """
    if heads is None:
        return tuple(block.num_heads for block in shape.blocks)
    wanted = (heads,) * shape.depth if isinstance(heads, int) else tuple(heads)
    if len(wanted) != shape.depth:
        raise PlanError(f"{len(wanted)} head counts were given for the {shape.depth} blocks of {shape.name}.")
    for number, (block, count) in enumerate(zip(shape.blocks, wanted, strict=True)):
        if count not in legal_head_counts(block.num_heads):
            options = ", ".join(map(str, legal_head_counts(block.num_heads)))
            raise PlanError(
                f"The {block.num_heads} heads of block {number} cannot be merged into {count}; choose one of {options}."
            )
    return wanted


def removal_curves(scores: ImportanceScores, *, heads: int | Sequence[int] | None = None, round_to: int = 1) -> Curves:
    """Curves of every component, in nats an image (in the record's unit a proxy image where that is not nats).

    Widths are multiples of `round_to`; attention widths also of the block's heads, since every head keeps equally many
    channels: a step removes the lowest channels left in each merged head. Scores below zero, which sampling noise
    leaves, count as zero.
    """
    if round_to < 1:
        raise PlanError(f"Widths can be rounded to multiples of 1, 8 or 16, not of {round_to}.")
    shape = scores.shape
    if round_to > shape.embed_dim:
        raise PlanError(f"The residual of {shape.name} has {shape.embed_dim} channels; round to at most that.")
    if shape.one_share:
        raise PlanError(
            f"{shape.name} has stages, for which only equal ratios are defined; give --residual, --attention, --ffn "
            "and --reduction, or a preset."
        )
    chosen = resolve_heads(shape, heads)
    samples = scores.samples
    return Curves(
        residual=_curve(scores.residual / samples, 1, round_to),
        attention=tuple(_curve(scores.attention(b) / samples, h, round_to) for b, h in enumerate(chosen)),
        ffn=tuple(_curve(scores.ffn(b) / samples, 1, round_to) for b in range(shape.depth)),
        heads=chosen,
        shape=shape,
    )


def _curve(scores: np.ndarray, heads: int, round_to: int) -> Curve:
    ascending = np.sort(np.maximum(scores, 0).reshape(heads, -1), axis=1).sum(0)  # (channels / heads,)
    lost = np.concatenate([[0.0], np.cumsum(ascending)])
    widths = legal_widths(len(scores), math.lcm(heads, round_to))
    return Curve(widths, lost[(len(scores) - widths) // heads])


def total_score(scores: ImportanceScores) -> float:
    """Sum of the scores of all channels, an image."""
    return sum(float(np.maximum(values, 0).sum()) for values in scores.values.values()) / scores.samples


def share_removed(scores: ImportanceScores, plan: PruningPlan) -> float:
    """The share of all scores that a plan removes, in [0, 1]: plans of one model rank by it; it tells no accuracy."""
    return predicted_loss(scores, plan) / (total_score(scores) or 1.0)


def predicted_loss(scores: ImportanceScores, plan: PruningPlan) -> float:
    """Sum of the scores of all channels that a plan removes, in nats an image: for comparing plans, not a KL."""
    lost = {key: np.maximum(values, 0) for key, values in scores.values.items()}
    total = sum(float(values.sum()) for values in lost.values())
    total -= sum(float(values[list(plan.kept(key))].sum()) for key, values in lost.items())
    return max(total, 0.0) / scores.samples
