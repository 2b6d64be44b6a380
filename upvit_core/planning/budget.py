"""Uniform plans by the thousand: what each costs, and what its removal would cost if single removals added up.

The cost of a uniform plan is exact. The score that it removes is an estimate of KL: the sum, over removed channels, of
what each loses when it goes alone. It ignores that removals interact, which at large ratios they do, and that merging
heads changes the function; it serves to compare plans of one model, not to foretell accuracy.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from upvit_core.errors import PlanError
from upvit_core.importance.scores import ImportanceScores
from upvit_core.models.shape import BlockShape, ModelShape
from upvit_core.planning.heads import common_head_counts
from upvit_core.planning.plan import PruningPlan
from upvit_core.planning.select import kept_channels
from upvit_core.profiling.macs import count_macs, count_parameters


@dataclass(frozen=True)
class UniformChoice:
    """Percent removed of each component, heads, exact cost, and the score removed (nats an image, estimated)."""

    residual: int
    attention: int
    ffn: int
    heads: int
    params: int
    macs: int
    removed: float


@dataclass(frozen=True)
class UniformTable:
    """All uniform plans with whole percents up to `most` and one head count.

    removed, params, macs: (P, P, P) over percent removed of residual, attention, ffn; removed in nats an image.
    """

    heads: int
    removed: np.ndarray
    params: np.ndarray
    macs: np.ndarray

    def choice(self, residual: int, attention: int, ffn: int) -> UniformChoice:
        at = (residual, attention, ffn)
        return UniformChoice(*at, self.heads, int(self.params[at]), int(self.macs[at]), float(self.removed[at]))

    def best(self, *, params: float | None = None, macs: float | None = None) -> UniformChoice | None:
        """The plan that removes least score within the budgets; of equals, the one with fewer MACs. None: none fits."""
        fits = np.ones(self.removed.shape, bool)
        if params is not None:
            fits &= self.params <= params
        if macs is not None:
            fits &= self.macs <= macs
        if not fits.any():
            return None
        least = np.where(fits, self.removed, np.inf)
        ties = np.flatnonzero(least.ravel() <= least.min() * (1 + 1e-12))
        at = np.unravel_index(ties[np.argmin(self.macs.ravel()[ties])], least.shape)
        return self.choice(*(int(i) for i in at))

    def front(self, cost: str = "params") -> list[UniformChoice]:
        """Plans that no other beats in both cost (`params` or `macs`) and score removed, cheapest first."""
        costs = getattr(self, cost).ravel()
        order = np.lexsort((self.removed.ravel(), costs))
        least = np.minimum.accumulate(self.removed.ravel()[order])
        better = np.concatenate([[True], least[1:] < least[:-1]])
        chosen = order[better]
        last = np.concatenate([costs[chosen][1:] > costs[chosen][:-1], [True]])
        return [self.choice(*(int(i) for i in np.unravel_index(n, self.removed.shape))) for n in chosen[last]]


def uniform_table(scores: ImportanceScores, heads: int, most: int = 95) -> UniformTable:
    """Costs and removed score of every uniform plan with `heads` heads, 0 to `most` percent of each component.

    Widths are taken to the nearest that the heads divide, as `plan_uniform(snap=True)` does. Raises PlanError where the
    heads cannot be merged so, or blocks differ in width.
    """
    shape = scores.shape
    if heads not in common_head_counts(shape.blocks):
        options = ", ".join(map(str, common_head_counts(shape.blocks)))
        raise PlanError(f"The heads of {shape.name} cannot be merged into {heads}; choose one of {options}.")
    if len({(block.attention, block.ffn) for block in shape.blocks}) > 1:
        raise PlanError(f"The blocks of {shape.name} differ in width; a table of uniform plans needs equal blocks.")
    block = shape.blocks[0]
    shares = [percent / 100 for percent in range(most + 1)]
    D = np.array([kept_channels(shape.embed_dim, share, heads, snap=True) for share in shares])
    A = np.array([kept_channels(block.attention, share, heads, snap=True) for share in shares])
    H = np.array([kept_channels(block.ffn, share, snap=True) for share in shares])
    images = max(scores.images, 1)
    residual = _removed(scores.residual[None, :])[D]
    merged = np.stack([scores.attention(b).reshape(heads, -1) for b in range(shape.depth)])
    attention = _removed(merged.reshape(shape.depth * heads, -1))[A // heads]
    ffn = _removed(np.stack([scores.ffn(b) for b in range(shape.depth)]))[H]
    removed = (residual[:, None, None] + attention[None, :, None] + ffn[None, None, :]) / images
    costs = [_multilinear(count, shape, heads, D, A, H) for count in (count_parameters, count_macs)]
    return UniformTable(heads, removed, *costs)


def _removed(scores: np.ndarray) -> np.ndarray:
    """Score lost when k channels of every row stay, (channels + 1,), summed over rows; scores below 0 count as 0."""
    ascending = np.sort(np.maximum(scores, 0), axis=-1).sum(0)
    lost = np.concatenate([[0.0], np.cumsum(ascending)])
    return lost[::-1].copy()


def _multilinear(
    count: Callable[[ModelShape], int], shape: ModelShape, heads: int, D: np.ndarray, A: np.ndarray, H: np.ndarray
) -> np.ndarray:
    """A count at every (D, A, H); it is a sum of 1, D, A, H, DA and DH, whose factors six small shapes tell exactly."""

    def at(d: int, a: int, h: int) -> int:
        blocks = (BlockShape(heads, a * heads, h),) * shape.depth
        return count(replace(shape, embed_dim=d * heads, blocks=blocks))

    base, one_d, one_a, one_h = at(0, 0, 0), at(1, 0, 0), at(0, 1, 0), at(0, 0, 1)
    d, a, h = one_d - base, one_a - base, one_h - base
    da, dh = at(1, 1, 0) - base - d - a, at(1, 0, 1) - base - d - h
    x, y, z = (D // heads)[:, None, None], (A // heads)[None, :, None], H[None, None, :]
    return np.asarray(base + d * x + a * y + h * z + da * x * y + dh * x * z)


def best_uniform(
    scores: ImportanceScores, heads: int, *, params: float | None = None, macs: float | None = None
) -> UniformChoice:
    """The uniform plan that removes least score within a budget of parameters, MACs or both.

    The head count is given, not searched: scores are of channels and say nothing of what merging heads does. Raises
    PlanError where no plan fits.
    """
    if params is None and macs is None:
        raise PlanError("No budget was given; give params, macs or both.")
    table = uniform_table(scores, heads)
    found = table.best(params=params, macs=macs)
    if found is None:
        raise PlanError(
            f"No uniform plan of {scores.shape.name} is that small; the smallest has {int(table.params.min()):,} "
            f"parameters and {int(table.macs.min()):,} MACs."
        )
    return found


def removed_score(scores: ImportanceScores, plan: PruningPlan) -> float:
    """Score of all removed channels, nats an image: the estimate of KL that ignores interactions."""
    images = max(scores.images, 1)
    total = np.maximum(scores.residual, 0).sum() - np.maximum(scores.residual, 0)[list(plan.residual.keep)].sum()
    attention = {block.source: block.attention.keep for block in plan.blocks}
    ffn = {block.ffn_block: block.ffn.keep for block in plan.blocks}
    for b in range(scores.shape.depth):
        for values, keep in ((scores.attention(b), attention.get(b, ())), (scores.ffn(b), ffn.get(b, ()))):
            positive = np.maximum(values, 0)
            total += positive.sum() - positive[list(keep)].sum()
    return float(total / images)
