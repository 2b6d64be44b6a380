"""The best plan within a budget by a map: the solver proposes, estimates decide.

The solver minimises the sum of the scores that go, which does not know that removals of different components do not
weigh alike. With the scores of components multiplied by a few factors it proposes other plans within the same budget,
which the map ranks. Where they can be measured (`measured_best`), the best of the first few and of the solver's own is
taken, so it is never worse; elsewhere another replaces the solver's own only where their bands do not meet.
"""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import product

import numpy as np

from upvit_core.errors import PlanError
from upvit_core.mapping.measure import CutMeter
from upvit_core.mapping.points import Worth
from upvit_core.mapping.surrogate import Estimates, Surrogate
from upvit_core.planning.budget import BestPlan
from upvit_core.planning.curves import predicted_loss
from upvit_core.records.map import MeasuredCut
from upvit_core.records.scores import ImportanceScores

FACTORS = (0.5, 1.0, 2.0, 4.0)
MEASURED = 3


@dataclass(frozen=True)
class Ranked:
    """Plans within one budget and their estimates, row by row: the solver's own is row 0, `best` the one to take."""

    plans: tuple[BestPlan, ...]
    estimates: Estimates
    best: int


def rank(surrogate: Surrogate, scores: ImportanceScores, solve: Callable[[ImportanceScores], BestPlan]) -> Ranked:
    """The solver's plan and others that it proposes, by the map. Raises PlanError where it finds none.

    solve: the best plan by some scores, within the budget.
    """
    own = solve(scores)
    found = {own.plan.digest: own}
    for residual, attention in product(FACTORS, FACTORS):
        factors = {"residual": residual, "attention": attention}
        values = {key: row * factors.get(key.partition(".")[0], 1.0) for key, row in scores.values.items()}
        with suppress(PlanError):
            other = solve(scores.with_values(values))
            plan = other.plan.model_copy(update={"scores_digest": scores.digest})
            lost = predicted_loss(scores, plan)
            found.setdefault(plan.digest, replace(other, plan=plan, predicted=lost, bound=own.bound))
    plans, worth = tuple(found.values()), Worth(scores, own.plan.basis)
    estimates = surrogate.estimate([worth.of(best.plan) for best in plans])
    least = int(np.argmin(estimates.kl))
    return Ranked(plans, estimates, least if estimates.kl_high[least] < estimates.kl_low[0] else 0)


def measured_best(meter: CutMeter, ranked: Ranked) -> tuple[BestPlan, tuple[MeasuredCut, ...]]:
    """Measure the solver's own plan and the MEASURED plans that the map ranks first.

    Returns the plan with the least measured KL, and all cuts that were measured, the solver's own first.
    """
    first = [int(row) for row in np.argsort(ranked.estimates.kl)[:MEASURED] if row]
    rows = [0, *first]
    cuts = tuple(meter.measure(ranked.plans[row].plan) for row in rows)
    return ranked.plans[rows[int(np.argmin([cut.kl for cut in cuts]))]], cuts
