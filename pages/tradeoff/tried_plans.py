"""Plans tried in this session, and the points they make in the Pareto chart."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import astuple, dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import streamlit as st

from pages.services.maps import Estimate, Known
from pages.services.open_model import OpenModel
from pages.tradeoff.state import state
from upvit_core import units
from upvit_core.figures.pareto import Line, Point
from upvit_core.figures.published import PUBLISHED
from upvit_core.planning.curves import total_score
from upvit_core.planning.pareto import dominated
from upvit_core.planning.ratios import uniform_widths
from upvit_core.planning.uniform import uniform_table
from upvit_core.planning.what_if import WhatIf
from upvit_core.profiling.macs import count_macs, count_parameters
from upvit_core.records.known_shapes import deit_shape
from upvit_core.records.ratios import Ratios
from upvit_core.records.scores import ImportanceScores
from upvit_core.records.shape import ModelShape
from upvit_core.records.task import Task
from upvit_core.records.tour import Tour

if TYPE_CHECKING:
    from upvit_core.evaluation import Evaluation

COSTS = ("Parameters", "MACs", "Speed-up")
SCORE = "Score removed"
KL = "KL"
MOST_TRIED = 60
DRAWN = 60


@dataclass(frozen=True)
class TriedPlan:
    """One plan that was under the sliders; `removed` is the share of the score that goes, from 0 to 1.

    Measured values are None until measured; `mapped` is what the map tells.

    speed_up: 0 where it is not known. value: top-1 or perplexity, with its 95 % interval.
    """

    what_if: WhatIf
    params: int
    macs: int
    removed: float
    speed_up: float = 0.0
    speed_measured: bool = False
    value: float | None = None
    low: float | None = None
    high: float | None = None
    kl: float | None = None
    images: int = 0
    mapped: Estimate | None = None

    def measured(self, task: Task, result: Evaluation) -> TriedPlan:
        """The same plan with what was measured of it."""
        low, high = task.interval(result)
        return replace(self, value=task.value(result), low=low, high=high, kl=result.kl, images=result.images)

    def with_earlier(self, before: TriedPlan) -> TriedPlan:
        """The same plan with earlier measurements where it has none of its own."""
        entry = self
        if entry.value is None:
            entry = replace(
                entry, value=before.value, low=before.low, high=before.high, kl=before.kl, images=before.images
            )
        if not entry.speed_measured and (before.speed_measured or not entry.speed_up):
            entry = replace(entry, speed_up=before.speed_up, speed_measured=before.speed_measured)
        return entry

    def cost(self, axis: str) -> float:
        return {"Parameters": self.params, "MACs": self.macs, "Speed-up": self.speed_up}[axis]


def all_tried(model: OpenModel, scores: ImportanceScores) -> dict[str, TriedPlan]:
    """Plans tried on this model with these scores, oldest first."""
    return state().tried.setdefault(f"{model.source} {scores.digest}", {})


def record(model: OpenModel, scores: ImportanceScores, entry: TriedPlan) -> None:
    """Remember a plan; values measured earlier stay."""
    known, key = all_tried(model, scores), repr(entry.what_if)
    before = known.pop(key, None)
    known[key] = entry if before is None else entry.with_earlier(before)
    while len(known) > MOST_TRIED:
        known.pop(next(iter(known)))


@st.cache_resource(max_entries=16, show_spinner=False)
def ratio_curves(_scores: ImportanceScores, digest: str, heads: int, cost: str) -> list[Line]:
    """Score removed in per cent along equal ratios, and along the best uniform plans, against parameters or MACs."""
    table, column = uniform_table(_scores, heads), "params" if cost == "Parameters" else "macs"
    whole = total_score(_scores) or 1.0
    equal = [table.choice(percent, percent, percent) for percent in range(1, 96)]
    best = [choice for choice in table.front(column) if choice.removed > 0]
    best = [best[i] for i in np.unique(np.linspace(0, len(best) - 1, DRAWN).astype(int))]
    return [
        Line(
            name,
            np.array([getattr(choice, column) for choice in choices]),
            100 * np.array([choice.removed for choice in choices]) / whole,
            dash,
        )
        for name, choices, dash in (("equal ratios", equal, "dot"), ("best ratios", best, "solid"))
    ]


@st.cache_resource(max_entries=16, show_spinner=False)
def tour_curves(_tour: Tour, digest: str, shape: ModelShape, cost: str) -> list[Line]:
    """Measurements of the demo at equal shares, both ways, against parameters or MACs."""
    count = count_parameters if cost == "Parameters" else count_macs
    ways, x = _tour.ways, []
    for percent in range(len(ways["paper"].top1)):
        widths, heads = uniform_widths(shape, Ratios.equal(percent / 100), heads=shape.num_heads, snap=True)
        x.append(count(shape.with_widths(widths, heads)))
    return [
        Line("rotated, cut, repaired", np.array(x), np.array(ways["repaired"].top1), strong=True),
        Line("cut as in the paper", np.array(x), np.array(ways["paper"].top1), "dash"),
    ]


def original_line(value: float, most: float, text: str) -> Line:
    return Line(f"original {text}", np.array([0.0, most]), np.array([value, value]), "dot")


@st.cache_resource(max_entries=16, show_spinner=False)
def mapped_curve(_known: Known, _scores: ImportanceScores, now: WhatIf, digest: str, cost: str, loss: str) -> Line:
    """The map's estimates of equal ratios against parameters or MACs; `now` has the heads and the basis."""
    plans = []
    for percent in range(2, 96, 4):
        even = now.with_percents(dict.fromkeys(now.percents, float(percent)), widths="", depth=None)
        plans.append(even.plan(_scores))
    count = count_parameters if cost == "Parameters" else count_macs
    found = _known.at([_known.worth.of(plan) for plan in plans])
    return Line(
        "equal ratios, estimated",
        np.array([count(plan.shape_after) for plan in plans]),
        found.kl if loss == KL else found.value,
        "dot",
    )


