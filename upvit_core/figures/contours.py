"""The trade-off as a map: what is left of a model over two shares removed, with lines of equal cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from upvit_core import units
from upvit_core.figures.theme import COLOURS, Chart, Spec, Theme, axis, colour_bar, drawn, markers
from upvit_core.records.shape import Component

PALE = ("#73859e", "#7d90b0", "#939bae", "#a3a6af", "#b0b1b2", "#bfbcb5", "#cec9b3", "#ded5ac", "#eee3a2", "#fef292")
"""Cividis, half way to white, so that dark labels can be read everywhere."""
LINES = 7
"""Lines of equal cost."""


@dataclass(frozen=True)
class Axis:
    """A share removed, in percent (n,), of one component."""

    component: Component
    title: str
    percents: np.ndarray


@dataclass(frozen=True)
class Surface:
    """Estimates (y, x) of a quantity with the half-widths of their bands; `log`: levels by powers."""

    title: str
    unit: str
    values: np.ndarray
    low: np.ndarray
    high: np.ndarray
    log: bool = False

    def words(self, at: tuple[int, int]) -> str:
        """`84.1 % (82.9 – 85.0)` at a row and a column."""
        middle, low, high = (_number(part[at], self.log) for part in (self.values, self.low, self.high))
        return f"{middle}{self.unit} ({low} – {high})"


def draw_map(
    x: Axis,
    y: Axis,
    surface: Surface,
    cost: np.ndarray,
    theme: Theme,
    *,
    cost_title: str,
    now: tuple[float, float],
    measured: Sequence[tuple[float, float, str]],
    data: Sequence[Sequence[str]],
    height: int = 520,
) -> Chart:
    """Contours of `surface` and of `cost` (y, x), the current point, and measured cuts (x, y, words) as dots.

    `data` (y, x) comes back when a place is clicked.
    """
    shown = np.log10(np.maximum(surface.values, 1e-9)) if surface.log else surface.values
    ink = "#1f2328"
    filled: Spec = {
        "type": "contour", "x": x.percents, "y": y.percents, "z": shown.astype(np.float32),
        "colorscale": [[n / (len(PALE) - 1), colour] for n, colour in enumerate(PALE)],
        "reversescale": surface.log, "ncontours": 12, "line": {"width": 0.6, "color": ink}, "hoverinfo": "skip",
        "contours": {"showlabels": not surface.log, "labelfont": {"size": 12, "color": ink}},
        "colorbar": colour_bar(theme, surface.title, **_ticks(shown) if surface.log else {}),
    }  # fmt: skip
    steps = np.quantile(cost, np.linspace(0.08, 0.92, LINES))
    level = float(np.diff(steps).mean()) or 1.0
    equal: Spec = {
        "type": "contour", "x": x.percents, "y": y.percents, "z": cost.astype(np.float32), "hoverinfo": "skip",
        "showscale": False, "autocontour": False, "line": {"width": 1.4, "color": "#5b3a8c", "dash": "dash"},
        "contours": {"coloring": "none", "start": float(steps[0]), "end": float(steps[-1]), "size": level,
                     "showlabels": True, "labelfont": {"size": 12, "color": "#5b3a8c"}, "labelformat": ".2s"},
        "name": cost_title,
    }  # fmt: skip
    traces = [filled, equal, _places(x, y, surface, cost, cost_title, data)]
    if measured:
        dots = {"symbol": "circle", "size": 7, "color": "#ffffff", "line": {"width": 1.2, "color": "#000000"}}
        places = [m[0] for m in measured], [m[1] for m in measured]
        hover = "measured<br>%{text}<extra></extra>"
        traces.append(markers(*places, dots, name="measured", text=[m[2] for m in measured], hovertemplate=hover))
    ring = {"symbol": "circle-open", "size": 20, "color": COLOURS["attention"], "line": {"width": 3.5}}
    traces.append(markers([now[0]], [now[1]], ring, name="now", hoverinfo="skip"))
    layout: Spec = {
        "xaxis": axis(theme, x.title, range=[float(x.percents[0]), float(x.percents[-1])], showgrid=False),
        "yaxis": axis(theme, y.title, range=[float(y.percents[0]), float(y.percents[-1])], showgrid=False),
        "hovermode": "closest",
        "clickmode": "event+select",
    }
    row, column = (int(np.argmin(np.abs(a.percents - v))) for a, v in ((y, now[1]), (x, now[0])))
    alt = (
        f"{surface.title} over {x.title} and {y.title}, with lines of equal {cost_title}. Under the sliders, "
        f"{now[0]:.0f} % and {now[1]:.0f} %: {surface.words((row, column))}. {len(measured)} measured cuts lie near."
    )
    figure = drawn(traces, layout, theme, height=height, margin=(70, 24, 24, 62))
    return Chart(figure, "The map", alt, lambda: _table(x, y, surface, cost))


def _places(
    x: Axis, y: Axis, surface: Surface, cost: np.ndarray, cost_title: str, data: Sequence[Sequence[str]]
) -> Spec:
    """Invisible marks over the whole map, which answer to the mouse."""
    columns, rows = np.meshgrid(x.percents, y.percents)
    words = []
    for r, py in enumerate(y.percents):
        for c, px in enumerate(x.percents):
            about = f"{surface.title} {surface.words((r, c))}<br>{units.short(cost[r, c])} {cost_title}"
            words.append([f"{x.component} {px:.0f} %, {y.component} {py:.0f} %", about, data[r][c]])
    clear = {"marker": {"opacity": 0.0}}
    return markers(
        columns.ravel(),
        rows.ravel(),
        {"size": 22, "opacity": 0.0, "symbol": "square"},
        name="",
        customdata=words,
        hovertemplate="<b>%{customdata[0]}</b><br>%{customdata[1]}<extra></extra>",
        selected=clear,
        unselected=clear,
    )


def _number(value: float, log: bool) -> str:
    return f"{value:.2g}" if log else f"{value:.1f}"


def _ticks(logs: np.ndarray) -> Spec:
    marks = np.arange(np.floor(logs.min()), np.ceil(logs.max()) + 0.1)
    return {"tickvals": marks.tolist(), "ticktext": [f"{10.0**mark:g}" for mark in marks]}


def _table(x: Axis, y: Axis, surface: Surface, cost: np.ndarray) -> dict[str, np.ndarray]:
    columns, rows = np.meshgrid(x.percents, y.percents)
    named = {
        x.title: columns,
        y.title: rows,
        surface.title: surface.values,
        "low": surface.low,
        "high": surface.high,
        "cost": cost,
    }
    return {name: values.ravel() for name, values in named.items()}
