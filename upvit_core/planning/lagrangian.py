"""Choose one option in every group at the least loss within limits, by Lagrange multipliers; their dual is a bound.

min Σ_g R_g(o_g) subject to Σ_g c_g(o_g) <= limit, for each of many outer choices (residual widths) at once. For a
given multiplier every group decides alone; the multiplier is found by bisection. Two limits are weighed into one, with
several weights. The dual value at any multipliers is a lower bound (Everett, Operations Research 1963). Room that is
left under the limits is used by changing one or two groups at a time.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

BISECTIONS = 32
TO_IMPROVE = 8
REACH = 6


@dataclass(frozen=True)
class CostVector:
    """One limit: const (n,) and, for every group, the cost (n, options) at every outer choice."""

    const: np.ndarray
    groups: Sequence[np.ndarray]
    limit: float


@dataclass(frozen=True)
class LagrangianSolution:
    """The outer choice, the option of every group, their loss, and a lower bound over all choices."""

    outer: int
    options: tuple[int, ...]
    loss: float
    bound: float


def lagrangian(
    outer_loss: np.ndarray, losses: Sequence[np.ndarray], costs: Sequence[CostVector]
) -> LagrangianSolution | None:
    """The best solution found, or None where nothing fits. outer_loss: (n,); losses: (options,) a group."""
    scaled = [CostVector(c.const / c.limit, [g / c.limit for g in c.groups], 1.0) for c in costs]
    bound = np.full(len(outer_loss), -np.inf)
    best_loss = np.full(len(outer_loss), np.inf)
    best_options = np.zeros((len(outer_loss), len(losses)), int)
    for weights in _weights(len(scaled)):
        options, total, dual = _bisect(outer_loss, losses, scaled, weights)
        better = total < best_loss
        best_loss[better], best_options[better] = total[better], options[better]
        bound = np.maximum(bound, dual)
    if not np.isfinite(best_loss).any():
        return None
    candidates = []
    for i in np.argsort(best_loss)[:TO_IMPROVE]:
        if np.isfinite(best_loss[i]):
            filled = _improve(int(i), best_options[i], losses, scaled)
            total_loss = outer_loss[i] + sum(loss[o] for loss, o in zip(losses, filled, strict=True))
            candidates.append((float(total_loss), int(i), tuple(int(o) for o in filled)))
    loss, outer, chosen = min(candidates)
    return LagrangianSolution(outer, chosen, loss, min(float(bound.min()), loss))


def _weights(limits: int) -> list[np.ndarray]:
    if limits == 1:
        return [np.ones(1)]
    corners = list(np.eye(limits))
    return corners + [w / w.sum() for w in (0.5 * (a + b) for a in corners for b in corners if a is not b)][:limits]


def _bisect(
    outer_loss: np.ndarray, losses: Sequence[np.ndarray], costs: Sequence[CostVector], weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Options (n, groups), their loss (n,; infinite where nothing fits) and the dual bound (n,)."""
    n = len(outer_loss)
    mixed = [sum(w * c.groups[g] for w, c in zip(weights, costs, strict=True)) for g in range(len(losses))]
    const = sum(w * c.const for w, c in zip(weights, costs, strict=True))
    scale = max(sum(float(loss.max()) for loss in losses), 1e-12)
    low, high = np.full(n, -7.0), np.full(n, 7.0)  # log10 of the multiplier, times scale
    options, total = np.zeros((n, len(losses)), int), np.full(n, np.inf)
    dual = np.full(n, -np.inf)
    for step in range(BISECTIONS + 2):
        exponent = low if step == 0 else high if step == 1 else (low + high) / 2
        multiplier = scale * 10**exponent
        chosen, loss, value = _respond(outer_loss, losses, mixed, const, multiplier)
        dual = np.maximum(dual, value)
        fits = np.all([_spent(c, chosen) <= 1 for c in costs], axis=0)
        better = fits & (loss < total)
        options[better], total[better] = chosen[better], loss[better]
        if step >= 2:
            high, low = np.where(fits, exponent, high), np.where(fits, low, exponent)
    return options, total, dual


def _respond(
    outer_loss: np.ndarray,
    losses: Sequence[np.ndarray],
    mixed: Sequence[np.ndarray],
    const: np.ndarray,
    multiplier: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    chosen = np.zeros((len(outer_loss), len(losses)), int)
    loss, value = outer_loss.copy(), outer_loss + multiplier * (const - 1)
    rows = np.arange(len(outer_loss))
    for g, (lost, cost) in enumerate(zip(losses, mixed, strict=True)):
        priced = lost + multiplier[:, None] * cost  # (n, options)
        chosen[:, g] = priced.argmin(1)
        value += priced[rows, chosen[:, g]]
        loss += lost[chosen[:, g]]
    return chosen, loss, value


def _spent(costs: CostVector, chosen: np.ndarray) -> np.ndarray:
    rows = np.arange(len(chosen))
    return costs.const + sum(group[rows, chosen[:, g]] for g, group in enumerate(costs.groups))


def _improve(i: int, options: np.ndarray, losses: Sequence[np.ndarray], costs: Sequence[CostVector]) -> np.ndarray:
    """Change one or two groups at a time while that gains and fits; options more than REACH away are left alone."""
    options = options.copy()
    fixed = np.array([float(c.const[i]) for c in costs])
    while True:
        spent = fixed + [sum(g[i, o] for g, o in zip(c.groups, options, strict=True)) for c in costs]
        moves = [
            (g, o)
            for g, now in enumerate(options)
            for o in range(max(0, now - REACH), min(len(losses[g]), now + REACH + 1))
        ]
        group, option = np.array(moves).T
        change = np.array([losses[g][o] - losses[g][options[g]] for g, o in moves])
        extra = np.array([[c.groups[g][i, o] - c.groups[g][i, options[g]] for g, o in moves] for c in costs])
        both = change[:, None] + change[None, :]  # staying as one is counts as a move too
        allowed = (group[:, None] != group[None, :]) | (len(options) == 1)
        for slack, more in zip(1 - spent, extra, strict=True):
            allowed &= more[:, None] + more[None, :] <= slack
        both = np.where(allowed, both, 0.0)
        first, second = np.unravel_index(np.argmin(both), both.shape)
        if both[first, second] >= -1e-13:
            return options
        options[group[first]], options[group[second]] = option[first], option[second]
