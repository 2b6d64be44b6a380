"""Good plans of the open model: the solver's best at several sizes, and the next three that are worth a run."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from pages.services import folders, forecast, jobs, maps, run_data
from pages.services.open_model import OpenModel
from upvit_core.planning.budget_stages import percents_of
from upvit_core.planning.curves import share_removed
from upvit_core.planning.pareto import candidate_plans, most_gain
from upvit_core.planning.what_if import WhatIf, what_if_from_widths
from upvit_core.planning.widths import widths_of
from upvit_core.profiling.macs import count_macs, count_parameters
from upvit_core.records.basis import Basis
from upvit_core.records.plan import PruningPlan
from upvit_core.records.scores import ImportanceScores
from upvit_core.runs.store import RunStore

NORMAL90 = 1.2816
MOST_LOST = 10.0
"""Points under the original beyond which a plan is not worth a run; of a perplexity, percent above it."""


@dataclass(frozen=True)
class Candidate:
    """A plan, its counts, and the share of the score that goes."""

    name: str
    plan: PruningPlan
    what_if: WhatIf
    params: int
    macs: int
    removed: float


@dataclass(frozen=True)
class Next:
    """A plan that is worth a run: what is expected of it, as a band of 80 %, after `epochs`, or before any training."""

    candidate: Candidate
    low: float
    high: float
    epochs: int | None


def find(model: OpenModel, scores: ImportanceScores, now: WhatIf) -> jobs.Job[list[Candidate]]:
    """The job that finds the best plans at ten shares of the MACs, of three kinds."""

    def work(report: jobs.Report) -> list[Candidate]:
        basis = Basis.DIRECTIONS if scores.basis == Basis.DIRECTIONS else now.basis
        if model.shape.one_share:
            plans = candidate_plans(scores)
        else:
            plans = candidate_plans(scores, heads=now.heads, round_to=now.round_to, basis=basis)
        plain = replace(now, widths="", depth=None)
        candidates = []
        for name, plan in plans:
            shape = plan.shape_after
            if shape.one_share:
                what_if = plain.with_percents(percents_of(plan), allocation="uniform", round_to=1)
            else:
                what_if = what_if_from_widths(widths_of(shape), model.shape, plain)
            counts = count_parameters(shape), count_macs(shape)
            candidates.append(Candidate(name, plan, what_if, *counts, share_removed(scores, plan)))
        return candidates

    return jobs.ensure(key_of("front", model, scores, now), work, "Finding good plans")


def key_of(step: str, model: OpenModel, scores: ImportanceScores, now: WhatIf) -> str:
    return f"{step} {model.data_key} {scores.digest} {now.heads} {now.round_to} {now.basis} {now.repair}"


def next_runs(model: OpenModel, known: maps.Known, candidates: list[Candidate], count: int = 3) -> list[Next]:
    """The candidates that are expected to add most to the front of the original and of finished runs, the best first.

    Accuracy is forecast from finished runs where they reach, else taken from the map, before any training. Shapes that
    were run are left out; of those that will be, what is expected stands on the front.
    """
    task, whole = model.task, known.surrogate.task.value(known.record.whole)

    def lost(value: float, of: float) -> float:
        """Points, or percent of a perplexity, by which a value is worse than the original's."""
        return of - value if task.more_is_better else 100 * (value / of - 1)

    front, done, pending = [(1.0, 0.0)], set(), set()
    store, macs = RunStore(folders.runs()), count_macs(model.shape)
    for run in store.list():
        if run.spec is None or (run.spec.teacher, run.spec.kind) != (model.model, "distill"):
            continue
        if (shape := run_data.shape_of(store, run.id, run.spec)) is None:
            continue
        if run.state.is_active:
            pending.add((shape.embed_dims, shape.blocks))
        points = run_data.rows().points(store, run.id)
        last, teacher = (points.evals or [{}])[-1], points.teacher or {}
        if run.state.state == "done" and task.key in last and task.key in teacher:
            done.add((shape.embed_dims, shape.blocks))
            front.append((count_macs(shape) / macs, lost(last[task.key], teacher[task.key])))
    found: list[Next] = []
    expected: list[tuple[float, float]] = []
    for candidate in candidates:
        widths, at = (
            (candidate.plan.shape_after.embed_dims, candidate.plan.shape_after.blocks),
            known.of(candidate.plan),
        )
        if at is None or widths in done:
            continue
        done.add(widths)
        ahead = forecast.forecast_at(model, (at.kl, at.kl_low, at.kl_high)) if task.more_is_better else None
        if ahead is not None:
            each = Next(candidate, ahead.low, ahead.high, ahead.epochs)
            middle, original = ahead.middle, ahead.teacher_top1
        else:
            each = Next(candidate, at.value_low, at.value_high, None)
            middle, original = at.value, whole
        if widths in pending:
            front.append((candidate.macs / macs, lost(middle, original)))
            continue
        found.append(each)
        spread = abs(lost(each.low, original) - lost(each.high, original)) / (2 * NORMAL90)
        expected.append((lost(middle, original), spread))
    if not found:
        return []
    costs, (losses, spreads) = np.array([n.candidate.macs / macs for n in found]), np.transpose(expected)
    return [found[n] for n in most_gain(np.array(front), costs, losses, spreads, (1.0, MOST_LOST), count)]
