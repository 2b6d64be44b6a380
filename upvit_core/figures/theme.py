"""Colours and layout that every figure shares; safe for colour-blind eyes, in a light and a dark form."""

from __future__ import annotations

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
        """For whoever wants plotly's own object; pages send the dictionary as it is, which costs a fifth."""
        return go.Figure(self.spec, _validate=False)


def axis(theme: Theme, title: str = "", **more: Any) -> Spec:
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
        fine = [(e + np.log10(m), m * 10.0**e) for e in around for m in (1, 2, 5)]
        inside = [(float(at), f"{value:g}") for at, value in fine if low <= at <= high]
        return [at for at, _ in inside], [text for _, text in inside]
    step = max(1, -(-len(exponents) // most))
    chosen = exponents[::-1][::step][::-1]
    return [float(e) for e in chosen], [power_of_ten(e) for e in chosen]
