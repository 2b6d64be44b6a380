"""Two records of one model against each other: rank against rank, one point a channel."""

from collections.abc import Mapping, Sequence

import numpy as np

from upvit_core.figures.theme import COLOURS, TITLES, Chart, Spec, Theme, axis, drawn, lines, markers
from upvit_core.importance.agreement import ranks
from upvit_core.records.scores import ImportanceScores
from upvit_core.records.shape import Component

OPEN = 700
"""Up to so many points are drawn as rings, more as dots, which are faster."""


def rank_against_rank(
    shown: ImportanceScores,
    other: ImportanceScores,
    component: Component,
    theme: Theme,
    *,
    names: tuple[str, str] = ("these scores", "the others"),
    exact: Mapping[str, Sequence[int]] | None = None,
    height: int = 300,
) -> Chart:
    """Percentile of every channel by `shown` (up) and by `other` (along), inside its block; 100 is the most important.

    exact: by key, the channels of `shown` that are exact; they are filled, estimates are pale. None: all are alike.
    """
    keys = [key for key in shown.values if key.split(".")[0] == component]
    along, up, sure, where = [], [], [], []
    for key in keys:
        width = len(shown.values[key])
        scale = 100 / max(width - 1, 1)
        along.append(ranks(other.values[key]) * scale)
        up.append(ranks(shown.values[key]) * scale)
        mask = np.ones(width, bool) if exact is None else np.isin(np.arange(width), exact.get(key, ()))
        sure.append(mask)
        where += [f"{key} channel {c}" for c in range(width)]
    x, y, filled = (np.concatenate(parts) for parts in (along, up, sure))
    kind = "scatter" if len(x) <= OPEN else "scattergl"
    colour = COLOURS[component]
    traces = [lines([0, 100], [0, 100], theme.quiet, 1.2, dash="dash", hoverinfo="skip")]
    for mask, name, marker in (
        (~filled, "estimate", {"color": theme.quiet, "size": 4, "opacity": 0.55}),
        (filled, "exact" if exact is not None else "", {"color": colour, "size": 5, "opacity": 0.75}),
    ):
        if mask.any():
            points = [values[mask].astype(np.float32) for values in (x, y)]
            text = [where[i] for i in np.flatnonzero(mask)]
            own = f"%{{text}}{', ' + name if name else ''}"
            template = f"{own}<br>{names[0]}: %{{y:.0f}} %<br>{names[1]}: %{{x:.0f}} %<extra></extra>"
            traces.append(markers(points[0], points[1], marker, type=kind, text=text, hovertemplate=template))
    layout: Spec = {
        "xaxis": axis(theme, f"place by {names[1]}, %", range=[-2, 102], dtick=25),
        "yaxis": axis(theme, f"place by {names[0]}, %", range=[-2, 102], dtick=25),
    }
    figure = drawn(traces, layout, theme, height=height, margin=(56, 12, 10, 46))
    apart = np.abs(x - y)
    alt = (
        f"{TITLES[component]}: place of {len(x):,} channels by {names[0]} against their place by {names[1]}; the "
        f"median channel is {np.median(apart):.1f} places of a hundred apart, the farthest {apart.max():.0f}."
    )
    return Chart(
        figure,
        f"{TITLES[component]}: rank against rank",
        alt,
        lambda: {"channel": np.array(where), "percentile": y, "percentile_of_other": x, "exact": filled},
    )
