"""Scores of a component as rows and columns, with what no plan changes of them: logarithms and ranking.

Those are kept for the records drawn last, since sliders draw the same record at every move.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from upvit_core.importance.scores import ImportanceScores
from upvit_core.models.shape import Component

MOST_KEPT = 64
_kept: dict[tuple[Any, ...], Any] = {}


def component_rows(scores: ImportanceScores, component: Component, blocks: Sequence[int] | None = None) -> np.ndarray:
    """Scores of a component, (rows, channels): a row a block, of the residual a row a stage (one, without stages).

    Rows of unequal widths are filled up with NaN.
    """
    shape = scores.shape
    places = [group.place for group in shape.groups_of(component)] if blocks is None else blocks
    rows = [scores.values[shape.key_of(component, place)] for place in places]
    width = max(map(len, rows))
    return np.stack([np.pad(row.astype(float), (0, width - len(row)), constant_values=np.nan) for row in rows])


def logs_of(
    scores: ImportanceScores, component: Component, blocks: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray, float]:
    """log10 of the scores and which of them there are, (R, C) each, and the least score above zero."""

    def make() -> tuple[np.ndarray, np.ndarray, float]:
        raw = component_rows(scores, component, blocks)
        known, positive = ~np.isnan(raw), raw[raw > 0]
        floor = float(positive.min()) if positive.size else 1e-12
        return np.log10(np.maximum(raw, floor, where=known, out=np.full_like(raw, np.nan))), known, floor

    found: tuple[np.ndarray, np.ndarray, float] = _once(("logs", scores.digest, component, blocks), make)
    return found


def ranking_of(scores: ImportanceScores, component: Component, blocks: tuple[int, ...], groups: int) -> np.ndarray:
    """Channels of every row, (R, C), the most important first inside each of `groups` equal parts."""

    def make() -> np.ndarray:
        raw = component_rows(scores, component, blocks)
        R, C = raw.shape
        ranking = np.argsort(-raw.reshape(R, groups, C // groups), axis=-1, kind="stable")
        return (ranking + (np.arange(groups) * (C // groups))[None, :, None]).reshape(R, C)

    found: np.ndarray = _once(("ranking", scores.digest, component, blocks, groups), make)
    return found


def _once(key: tuple[Any, ...], make: Callable[[], Any]) -> Any:
    found = _kept.get(key)
    if found is None:
        found = _kept[key] = make()
        while len(_kept) > MOST_KEPT:
            _kept.pop(next(iter(_kept)), None)
    return found
