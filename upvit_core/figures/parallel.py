"""Plans and runs as lines over parallel axes: what was removed, what it costs, and what it gives; axes are brushed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from upvit_core import units
from upvit_core.figures.theme import CLEAR, COLOURS, Chart, Spec, Theme, accent, drawn
from upvit_core.figures.theme import TITLES as COMPONENTS
from upvit_core.profiling.macs import count_macs, count_parameters
from upvit_core.records.shape import ModelShape
from upvit_core.records.task import Task

STATES = ("cut only", "trained", "this plan")
TICKS = 5


@dataclass(frozen=True)
class Outcome:
    """A thinner model and what was measured of it; `state` is one of STATES, `speed` in times the original's."""

    name: str
    state: str
    shape: ModelShape
    value: float
    speed: float | None = None


def draw_parallel(
    original: ModelShape, outcomes: Sequence[Outcome], task: Task, theme: Theme, *, height: int = 350
) -> Chart:
    """A line for each of one or more outcomes, the current plan's in front; axes of equal values are left out.

    Speed has an axis where it is known of all.
    """
    lines = sorted(outcomes, key=lambda outcome: STATES.index(outcome.state))
    columns = _columns(original, lines, task)
    tones = (theme.quiet, accent(theme), COLOURS["attention"])
    scale = [[(n + side) / len(tones), tone] for n, tone in enumerate(tones) for side in (0, 1)]
    states = np.array([STATES.index(line.state) for line in lines])
    dimensions = [{"label": "", "values": states, "range": [-0.3, 2.3], **_ticks(dict(enumerate(STATES)))}]
    for title, values in columns.items():
        if np.ptp(values) > 0 or title == task.axis:
            dimensions.append({"label": title.replace(",", " ").split()[0], **_scale(title, values)})
    trace = {
        "type": "parcoords",
        "line": {"color": states, "colorscale": scale, "cmin": -0.5, "cmax": len(STATES) - 0.5},
        "dimensions": dimensions,
        "labelfont": {"size": 12, "color": theme.text},
        "tickfont": {"size": 12, "color": theme.text},
        "rangefont": {"size": 12, "color": CLEAR},
        "unselected": {"line": {"color": theme.grid, "opacity": 0.4}},
    }
    best = (max if task.more_is_better else min)(lines, key=lambda line: line.value)
    counts = ", ".join(f"{int((states == n).sum())} {state}" for n, state in enumerate(STATES))
    alt = (
        f"{len(lines)} models as lines over parallel axes ({', '.join(columns)}): {counts}. "
        f"Best: {best.name}, {task.format(best.value)} with {units.short(count_parameters(best.shape))} parameters."
    )

    def table() -> dict[str, np.ndarray]:
        named = {name: np.array([getattr(line, name) for line in lines], dtype=object) for name in ("name", "state")}
        return named | columns

    return Chart(drawn([trace], {}, theme, height=height, margin=(64, 34, 40, 16)), "Plans and runs", alt, table)


def _columns(original: ModelShape, lines: Sequence[Outcome], task: Task) -> dict[str, np.ndarray]:
    """The values of all lines by title: (n,) each."""

    def of(value: Callable[[Outcome], float | None]) -> np.ndarray:
        return np.array([value(line) for line in lines], float)

    def width(shape: ModelShape, component: str) -> int:
        return sum(group.width for group in shape.groups if group.component == component)

    columns = {
        f"{COMPONENTS[part]} removed": of(lambda o: 1 - width(o.shape, part) / width(original, part))  # noqa: B023
        for part in original.components
    }
    columns["heads a block"] = of(lambda o: sum(block.num_heads for block in o.shape.blocks) / o.shape.depth)
    columns["blocks"] = of(lambda o: o.shape.depth)
    columns["parameters"] = of(lambda o: count_parameters(o.shape))
    columns[f"MACs, one {task.batch_item}"] = of(lambda o: count_macs(o.shape))
    if all(line.speed for line in lines):
        columns["speed, × original"] = of(lambda o: o.speed)
    return columns | {task.axis: of(lambda o: o.value)}


def _scale(title: str, values: np.ndarray) -> Spec:
    """The scale of an axis: shares from 0 to 100, counts by powers, anything else by its own range."""
    if title.endswith("removed"):
        return {"values": values, "range": [0, 1], "tickformat": ".0%"}
    if title in ("heads a block", "blocks"):
        return {"values": values, **_ticks({v: f"{v:g}" for v in np.unique(values.round(2)).tolist()[-TICKS:]})}
    if not title.startswith(("parameters", "MACs")):
        return {"values": values}
    ends = np.log2(values.min()), np.log2(values.max())
    return {"values": np.log2(values), **_ticks({e: units.short(2**e, 1) for e in np.linspace(*ends, TICKS).tolist()})}


def _ticks(words: Mapping[float, str]) -> Spec:
    return {"tickvals": list(words), "ticktext": list(words.values())}
