"""Plans tried in this session, and the points they make on the front."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, astuple, dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import streamlit as st

from pages.services.open_model import OpenModel
from pages.tradeoff.state import state
from upvit_core import units
from upvit_core.figures.pareto import Line, Point
from upvit_core.figures.published import PUBLISHED
from upvit_core.planning.budget_stages import percents_of
from upvit_core.planning.pareto import dominated
from upvit_core.planning.uniform import UniformTable, uniform_table
from upvit_core.planning.what_if import WhatIf
from upvit_core.profiling.macs import count_macs, count_parameters
from upvit_core.records.plan import PruningPlan
from upvit_core.records.scores import ImportanceScores
from upvit_core.records.shape import ModelShape, deit_shape
from upvit_core.records.task import Task

if TYPE_CHECKING:
    from upvit_core.evaluation import Evaluation

COSTS = ("Parameters", "MACs", "Speed-up")
KL = "KL"
MOST_TRIED = 60
DRAWN = 60


@dataclass(frozen=True)
class TriedPlan:
    """One plan that was under the sliders; measured values are None until measured. `value`: what the model is
    judged by, top-1 or perplexity, with its 95 % interval."""

    what_if: WhatIf
    params: int
    macs: int
    removed: float
    speed_up: float
    speed_measured: bool = False
    value: float | None = None
    low: float | None = None
    high: float | None = None
    kl: float | None = None
    images: int = 0

    def measured(self, task: Task, result: Evaluation) -> TriedPlan:
        """The same plan with what was measured of it."""
        low, high = task.interval(result)
        return replace(self, value=task.value(result), low=low, high=high, kl=result.kl, images=result.images)


def with_shares(now: WhatIf, plan: PruningPlan) -> WhatIf:
    """The sliders at the shares of a plan of a staged model, one share for all stages."""
    shares = percents_of(plan)
    return replace(
        now,
        residual=shares["residual"],
        attention=shares["attention"],
        ffn=shares["ffn"],
        reduction=shares.get("reduction"),
    )


def tried(model: OpenModel, scores: ImportanceScores) -> dict[str, TriedPlan]:
    """Plans tried on this model with these scores, oldest first."""
    return state().tried.setdefault(f"{model.source} {scores.digest}", {})


def record(model: OpenModel, scores: ImportanceScores, entry: TriedPlan) -> None:
    """Remember a plan; values measured earlier stay."""
    known = tried(model, scores)
    key = repr(entry.what_if)
    before = known.pop(key, None)
    if before is not None:
        new = asdict(entry)
        kept = {
            k: getattr(before, k) for k, v in new.items() if v in (None, 0) and k not in ("removed", "speed_measured")
        }
        entry = replace(entry, **kept)
        if before.speed_measured and not entry.speed_measured:
            entry = replace(entry, speed_up=before.speed_up, speed_measured=True)
    known[key] = entry
    while len(known) > MOST_TRIED:
        known.pop(next(iter(known)))


@st.cache_resource(max_entries=8, show_spinner=False)
def table(_scores: ImportanceScores, digest: str, heads: int) -> UniformTable:
    return uniform_table(_scores, heads)


@st.cache_resource(max_entries=16, show_spinner=False)
def curves(_scores: ImportanceScores, digest: str, heads: int, cost: str) -> list[Line]:
    """Estimated KL along equal ratios, and along the best uniform plans, against parameters or MACs."""
    all_plans = table(_scores, digest, heads)
    column = "params" if cost == "Parameters" else "macs"
    equal = [all_plans.choice(p, p, p) for p in range(1, 96)]
    best = [choice for choice in all_plans.front(column) if choice.removed > 0]
    best = [best[i] for i in np.unique(np.linspace(0, len(best) - 1, DRAWN).astype(int))]

    def along(choices: list) -> np.ndarray:  # type: ignore[type-arg]
        return np.array([getattr(c, column) for c in choices])

    return [
        Line("equal ratios", along(equal), np.array([c.removed for c in equal]), "dot"),
        Line("best ratios", along(best), np.array([c.removed for c in best])),
    ]


def points(
    model: OpenModel,
    scores: ImportanceScores,
    now: WhatIf,
    cost: str,
    loss: str,
    teacher: float | None,
    others: Sequence[tuple[str, TriedPlan]] = (),
) -> list[Point]:
    """Every plan tried, the one under the sliders, the model itself, published models, and named `others`."""
    task = model.task
    found: list[Point] = []
    own = tried(model, scores)
    every = [("", entry) for entry in own.values()] + [e for e in others if repr(e[1].what_if) not in own]
    for label, entry in every:
        found += _of_entry(label, entry, entry.what_if == now, cost, loss, task)
    if loss != KL:
        if teacher is not None:
            x = {"Parameters": count_parameters(model.shape), "MACs": count_macs(model.shape), "Speed-up": 1.0}[cost]
            found.append(
                Point(
                    model.name,
                    x,
                    teacher,
                    "teacher",
                    f"{model.name}: {task.name.lower()} {task.format(teacher)}, measured",
                )
            )
        if model.shape.num_classes == 1000 and task.key == "top1":
            found += published_points(cost)
    return found


@lru_cache(2000)
def _of_entry(label: str, entry: TriedPlan, here: bool, cost: str, loss: str, task: Task) -> tuple[Point, ...]:
    """One plan as points of the front: estimated, measured, both or none."""
    x = {"Parameters": entry.params, "MACs": entry.macs, "Speed-up": entry.speed_up}[cost]
    if not x:  # a speed-up on a device that is not calibrated
        return ()
    about = f"{label + ': ' if label else ''}{entry.what_if.words} removed: "
    about += f"{units.short(entry.params)} parameters, {units.short(entry.macs)} MACs"
    name = entry.what_if.words if here else ""
    data = json.dumps(astuple(entry.what_if))
    where = f"measured on {entry.images:,} {task.samples}, before any training"
    if loss != KL:
        if entry.value is None:
            return ()
        detail = f"{about}<br>{task.name.lower()} {task.format(entry.value)}, {where}"
        return (Point(name, x, entry.value, "measured", detail, entry.low, entry.high, here, data),)
    found = []
    detail = f"{about}<br>single removals add up to {entry.removed:.3g} {task.nats} (estimated)"
    if entry.what_if.depth is None:  # what blocks cost together, their channels' scores do not tell
        now = here and entry.kl is None
        found.append(Point(name, x, max(entry.removed, 1e-9), "estimated", detail, now=now, data=data))
    if entry.kl is not None:
        detail = f"{about}<br>KL {entry.kl:.3g} {task.nats}, {where}"
        found.append(Point(name, x, max(entry.kl, 1e-9), "measured", detail, now=here, data=data))
    return tuple(found)


def without_dominated(points: list[Point], *, more_is_better: tuple[bool, bool]) -> list[Point]:
    """Leaves out measured plans that another measured one beats in both, and estimated ones likewise.

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
    found = []
    for row in PUBLISHED:
        shape: ModelShape | None = deit_shape(row.widths) if row.widths else None
        x = {"Parameters": row.params * 1e6, "MACs": count_macs(shape) if shape else None, "Speed-up": row.speed_up}[
            cost
        ]
        if x is None:
            continue
        detail = f"top-1 {row.top1} %, {row.params} M parameters, as published" + (f"; {row.note}" if row.note else "")
        found.append(Point(row.name, float(x), row.top1, "published", detail))
    return found
