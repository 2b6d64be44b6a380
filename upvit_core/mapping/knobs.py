"""The slider that matters most to the measured cuts of a map, by permutation importance (Breiman, 2001)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from upvit_core.mapping.points import Worth
from upvit_core.mapping.surrogate import Surrogate
from upvit_core.records.map import CutPoint

HEADS = "heads"
REPEATS = 10


def importance(surrogate: Surrogate, worth: Worth, *, repeats: int = REPEATS, seed: int = 0) -> dict[str, float]:
    """The rise of the map's error at its measured cuts once one slider's settings are dealt among them at random.

    By component, and `heads` where they differ: the mean over `repeats` deals of the rise of the mean absolute error,
    in points of top-1, or in perplexity. Cuts without some half-block are left out.
    """
    from sklearn.inspection import permutation_importance

    shape, task = surrogate.record.shape, surrogate.task
    cuts = [cut for cut in surrogate.record.cuts if all(group.key in cut.widths for group in shape.groups)]
    names: list[str] = (
        [*shape.components, HEADS] if len({*(str(cut.heads) for cut in cuts)}) > 1 else [*shape.components]
    )
    values = np.array([task.value(cut) for cut in cuts])

    class Dealt:
        """Estimates of cuts (n,) that take each slider's setting from the measured cut of that row, (n, sliders)."""

        def fit(self, X: object, y: object) -> Dealt:
            return self

        def predict(self, rows: np.ndarray) -> np.ndarray:
            return surrogate.estimate([self._cut(row) for row in rows]).value

        def _cut(self, row: Sequence[int]) -> CutPoint:
            at = {name: cuts[int(number)] for name, number in zip(names, row, strict=True)}
            widths = {group.key: at[group.component].widths[group.key] for group in shape.groups}
            return worth.at(widths, at.get(HEADS, cuts[int(row[0])]).heads)

    def right(estimator: Any, rows: np.ndarray, truth: np.ndarray) -> float:
        return -float(np.abs(estimator.predict(rows) - truth).mean())

    own = np.repeat(np.arange(len(cuts))[:, None], len(names), axis=1)
    found = permutation_importance(Dealt(), own, values, scoring=right, n_repeats=repeats, random_state=seed)
    return dict(zip(names, found.importances_mean.tolist(), strict=True))
