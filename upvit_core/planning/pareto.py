"""Many plans side by side: what each costs, the score that it removes, and which of them another one beats."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import Literal

import numpy as np

from upvit_core.errors import PlanError
from upvit_core.planning.allocate import plan_allocated
from upvit_core.planning.budget import Budget, Family, best_plan
from upvit_core.planning.budget_stages import Tables, best_shares
from upvit_core.planning.cost_model import Timed, costs_of
from upvit_core.planning.curves import predicted_loss
from upvit_core.planning.ratios import plan_uniform
from upvit_core.profiling.macs import count_macs
from upvit_core.records.basis import Basis
from upvit_core.records.plan import PruningPlan
from upvit_core.records.ratios import Ratios
from upvit_core.records.scores import ImportanceScores

Quantity = Literal["params", "macs", "latency_ms", "predicted"]
FAMILIES: tuple[Family, ...] = ("best", "uniform", "stock")
QUANTILES = 15
"""Losses by which an uncertain one is represented."""
SHARES = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.25, 0.2, 0.15)


@dataclass(frozen=True)
class FrontRow:
    """One plan. predicted: nats an image; latency_ms: None without calibration; stock: stock timm builds the shape."""

    name: str
    plan: PruningPlan
    params: int
    macs: int
    latency_ms: float | None
    predicted: float
    stock: bool
    dominated: bool = False


def pareto_rows(
    scores: ImportanceScores,
    plans: Iterable[tuple[str, PruningPlan]],
    *,
    latency: Timed | None = None,
    axes: Sequence[Quantity] = ("macs", "predicted"),
) -> list[FrontRow]:
    """Rows in order of MACs; one is dominated where another is no worse on every axis and better on one.

    Raises PlanError where latency is an axis and no estimate was given.
    """
    if "latency_ms" in axes and latency is None:
        raise PlanError("A front over latency needs this device's calibration; run `calibrate` first.")
    rows = []
    for name, plan in plans:
        shape, predicted = plan.shape_after, predicted_loss(scores, plan)
        costs = costs_of(shape, latency)
        params, macs, ms = int(costs["params"]), int(costs["macs"]), costs.get("latency_ms")
        rows.append(FrontRow(name, plan, params, macs, ms, predicted, shape.is_uniform))
    marks = dominated(np.array([[getattr(row, axis) for axis in axes] for row in rows], float))
    marked = [replace(row, dominated=bool(mark)) for row, mark in zip(rows, marks, strict=True)]
    return sorted(marked, key=lambda row: (row.macs, row.predicted))


def dominated(values: np.ndarray) -> np.ndarray:
    """True for the rows of values (n, quantities), each better when smaller, that another row beats; (n,)."""
    if not len(values):
        return np.zeros(0, bool)
    no_worse = np.all(values[None, :, :] <= values[:, None, :], axis=-1)  # (row, other)
    better = np.any(values[None, :, :] < values[:, None, :], axis=-1)
    return np.asarray(np.any(no_worse & better, axis=1))


def most_gain(
    front: np.ndarray,
    costs: np.ndarray,
    losses: np.ndarray,
    spreads: np.ndarray,
    worst: tuple[float, float],
    count: int = 3,
) -> list[int]:
    """The rows of up to `count` candidates that add most to a front, one after another, the best first.

    What one adds is its expected hypervolume improvement: the area up to the cost and the loss of `worst` that it
    dominates and the front (n, 2) of costs and losses does not, as a mean over losses that are normal with the given
    means and standard deviations, all (m,). A chosen one counts at its mean. Those that add nothing are left out.
    """
    quantiles = np.array([NormalDist().inv_cdf((n + 0.5) / QUANTILES) for n in range(QUANTILES)])
    chosen: list[int] = []
    for _ in range(min(count, len(costs))):
        every = zip(costs, losses, spreads, strict=True)
        gains = [_area(front, cost, loss + quantiles * spread, worst) for cost, loss, spread in every]
        best = int(np.argmax([-1.0 if n in chosen else gain for n, gain in enumerate(gains)]))
        if gains[best] <= 0:
            break
        chosen.append(best)
        front = np.vstack([front, [costs[best], losses[best]]])
    return chosen


def _area(front: np.ndarray, cost: float, losses: np.ndarray, worst: tuple[float, float]) -> float:
    """The mean area that points of one cost and these losses add to a front, within `worst`."""
    steps = front[np.argsort(front[:, 0], kind="stable")]
    edges = np.clip(np.concatenate([[cost], steps[:, 0], [worst[0]]]), cost, max(cost, worst[0]))
    height = np.minimum.accumulate(np.concatenate([[worst[1]], steps[:, 1]]))
    return float((np.clip(height - losses[:, None], 0, None) * np.diff(edges)).sum(1).mean())


def candidate_plans(
    scores: ImportanceScores,
    *,
    shares: Sequence[float] = SHARES,
    heads: int | None = None,
    round_to: int = 1,
    basis: Basis = Basis.CHANNELS,
) -> list[tuple[str, PruningPlan]]:
    """Plans to compare: at shares of the model's MACs the best of all, of uniform and of stock shapes; equal ratios.

    Shares that a family cannot reach are left out. In a model of stages every plan has one ratio a component.

    Raises PlanError where heads, rounding or directions are asked of a model of stages.
    """
    full = count_macs(scores.shape)
    if scores.shape.one_share:
        if heads is not None or round_to != 1 or basis != Basis.CHANNELS:
            raise PlanError(
                f"heads, round_to and directions are defined for models without stages; leave them out for "
                f"{scores.shape.name}."
            )
        return _of_stages(scores, [share * full for share in shares])
    plans: list[tuple[str, PruningPlan]] = []
    for share in shares:
        for family in FAMILIES:
            try:
                budget = Budget(macs=share * full)
                best = best_plan(scores, budget, family=family, heads=heads, round_to=round_to, basis=basis)
            except PlanError:
                continue
            plans.append((f"{family}, {share:.0%} of MACs", best.plan))
    for ratio in (0.25, 0.5, 0.75):
        plan = plan_allocated(scores, Ratios.equal(ratio), heads=heads, round_to=round_to, basis=basis)
        plans.append((f"{ratio:.0%} of everything", plan))
    return plans


def _of_stages(scores: ImportanceScores, limits: Sequence[float]) -> list[tuple[str, PruningPlan]]:
    """The best equal shares at every limit of MACs, of all and of those that stock timm builds; equal ratios."""
    tables, full = Tables(scores), count_macs(scores.shape)
    plans: list[tuple[str, PruningPlan]] = []
    for limit in limits:
        for stock in (False, True):
            try:
                best = best_shares(scores, {"macs": limit}, stock=stock, tables=tables)
            except PlanError:
                continue
            plans.append((f"{'stock' if stock else 'uniform'}, {limit / full:.0%} of MACs", best.plan))
    for ratio in (0.25, 0.5, 0.75):
        plan = plan_uniform(scores, Ratios.equal(ratio), snap=True)
        plans.append((f"{ratio:.0%} of everything", plan))
    return plans
