"""The Pareto plot: plans by cost and loss; measured ones filled, estimated ones hollow, published ones diamonds."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from upvit_core.figures.theme import (
    COLOURS,
    POWERS,
    Chart,
    Spec,
    Theme,
    accent,
    axis,
    drawn,
    lines,
    markers,
)

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
    """A curve under the points; `strong`: in the colour of the points."""

    name: str
    x: np.ndarray
    y: np.ndarray
    dash: str = "solid"
    strong: bool = False


def plot_pareto(
    points: Sequence[Point],
    curves: Sequence[Line],
    theme: Theme,
    *,
    x_title: str,
    y_title: str,
    log_y: bool = False,
    height: int = 420,
    shares: bool = False,
) -> Chart:
    """Scatter of plans; points with a name are labelled, the current one is ringed.

    shares: y is a share in percent; its axis begins at 0.
    """
    every = np.array([p.y for p in points], float)
    every = np.log10(every[every > 0]) if log_y else every

    def high(point: Point) -> bool:
        """True where there is no room above it for its name."""
        y = math.log10(point.y) if log_y and point.y > 0 else point.y
        return len(every) > 1 and every.max() - y < (0.1 if point.now else 0.03) * np.ptp(every)

    traces = []
    for curve in curves:
        x, y = curve.x.astype(np.float32), curve.y.astype(np.float32)
        colour = accent(theme) if curve.strong else theme.quiet
        traces.append(lines(x, y, colour, 1.8, dash=curve.dash, name=curve.name, hoverinfo="skip"))
    for kind in SYMBOLS:
        own = [point for point in points if point.kind == kind]
        if own:
            traces.append(_plans(own, kind, [high(p) for p in own], 0.9 * max(p.x for p in points), theme))
    here = [point for point in points if point.now]
    if here:
        ring = {"symbol": "circle-open", "size": 24, "color": COLOURS["attention"], "line": {"width": 3.5}}
        places = [p.x for p in here], [p.y for p in here]
        traces.append(markers(*places, ring, name="now", showlegend=False, hoverinfo="skip"))
    best = max([*every.tolist(), *(curve.y.max() for curve in curves if len(curve.y))], default=0.0)
    scale: Spec = {"range": [0, min(120, 1.25 * best or 120)]} if shares else {}  # with room for a name on top
    layout: Spec = {
        "xaxis": axis(theme, x_title),
        "yaxis": axis(theme, y_title, **_log(log_y), **scale),
        "hovermode": "closest",
        "clickmode": "event+select",
    }
    figure = drawn(traces, layout, theme, height=height, margin=(64, 16, 18, 48))
    counts = ", ".join(f"{sum(p.kind == kind for p in points)} {MEANING[kind]}" for kind in SYMBOLS)
    now = f" Under the sliders: {here[0].detail}." if here else ""
    return Chart(figure, "The front", f"{y_title} against {x_title}: {counts}.{now}", lambda: _table(points))


def _plans(points: Sequence[Point], kind: Kind, high: Sequence[bool], edge: float, theme: Theme) -> Spec:
    """The plans of one kind. `high`: the name goes below its point; right of `edge` it goes to the left."""
    colour = {"published": theme.quiet, "teacher": theme.text}.get(kind, accent(theme))
    symbol = {"symbol": SYMBOLS[kind], "size": 15 if kind == "teacher" else 11, "color": colour, "line": {"width": 2}}
    unchanged: Spec = {"marker": {"opacity": 1}}
    trace = markers(
        [p.x for p in points],
        [p.y for p in points],
        symbol,
        mode="markers+text",
        name=MEANING[kind],
        showlegend=kind != "teacher",
        text=[_name(p, below) for p, below in zip(points, high, strict=True)],
        textposition=[
            f"{'bottom' if below else 'top'} {'left' if p.x > edge else 'center'}"
            for p, below in zip(points, high, strict=True)
        ],
        textfont={"size": 12, "color": theme.text if kind != "published" else theme.quiet},
        customdata=[[p.name, p.detail, p.data] for p in points],
        hovertemplate="<b>%{customdata[0]}</b><br>%{customdata[1]}<extra></extra>",
        selected=unchanged,
        unselected=unchanged,
    )
    if any(p.low is not None for p in points):
        up = [(p.high or p.y) - p.y for p in points]
        down = [p.y - (p.low if p.low is not None else p.y) for p in points]
        sizes = {"type": "data", "array": up, "arrayminus": down, "symmetric": False}
        trace["error_y"] = {**sizes, "color": colour, "thickness": 1.4}
    return trace


def _name(point: Point, high: bool) -> str:
    """Outside its ring, the current plan's name stands a line off; estimates without limits have none."""
    if point.now:
        return f"\u00a0<br>{point.name}" if high else f"{point.name}<br>\u00a0"
    return point.name if point.kind != "estimated" or point.low is not None else ""


def _log(on: bool) -> Spec:
    return {**POWERS, "dtick": 1, "minor": {"ticks": "outside"}} if on else {}


def _table(points: Sequence[Point]) -> dict[str, np.ndarray]:
    columns = ("name", "kind", "x", "y", "low", "high", "detail")
    return {name: np.array([getattr(point, name) for point in points], dtype=object) for name in columns}