def pareto_points(
    model: OpenModel,
    scores: ImportanceScores,
    now: WhatIf,
    cost: str,
    loss: str,
    teacher: float | None,
    others: Sequence[tuple[str, TriedPlan]] = (),
) -> list[Point]:
    """Every plan tried, the one under the sliders, the model itself, published models, and named `others`."""
    task, tried = model.task, all_tried(model, scores)
    named = [("", entry) for entry in tried.values()]
    named += [(label, entry) for label, entry in others if repr(entry.what_if) not in tried]
    points: list[Point] = []
    for label, entry in named:
        points += _points_of(label, entry, entry.what_if == now, cost, loss, task)
    if loss == task.name:
        if teacher is not None:
            whole = TriedPlan(now, count_parameters(model.shape), count_macs(model.shape), 0.0, speed_up=1.0)
            detail = f"{model.name}: {task.name.lower()} {task.format(teacher)}, measured"
            points.append(Point(model.name, whole.cost(cost), teacher, "teacher", detail))
        if model.shape.num_classes == 1000 and task.key == "top1":
            points += published_points(cost)
    return points


@lru_cache(2000)
def _points_of(label: str, entry: TriedPlan, here: bool, cost: str, loss: str, task: Task) -> tuple[Point, ...]:
    """One plan as a point of the chart, or none where its value is not known."""
    x = entry.cost(cost)
    if not x:  # a speed-up on a device that is not calibrated
        return ()
    about = f"{label + ': ' if label else ''}{entry.what_if.words} removed: "
    about += f"{units.short(entry.params)} parameters, {units.short(entry.macs)} MACs"
    name = "this plan" if here else ""
    data = json.dumps(astuple(entry.what_if))
    where = f"measured on {entry.images:,} {task.samples}, before any training"
    if loss == SCORE:
        if entry.what_if.depth is not None:  # scores of channels do not tell what blocks cost
            return ()
        detail = f"{about}<br>{units.share(entry.removed)} of the score"
        return (Point(name, x, max(100 * entry.removed, 1e-7), "estimated", detail, now=here, data=data),)
    if loss in (KL, task.name) and (entry.kl if loss == KL else entry.value) is None:
        return _mapped_point(name, x, entry, about, data, here, loss, task)
    if loss == KL:
        assert entry.kl is not None
        detail = f"{about}<br>KL {entry.kl:.3g} {task.nats}, {where}"
        return (Point(name, x, max(entry.kl, 1e-9), "measured", detail, now=here, data=data),)
    assert entry.value is not None
    detail = f"{about}<br>{task.name.lower()} {task.format(entry.value)}, {where}"
    return (Point(name, x, entry.value, "measured", detail, entry.low, entry.high, here, data),)


def _mapped_point(
    name: str, x: float, entry: TriedPlan, about: str, data: str, here: bool, loss: str, task: Task
) -> tuple[Point, ...]:
    """A plan that was not measured where the map puts it, with its 80 % band; none without a map."""
    found = entry.mapped
    if found is None:
        return ()
    where = f"from {found.cuts} measured cuts, with a band of 80 %"
    if loss == KL:
        detail = f"{about}<br>KL {found.kl:.2g} {task.nats}, {where}"
        return (Point(name, x, found.kl, "estimated", detail, found.kl_low, found.kl_high, here, data),)
    detail = f"{about}<br>{task.name.lower()} {task.format(found.value)}, {where}"
    return (Point(name, x, found.value, "estimated", detail, found.value_low, found.value_high, here, data),)


def without_dominated(points: list[Point], *, more_is_better: tuple[bool, bool]) -> list[Point]:
    """The points without measured plans that another measured one beats in both axes, and estimated ones likewise.

    The plan under the sliders, the model itself and published models stay.
    """
    hidden: set[int] = set()
    for kind in ("measured", "estimated"):
        own = [n for n, point in enumerate(points) if point.kind == kind]
        signs = [-1 if more else 1 for more in more_is_better]
        values = np.array([[signs[0] * points[n].x, signs[1] * points[n].y] for n in own], float).reshape(-1, 2)
        hidden |= {n for n, beaten in zip(own, dominated(values), strict=True) if beaten and not points[n].now}
    return [point for n, point in enumerate(points) if n not in hidden]


def published_points(cost: str) -> list[Point]:
    """Published ImageNet models that have a value on this axis."""
    points = []
    for row in PUBLISHED:
        shape: ModelShape | None = deit_shape(row.widths) if row.widths else None
        macs = count_macs(shape) if shape else None
        x = {"Parameters": row.params * 1e6, "MACs": macs, "Speed-up": row.speed_up}[cost]
        if x is not None:
            note = f"; {row.note}" if row.note else ""
            detail = f"top-1 {row.top1} %, {row.params} M parameters, as published{note}"
            points.append(Point(row.name, float(x), row.top1, "published", detail))
    return points
