"""Parameters and MACs for the browser, as polynomials of widths, and the widths at every slider position.

So a dragged slider shows exact numbers without asking the server.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from upvit_core.planning.cost_model import COUNTS, CostModel
from upvit_core.planning.ratios import uniform_widths
from upvit_core.planning.what_if import MAX_REMOVED_PERCENT, head_options
from upvit_core.records.ratios import Ratios
from upvit_core.records.shape import Component, ModelShape


@lru_cache(16)
def live_counts(shape: ModelShape) -> dict[str, Any]:
    """Parameters and MACs as polynomials of the widths, and widths by heads (0: as they are), group and percent."""
    keys = [group.key for group in shape.groups]
    number = {key: place for place, key in enumerate(keys)}
    counts = {}
    for name, count in COUNTS.items():
        base, slopes, crosses = CostModel(count, shape).terms()
        counts[name] = {
            "base": base,
            "slopes": [slopes[key] for key in keys],
            "crosses": [(number[a], number[b], cross) for a, b, cross in crosses],
        }
    return {
        "components": [group.component for group in shape.groups],
        "full": [group.width for group in shape.groups],
        "depth": shape.depth,
        "counts": counts,
        "widths": {str(heads or 0): _widths(shape, heads) for heads in head_options(shape) or (None,)},
    }


def widths_at(shape: ModelShape, heads: int | None, percents: Mapping[Component, int]) -> dict[str, int]:
    """The width of every group at percents removed by component; a reduction not given goes with the residual."""
    model = live_counts(shape)
    table = model["widths"].get(str(heads or 0)) or next(iter(model["widths"].values()))
    rows = (table["rows"][row] for row in table["row"])
    at: dict[Component, int] = {"reduction": percents["residual"], **percents}
    return {group.key: row[at[group.component]] for group, row in zip(shape.groups, rows, strict=True)}


def _widths(shape: ModelShape, heads: int | None) -> dict[str, Any]:
    """The distinct rows of widths by percent removed, and for each group the number of its row."""
    rows: dict[tuple[int, ...], int] = {}
    by_percent = [
        uniform_widths(shape, _even(shape, percent), heads=heads, snap=True)[0]
        for percent in range(MAX_REMOVED_PERCENT + 1)
    ]
    chosen = []
    for group in shape.groups:
        row = tuple(widths[group.key] for widths in by_percent)
        chosen.append(rows.setdefault(row, len(rows)))
    return {"rows": list(rows), "row": chosen}


def _even(shape: ModelShape, percent: int) -> Ratios:
    share = percent / 100
    return Ratios(share, share, share, share if "reduction" in shape.components else None)


def reachable(shape: ModelShape, heads: int | None, component: str) -> list[int]:
    """The whole percents removed of a component, one per width that can be reached: the nearest to what it removes."""
    data = live_counts(shape)
    place = data["components"].index(component)
    table = data["widths"].get(str(heads or 0)) or next(iter(data["widths"].values()))
    row, full = table["rows"][table["row"][place]], data["full"][place]
    best: dict[int, int] = {}
    for percent, width in enumerate(row):
        exact = 100 * (1 - width / full)
        if width not in best or abs(percent - exact) < abs(best[width] - exact):
            best[width] = percent
    return sorted(best.values())
