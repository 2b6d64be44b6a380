"""The front: plans as points of cost against loss; measured filled, estimated hollow, published a hollow diamond."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from upvit_core.figures.theme import COLOURS, Chart, Spec, Theme, axis, drawn

Kind = Literal["measured", "estimated", "published", "teacher"]
SYMBOLS: dict[Kind, str] = {
    "measured": "circle",
    "estimated": "circle-open",
    "published": "diamond-open",
    "teacher": "star",
}
MEANING: dict[Kind, str] = {
    "teacher": "the model itself",
    "measured": "measured here",
    "estimated": "estimated",
    "published": "published",
}


@dataclass(frozen=True)
class Point:
    """One plan. low and high bound y where that is known; `now`: under the sliders; `data` comes back on a click.

    It is text: the browser turns a list inside a list into something else.
    """

    name: str
    x: float
    y: float
    kind: Kind
    detail: str = ""
    low: float | None = None
    high: float | None = None
    now: bool = False
    data: str | None = None


@dataclass(frozen=True)
class Line:
    """A curve of estimated plans under the points."""

    name: str
    x: np.ndarray
    y: np.ndarray
    dash: str = "solid"


def plot_pareto(
    points: Sequence[Point],
    lines: Sequence[Line],
    theme: Theme,
    *,
    x_title: str,
    y_title: str,
    log_y: bool = False,
    log_x: bool = False,
    height: int = 420,
) -> Chart:
    """Scatter of plans; points with a name are labelled, the current one is ringed."""
    accent = "#0072B2" if theme.name == "light" else "#3a9bd9"
    colours: dict[Kind, str] = {
        "measured": accent,
        "estimated": accent,
        "published": theme.quiet,
        "teacher": theme.text,
    }
    every = np.array([p.y for p in points], float)
    every = np.log10(every[every > 0]) if log_y else every

    def high(point: Point) -> bool:
        """Whether there is no room above it for its name."""
        y = math.log10(point.y) if log_y and point.y > 0 else point.y
        return len(every) > 1 and every.max() - y < (0.1 if point.now else 0.03) * np.ptp(every)

    traces: list[Spec] = [
        {
            "type": "scatter",
            "mode": "lines",
            "name": line.name,
            "x": line.x.astype(np.float32),
            "y": line.y.astype(np.float32),
            "line": {"color": theme.quiet, "width": 1.8, "dash": line.dash},
            "hoverinfo": "skip",
        }
        for line in lines
    ]
    for kind, symbol in SYMBOLS.items():
        own = [point for point in points if point.kind == kind]
        if not own:
            continue
        trace: Spec = {
            "type": "scatter",
            "mode": "markers+text",
            "name": MEANING[kind],
            "x": [p.x for p in own],
            "y": [p.y for p in own],
            "text": [_name(p, high(p)) for p in own],
            "textposition": ["bottom center" if high(p) else "top center" for p in own],
            "textfont": {"size": 12, "color": theme.text if kind != "published" else theme.quiet},
            "customdata": [[p.name, p.detail, p.data] for p in own],
            "hovertemplate": "<b>%{customdata[0]}</b><br>%{customdata[1]}<extra></extra>",
            "marker": {
                "symbol": symbol,
                "size": 15 if kind == "teacher" else 11,
                "color": colours[kind],
                "line": {"width": 2},
            },
            "selected": {"marker": {"opacity": 1}},
            "unselected": {"marker": {"opacity": 1}},
        }
        if any(p.low is not None for p in own):
            up = [(p.high or p.y) - p.y for p in own]
            down = [p.y - (p.low if p.low is not None else p.y) for p in own]
            trace["error_y"] = {
                "type": "data",
                "array": up,
                "arrayminus": down,
                "symmetric": False,
                "color": colours[kind],
                "thickness": 1.4,
            }
        traces.append(trace)
    here = [point for point in points if point.now]
    if here:
        traces.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": "now",
                "showlegend": False,
                "x": [p.x for p in here],
                "y": [p.y for p in here],
                "marker": {"symbol": "circle-open", "size": 24, "color": COLOURS["attention"], "line": {"width": 3.5}},
                "hoverinfo": "skip",
            }
        )
    layout: Spec = {
        "xaxis": axis(theme, x_title, **_log(log_x)),
        "yaxis": axis(theme, y_title, **_log(log_y)),
        "showlegend": True,
        "legend": {
            "orientation": "h",
            "x": 0,
            "y": 1.01,
            "yanchor": "bottom",
            "font": {"size": 12, "color": theme.text},
            "bgcolor": "rgba(0,0,0,0)",
        },
        "hovermode": "closest",
        "clickmode": "event+select",
    }
    figure = drawn(traces, layout, theme, height=height, margin=(70, 24, 62, 52))
    counts = ", ".join(f"{sum(p.kind == kind for p in points)} {MEANING[kind]}" for kind in SYMBOLS)
    now = f" Under the sliders: {here[0].detail}." if here else ""
    return Chart(figure, "The front", f"{y_title} against {x_title}: {counts}.{now}", lambda: _table(points))


def _name(point: Point, high: bool) -> str:
    """Outside its ring, the current plan's name stands a line off; estimates without limits have none."""
    if point.now:
        return f"\u00a0<br>{point.name}" if high else f"{point.name}<br>\u00a0"
    return point.name if point.kind != "estimated" or point.low is not None else ""


def _log(on: bool) -> Spec:
    return {"type": "log", "exponentformat": "power", "dtick": 1, "minor": {"ticks": "outside"}} if on else {}


def _table(points: Sequence[Point]) -> dict[str, np.ndarray]:
    columns = ("name", "kind", "x", "y", "low", "high", "detail")
    return {name: np.array([getattr(point, name) for point in points], dtype=object) for name in columns}
