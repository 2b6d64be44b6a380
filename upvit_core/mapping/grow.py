"""Grow a map: measure one cut after another, save after each, and stop once the estimates are good enough."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from upvit_core.errors import MapError
from upvit_core.importance.criterion import Clock, Report, silent
from upvit_core.mapping.design import Design
from upvit_core.mapping.measure import CutMeter
from upvit_core.mapping.points import Worth
from upvit_core.mapping.surrogate import Surrogate
from upvit_core.planning.what_if import WhatIf
from upvit_core.records.map import LeaveOneOut, Map, Origin
from upvit_core.records.plan import PruningPlan

CUTS = 48
FIRST = 24
"""Cuts of the design before estimates choose some."""
EVERY = 12
"""The errors are looked at after so many cuts."""
PICKED = 3
"""After the first, one cut in so many lies where estimates are least sure."""
LEAST_KL = 0.01
"""A plan whose KL is estimated below this needs no better estimate."""


@dataclass(frozen=True)
class Goal:
    """Errors at which a map is good enough, each cut estimated from all others.

    Medians, and for the KL the 95th percentile; errors of the value are in points of top-1, or 1/100 of a perplexity.
    """

    kl: float = 0.05
    kl_95: float = 0.3
    value: float = 0.75

    def is_met(self, errors: LeaveOneOut, in_percent: bool) -> bool:
        value = errors.value if in_percent else 100 * errors.value
        return errors.kl <= self.kl and errors.kl_95 <= self.kl_95 and value <= self.value


def grow(
    meter: CutMeter,
    known: Map | None = None,
    *,
    most: int = CUTS,
    near: WhatIf | None = None,
    goal: Goal | None = None,
    report: Report = silent,
    on_cut: Callable[[Map], None] = lambda record: None,
) -> Map:
    """The map with cuts measured until `most`, or until its errors meet the goal (None: the usual one).

    known: a map to go on with. near: a position of the sliders near which estimates should be sure too. `on_cut`
    receives the map after each cut, to save it; raising `Cancelled` there or in `report` stops between two cuts.
    Raises MapError where `known` is of something else.
    """
    empty = meter.empty()
    record = known or empty
    if record.belongs_to != empty.belongs_to:
        raise MapError(
            "This map is of another model, other scores, another basis or other images; choose another file to write."
        )
    in_percent, goal = meter.task.in_percent, goal or Goal()
    clock = Clock(most, "cuts", report)
    clock.skip(min(len(record.cuts), most))
    plans = _Plans(meter, record, near)
    while len(record.cuts) < most:
        plan, origin = plans.next(record)
        record = record.with_cut(meter.measure(plan, origin))
        if len(record.cuts) % EVERY == 0 or len(record.cuts) == most:
            record = with_errors(record)
        on_cut(record)
        clock.advance(1, "measuring cuts")
        last = record.errors[-1] if record.errors else None
        if last and last.cuts == len(record.cuts) >= FIRST and goal.is_met(last, in_percent):
            break
    return record


def with_errors(record: Map) -> Map:
    """The map with its present errors; as it is where it has too few cuts."""
    try:
        return record.with_errors(Surrogate(record).errors)
    except MapError:
        return record


class _Plans:
    """The next plan to measure."""

    def __init__(self, meter: CutMeter, record: Map, near: WhatIf | None):
        self._design, self._near, self._worth = (
            Design(meter.scores, meter.basis),
            near,
            Worth(meter.scores, meter.basis),
        )
        self._sequence = self._design.plans(sum(cut.origin == "design" for cut in record.cuts))
        self._picked: list[PruningPlan] = []

    def next(self, record: Map) -> tuple[PruningPlan, Origin]:
        """Raises MapError where every plan of this model is measured."""
        if len(record.cuts) >= FIRST and len(record.cuts) % PICKED == PICKED - 1:
            self._picked = self._picked or self._least_sure(record)
            fresh = _fresh(iter(self._picked), record)
            if fresh is not None:
                self._picked.remove(fresh)
                return fresh, "uncertain"
        fresh = _fresh(self._sequence, record)
        if fresh is None:
            raise MapError(f"All plans of {record.shape.name} that the design has are measured; ask for fewer cuts.")
        return fresh, "design"

    def _least_sure(self, record: Map) -> list[PruningPlan]:
        """A few plans of the front and around the sliders, in turns, the least sure first."""
        surrogate = Surrogate(record)
        groups = [self._design.front(), [] if self._near is None else self._design.around(self._near)]
        ranked = []
        for plans in filter(None, groups):
            points = [self._worth.of(plan) for plan in plans]
            matters = surrogate.estimate(points).kl > LEAST_KL
            order = np.argsort(-np.where(matters, surrogate.uncertainty(points), 0.0), kind="stable")
            ranked.append([plans[n] for n in order[: EVERY // PICKED]])
        return [plan for turn in zip(*ranked, strict=False) for plan in turn][: EVERY // PICKED]


def _fresh(plans: Iterator[PruningPlan], record: Map) -> PruningPlan | None:
    """The first plan that is not measured and removes something."""
    whole = record.shape
    return next((p for p in plans if record.measured(p.digest) is None and p.shape_after != whole), None)
