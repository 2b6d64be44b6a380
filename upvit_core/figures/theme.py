"""Colours and layout that every figure shares; safe for colour-blind eyes, in a light and a dark form."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import plotly.graph_objects as go

from upvit_core.records.shape import Component

COLOURS: dict[Component, str] = {
    "residual": "#0072B2", "attention": "#D55E00", "ffn": "#009E73", "reduction": "#CC79A7",
}  # fmt: skip
TITLES: dict[Component, str] = {
    "residual": "Residual", "attention": "Attention", "ffn": "FFN", "reduction": "Reduction",
}  # fmt: skip
CLEAR = "rgba(0,0,0,0)"
FONT = '"Source Sans", "Source Sans Pro", "Segoe UI", sans-serif'


@dataclass(frozen=True)
class Theme:
    """Colours of text, surfaces and veil; a veil is the surface's own colour, drawn over what is removed."""

    name: str
    surface: str
    panel: str
    text: str
    quiet: str
    grid: str
    veil: str

    def veil_at(self, opacity: float) -> str:
        return f"rgba({self.veil},{opacity:g})"


LIGHT = Theme("light", "#ffffff", "#f4f5f7", "#1f2328", "#59616b", "#dfe3e8", "255,255,255")
DARK = Theme("dark", "#14171c", "#20252c", "#e8eaed", "#a3acb8", "#343b45", "20,23,28")


Spec = dict[str, Any]


POWERS: Spec = {"type": "log", "exponentformat": "power"}
"""A logarithmic axis."""


@dataclass(frozen=True)
class Chart:
    """A figure, as plotly's dictionary, with what belongs beside it: a title, a sentence for those who cannot see it,
    and its table.

    `table` computes columns by name only when someone asks for them.
    """

    spec: Spec
    title: str
    alt: str
    table: Callable[[], dict[str, np.ndarray]] = field(default=dict)

    @property
    def figure(self) -> go.Figure:
        """Plotly's own object; pages send the dictionary as it is, which costs a fifth."""
        return go.Figure(self.spec, _validate=False)


def axis(theme: Theme, title: str = "", **more: object) -> Spec:
    """Settings of one axis in the shared look."""
    return {
        "title": {"text": title, "font": {"size": 13, "color": theme.quiet}, "standoff": 8},
        "tickfont": {"size": 12, "color": theme.quiet},
        "gridcolor": theme.grid,
        "linecolor": theme.grid,
        "tickcolor": theme.grid,
        "zeroline": False,
        **more,
    }


def lines(x: object, y: object, colour: str, width: float, *, dash: str | None = None, **more: object) -> Spec:
    """A curve through points."""
    style = {"color": colour, "width": width} | ({"dash": dash} if dash else {})
    return {"type": "scatter", "mode": "lines", "x": x, "y": y, "line": style, **more}


def markers(x: object, y: object, marker: Spec, **more: object) -> Spec:
    """Points."""
    return {"type": "scatter", "mode": "markers", "x": x, "y": y, "marker": marker, **more}


def note(text: str, x: object, y: object, colour: str, size: int = 13, **more: object) -> Spec:
    """Words in the plot, without an arrow."""
    return {"text": text, "x": x, "y": y, "showarrow": False, "font": {"size": size, "color": colour}, **more}


def row_title(text: str, y: float, component: Component, theme: Theme) -> Spec:
    """The name of a row of pictures, above its left end at `y`, a share of the plot's height."""
    swatch = f'<span style="color:{COLOURS[component]}">■</span> <b>{text}</b>'
    places = {"xref": "paper", "xanchor": "left", "yref": "paper", "yanchor": "bottom", "yshift": 6}
    return note(swatch, 0, y, theme.text, 15, **places)


def legend(theme: Theme, size: int = 13, **more: object) -> Spec:
    """A legend in one row above the plot."""
    font = {"color": theme.text, "size": size}
    return {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom", "font": font, **more}


def colour_bar(theme: Theme, title: str = "", **more: object) -> Spec:
    """Settings of a colour scale's legend."""
    font = {"size": 12, "color": theme.quiet}
    named = {"title": {"text": title, "side": "right", "font": font}} if title else {}
    return {"outlinewidth": 0, "tickfont": font, **named, **more}


def accent(theme: Theme) -> str:
    """The colour of what is measured here, beside published or estimated values."""
    return "#0072B2" if theme.name == "light" else "#3a9bd9"


def drawn(
    traces: list[Spec], layout: Spec, theme: Theme, *, height: int, margin: tuple[int, int, int, int] = (60, 16, 24, 48)
) -> Spec:
    """A figure in the shared look from plain dictionaries; margin is (left, right, top, bottom) in pixels.

    Validation is left out, since it costs more than drawing; the tests validate every figure.
    """
    left, right, top, bottom = margin
    base: Spec = {
        "height": height,
        "margin": {"l": left, "r": right, "t": top, "b": bottom, "pad": 0},
        "font": {"family": FONT, "size": 13, "color": theme.text},
        "paper_bgcolor": theme.surface,
        "plot_bgcolor": theme.surface,
        "hoverlabel": {"bgcolor": theme.panel, "bordercolor": theme.grid, "font": {"color": theme.text, "size": 13}},
        "showlegend": False,
        "template": {},
    }
    return {"data": traces, "layout": {**base, **layout}}


SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def power_of_ten(exponent: int) -> str:
    """`10⁻³`, and plain `1` and `10` where those read better."""
    return {0: "1", 1: "10"}.get(exponent, "10" + str(exponent).translate(SUPERSCRIPTS))


def log_ticks(low: float, high: float, most: int = 4) -> tuple[list[float], list[str]]:
    """Exponents inside [low, high], at most `most`, and their labels; a range of about a decade gets 2 and 5 too."""
    exponents = list(range(int(np.ceil(low - 1e-9)), int(np.floor(high + 1e-9)) + 1))
    if len(exponents) < 2:
        around = range(int(np.floor(low)), int(np.ceil(high)) + 1)
        fine = [(e + np.log10(m), m, e) for e in around for m in (1, 2, 5)]
        say = lambda m, e: f"{m * 10.0**e:g}" if e > -4 else f"{m}·{power_of_ten(e)}"  # noqa: E731
        inside = [(float(at), say(m, e)) for at, m, e in fine if low <= at <= high]
        return [at for at, _ in inside], [text for _, text in inside]
    step = max(1, -(-len(exponents) // most))
    chosen = exponents[::-1][::step][::-1]
    return [float(e) for e in chosen], [power_of_ten(e) for e in chosen]
