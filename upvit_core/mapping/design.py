"""The plans to measure: spread evenly over the sliders at first, then where estimates are least sure.

Of every four plans, two are spread over all positions of the sliders; one removes little (shares of 95 % · u² for a
uniform u; n heads with a probability in proportion to n), since nobody wants a ruined model; and one is the solver's
best within a budget of MACs, whose blocks differ. Each kind follows a scrambled Sobol sequence of its own, over shares,
heads and budget.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import suppress

import numpy as np
import torch

from upvit_core.errors import PlanError
from upvit_core.planning.budget import Budget, best_plan
from upvit_core.planning.budget_stages import Tables, best_shares
from upvit_core.planning.what_if import MAX_REMOVED_PERCENT, WhatIf, head_options
from upvit_core.profiling.macs import count_macs
from upvit_core.records.basis import Basis
from upvit_core.records.plan import PruningPlan
from upvit_core.records.scores import ImportanceScores

SEED = 0
POINTS = 512
"""Length of each sequence."""
KINDS = ("everywhere", "little", "everywhere", "solver")
LEAST_MACS = 0.15
"""The smallest share of the model's MACs that the solver is given."""
FRONT = 24
"""Plans of the solver, and positions around the sliders, among which the least sure is sought."""
NEAR = 15
"""The largest distance of such a position, in percent."""


class Design:
    """Plans for the sliders of one model, by number: the same ones each time. Equal plans may come again."""

    def __init__(self, scores: ImportanceScores, basis: Basis = Basis.CHANNELS):
        self.scores, self.basis = scores, basis
        self.heads = head_options(scores.shape)
        self.components = scores.shape.components
        self._points = {kind: self._sequence(SEED + number) for number, kind in enumerate(sorted(set(KINDS)))}
        self._tables = Tables(scores) if scores.shape.one_share else None
        self._macs = count_macs(scores.shape)

    def _sequence(self, seed: int) -> np.ndarray:
        engine = torch.quasirandom.SobolEngine(len(self.components) + 2, scramble=True, seed=seed)
        return np.asarray(engine.draw(POINTS).double())

    def plans(self, start: int = 0) -> Iterator[PruningPlan]:
        """Plan `start` of the design and those after it; budgets that no plan meets are left out."""
        turns = itertools.islice(itertools.cycle(KINDS), 2 * POINTS)
        taken = dict.fromkeys(KINDS, 0)
        for number, kind in enumerate(turns):
            taken[kind] += 1
            if number >= start:
                with suppress(PlanError):
                    yield self.at(kind, taken[kind] - 1)

    def at(self, kind: str, number: int) -> PruningPlan:
        """The plan at a point of a sequence. Raises PlanError where a budget is out of reach."""
        *shares, heads, u = self._points[kind][number]
        merged = self._heads_at(heads, kind != "everywhere")
        if kind != "solver":
            power = 2 if kind == "little" else 1
            percents = [round(MAX_REMOVED_PERCENT * share**power) for share in shares]
            named = dict(zip(self.components, percents, strict=True))
            return self.plan_of(WhatIf(0, 0, merged, 0, self.basis).with_percents(named))
        macs = self._macs * LEAST_MACS ** (1 - u)
        if self._tables is not None:
            return best_shares(self.scores, {"macs": macs}, tables=self._tables).plan
        return best_plan(self.scores, Budget(macs=macs), heads=merged, basis=self.basis).plan

    def front(self) -> list[PruningPlan]:
        """Plans of the solver, other than those that come first."""
        plans = []
        for number in range(POINTS - FRONT, POINTS):
            with suppress(PlanError):
                plans.append(self.at("solver", number))
        return plans

    def around(self, what_if: WhatIf) -> list[PruningPlan]:
        """The plan under the sliders and positions near it."""
        rng, plans = np.random.default_rng(SEED), [self.plan_of(what_if)]
        for _ in range(FRONT):
            moves = rng.uniform(-NEAR, NEAR, len(what_if.percents))
            moved = {
                name: float(np.clip(round(percent + move), 0, MAX_REMOVED_PERCENT))
                for (name, percent), move in zip(what_if.percents.items(), moves, strict=True)
            }
            plans.append(self.plan_of(what_if.with_percents(moved, widths="")))
        return plans

    def plan_of(self, what_if: WhatIf) -> PruningPlan:
        """The plan of a position of the sliders, as the app makes it."""
        return what_if.adapted_to(self.scores).plan_widths(self.scores)

    def _heads_at(self, u: float, by_count: bool) -> int | None:
        if not self.heads:
            return None
        kept = np.cumsum(np.array(self.heads, float) ** by_count)
        return self.heads[int(np.searchsorted(kept / kept[-1], u, side="right").clip(0, len(kept) - 1))]
