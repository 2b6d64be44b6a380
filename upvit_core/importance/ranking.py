"""Ranking of channels by score: the best of all, or the best inside each merged head (the letter's component 2)."""

import numpy as np

from upvit_core.errors import PlanError
from upvit_core.records.shape import Component, legal_head_counts


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


def rivals(width: int, heads: int, component: Component, number: int) -> np.ndarray:
    """Channels that compete with channel `number` for a place, ascending.

    In attention those of the same merged head, of `width` channels in `heads` heads after merging; else all of them.
    """
    if component != "attention":
        return np.arange(width)
    size = width // heads
    return np.arange(number // size * size, (number // size + 1) * size)
