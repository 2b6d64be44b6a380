"""Merging heads and choosing channels inside each merged head (the letter's component 2)."""

from __future__ import annotations

import numpy as np

from upvit_core.errors import PlanError
from upvit_core.models.shape import BlockShape


def keep_in_merged_heads(scores: np.ndarray, num_heads: int, heads: int, channels: int) -> np.ndarray:
    """Channels of one block's attention that stay, ascending.

    Merges num_heads / heads neighbouring heads into one, then keeps the best channels / heads inside each merged head.
    scores: (A,).

    Raises PlanError where the numbers do not divide.
    """
    if heads < 1 or num_heads % heads:
        options = ", ".join(str(n) for n in legal_head_counts(num_heads))
        raise PlanError(f"{num_heads} heads cannot be merged evenly into {heads}; choose one of {options}.")
    if channels % heads or not 0 < channels <= len(scores):
        raise PlanError(
            f"{channels} attention channels do not spread evenly over {heads} heads of a source with {len(scores)}; "
            f"choose a multiple of {heads}."
        )
    merged = scores.reshape(heads, -1)  # (heads, A / heads)
    best = np.sort(keep_best(merged, channels // heads), axis=-1)
    return (best + np.arange(heads)[:, None] * merged.shape[1]).ravel()


def keep_best(scores: np.ndarray, count: int) -> np.ndarray:
    """Indices of the `count` highest scores along the last axis, ascending; of equals the lower index stays."""
    order = np.argsort(-scores, axis=-1, kind="stable")
    return np.sort(order[..., :count], axis=-1)


def legal_head_counts(num_heads: int) -> tuple[int, ...]:
    """Head counts into which `num_heads` heads can be merged, descending."""
    return tuple(n for n in range(num_heads, 0, -1) if num_heads % n == 0)


def common_head_counts(blocks: tuple[BlockShape, ...]) -> tuple[int, ...]:
    """Head counts that are legal in every block, descending."""
    return tuple(n for n in legal_head_counts(blocks[0].num_heads) if all(block.num_heads % n == 0 for block in blocks))
