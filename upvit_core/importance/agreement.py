"""Agreement of two scores of the same channels: Spearman's rank correlation and overlap of the channels kept."""

from dataclasses import dataclass

import numpy as np

from upvit_core.records.plan import PruningPlan
from upvit_core.records.scores import ImportanceScores


@dataclass(frozen=True)
class Agreement:
    """Per component: Spearman's correlation averaged over blocks, the lowest of any block, and the kept-set overlap.

    `overlap` is the share of the channels that the first plan keeps which the second keeps too.
    """

    component: str
    spearman: float
    spearman_lowest: float
    overlap: float


def ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 0, equals sharing their mean rank."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return ((last - counts + last - 1) / 2)[inverse]


def spearman(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's rank correlation; 1 where either is constant and both are equal, else 0 there."""
    x, y = ranks(a), ranks(b)
    x, y = x - x.mean(), y - y.mean()
    norm = float(np.sqrt((x @ x) * (y @ y)))
    return float(x @ y) / norm if norm else float(np.array_equal(a, b))


def compare(a: ImportanceScores, b: ImportanceScores, plan_a: PruningPlan, plan_b: PruningPlan) -> list[Agreement]:
    """Agreement of two records of one model, and of the plans that they give for the same widths."""
    result = []
    for component in a.shape.components:
        keys = [key for key in a.values if key.split(".")[0] == component]
        correlations = [spearman(a.values[key], b.values[key]) for key in keys]
        kept_a, kept_b = _kept(plan_a, component), _kept(plan_b, component)
        result.append(
            Agreement(
                component, float(np.mean(correlations)), min(correlations), len(kept_a & kept_b) / max(len(kept_a), 1)
            )
        )
    return result


def _kept(plan: PruningPlan, component: str) -> set[tuple[str, int]]:
    keys = [group.key for group in plan.shape_before.groups if group.component == component]
    return {(key, c) for key in keys for c in plan.kept(key)}


def uncertain(scores: ImportanceScores, plan: PruningPlan, errors: float = 2.0) -> dict[str, tuple[int, int]]:
    """By component, the number of channels within `errors` standard errors of the cut, and the number of all.

    The cut is halfway between the lowest score that the plan keeps and the highest that it removes, among channels that
    compete for the same places (all of a group, or those of one merged head). Components without
    standard errors are left out.
    """
    counts: dict[str, tuple[int, int]] = {}
    for group in scores.shape.groups:
        if group.key not in scores.stderr:
            continue
        heads = (plan.heads_of(group.place) or 1) if group.component == "attention" else 1
        values, spread = (part[group.key].reshape(heads, -1) for part in (scores.values, scores.stderr))
        kept = np.isin(np.arange(group.width), plan.kept(group.key)).reshape(heads, -1)
        count = 0
        for score, error, stays in zip(values, spread, kept, strict=True):
            if stays.any() and not stays.all():
                cut = (score[stays].min() + score[~stays].max()) / 2
                count += int((np.abs(score - cut) < errors * error).sum())
        before = counts.get(group.component, (0, 0))
        counts[group.component] = (before[0] + count, before[1] + group.width)
    return counts
