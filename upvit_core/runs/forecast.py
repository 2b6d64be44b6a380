"""Top-1 after distillation, forecast from finished runs as a band, and only between their KLs.

Of every finished run of one teacher on one data set with one length and recipe, what counts is how far the student was
from the teacher right after the cut (its measured KL) and how many points of top-1 it was short of the teacher at the
end. A straight line through (log KL, asinh of the points short) is fitted by least squares: many points grow by
factors, as the KL does, few by themselves, and a student may be above its teacher. The band is the 80 % prediction
interval of that line, with Student's quantiles, so it is wide where runs are few or disagree, and narrow near the
teacher. Nothing is forecast from fewer than FEWEST runs, nor for a KL outside the range of theirs.
"""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from upvit_core.runs.spec import RunSpec, absolute
from upvit_core.runs.store import RunStore
from upvit_core.training.settings import DistillSettings

FEWEST = 5
OUTSIDE_RECIPE = {"amp", "seed", "threads", "workers", "eval_every", "eval_images", "teacher_top_k", "tensorboard"}
OUTSIDE_RECIPE.add("checkpoint_minutes")
# 90 % quantiles of Student's t for 1, 2, … degrees of freedom; beyond, the normal's
T90 = (3.078, 1.886, 1.638, 1.533, 1.476, 1.440, 1.415, 1.397, 1.383, 1.372)
NORMAL90 = 1.282


@dataclass(frozen=True)
class Outcome:
    """One finished run: KL right after the cut (nats an image), top-1 of teacher and student at its end, in percent."""

    run: str
    kl: float
    teacher_top1: float
    top1: float


@dataclass(frozen=True)
class Forecast:
    """An 80 % band of top-1, in percent, from `runs` runs; epochs, and the teacher's top-1, are theirs."""

    low: float
    middle: float
    high: float
    runs: int
    epochs: int
    teacher_top1: float


def recipe_of(settings: DistillSettings) -> str:
    """The settings of the training itself, as text: runs of one recipe differ in seed and machine only."""
    return settings.model_dump_json(exclude=OUTSIDE_RECIPE)


def outcomes(store: RunStore, teacher: str, data: str, epochs: int, recipe: str | None = None) -> list[Outcome]:
    """Finished runs of one teacher on one data set with one length that began with the teacher's weights.

    recipe: a text of `recipe_of`, or None for all recipes.
    """
    results = (
        outcome_of(run_id, store.read_metrics(run_id)[0])
        for run_id, spec in _finished(store, teacher, data)
        if spec.epochs == epochs and recipe in (None, recipe_of(spec.settings))
    )
    return [outcome for outcome in results if outcome is not None]


def _finished(store: RunStore, teacher: str, data: str) -> Iterator[tuple[str, RunSpec]]:
    """Ids and specs of finished distillations that began with the teacher's weights."""
    for summary in store.list():
        spec = summary.spec
        if spec is None or summary.state.state != "done" or spec.kind != "distill" or spec.settings.from_scratch:
            continue
        if (spec.teacher, spec.data) == (absolute(teacher), absolute(data)):
            yield summary.id, spec


def outcome_of(run: str, rows: Sequence[Mapping[str, Any]]) -> Outcome | None:
    """The outcome in a run's rows; None where one of the three numbers is missing."""
    teacher = next((row.get("top1") for row in rows if row.get("phase") == "teacher"), None)
    kl = next((row.get("kl_teacher") for row in rows if row.get("phase") == "surgery"), None)
    end = next((row.get("top1") for row in rows if row.get("phase") == "final"), None)
    if teacher is None or not kl or end is None:
        return None
    return Outcome(run, float(kl), float(teacher), float(end))


def kinds(store: RunStore, teacher: str, data: str) -> list[tuple[int, str]]:
    """(epochs, recipe) of finished runs, the commonest first."""
    specs = [spec for _, spec in _finished(store, teacher, data)]
    return [kind for kind, _ in Counter((spec.epochs, recipe_of(spec.settings)) for spec in specs).most_common()]


def forecast(outcomes: Sequence[Outcome], kl: float, epochs: int) -> Forecast | None:
    """The band for a plan whose measured KL right after the cut is `kl`; None where the runs do not reach that far."""
    if len(outcomes) < FEWEST or kl <= 0:
        return None
    x = np.log([outcome.kl for outcome in outcomes])
    short = np.arcsinh([outcome.teacher_top1 - outcome.top1 for outcome in outcomes])
    at = math.log(kl)
    spread = float(((x - x.mean()) ** 2).sum())
    if not x.min() <= at <= x.max() or spread == 0:
        return None
    slope = float(((x - x.mean()) * short).sum()) / spread
    middle = short.mean() + slope * (at - x.mean())
    freedom = len(outcomes) - 2
    residual = short - short.mean() - slope * (x - x.mean())
    error = math.sqrt(float((residual**2).sum()) / freedom * (1 + 1 / len(outcomes) + (at - x.mean()) ** 2 / spread))
    half = (T90[freedom - 1] if freedom <= len(T90) else NORMAL90) * error
    teacher = outcomes[0].teacher_top1
    low, line, high = (teacher - math.sinh(middle + side * half) for side in (1, 0, -1))
    return Forecast(max(low, 0.0), line, min(high, 100.0), len(outcomes), epochs, teacher)
