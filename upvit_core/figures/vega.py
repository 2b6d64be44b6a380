"""Vega-Lite charts, whose node a page can keep: layers over named data sets, which alone change while a run goes on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from upvit_core.figures.theme import FONT, Theme

Row = Mapping[str, Any]
Spec = dict[str, Any]


@dataclass(frozen=True)
class VegaChart:
    """A Vega-Lite specification with named data sets, and what belongs beside it: an alternative text and a table."""

    spec: Spec
    datasets: dict[str, pd.DataFrame]
    alt: str
    table: Callable[[], dict[str, np.ndarray]] = field(default=dict)


def tip(name: str, title: str, form: str | None = None) -> Spec:
    return {"field": name, "title": title, **({"format": form} if form else {})}


def table(entries: Sequence[Row], columns: Sequence[str]) -> pd.DataFrame:
    """Columns as they are sent to a browser: words as numbers into a list of them, numbers in single precision."""
    return pd.DataFrame({name: _compact([entry.get(name) for entry in entries]) for name in columns})


def _compact(values: list[Any]) -> Any:
    if any(isinstance(value, str) for value in values):
        return pd.Categorical(values)
    return pd.array(values, dtype="Float32")


def columns(entries: Sequence[Row]) -> dict[str, np.ndarray]:
    names = [name for name in (entries[0] if entries else {}) if name != "colour"]
    return {name: np.array([entry[name] for entry in entries], dtype=object) for name in names}


def layer(
    data: str, mark: Spec, *, order: str = "", detail: str = "", colour: bool = False, text: str = "",
    tooltip: list[Spec] | None = None,
) -> Spec:  # fmt: skip
    encoding: Spec = {"x": {"field": "x", "type": "quantitative"}, "y": {"field": "y", "type": "quantitative"}}
    if order:
        encoding["order"] = {"field": order, "type": "quantitative"}
    if detail:
        encoding["detail"] = {"field": detail, "type": "nominal"}
    if colour:
        encoding["color"] = {"field": "colour", "type": "nominal", "scale": None}
    if text:
        encoding["text"] = {"field": text, "type": "nominal"}
    if tooltip:
        encoding["tooltip"] = tooltip
    return {"data": {"name": data}, "mark": mark, "encoding": encoding}


def rule(data: str, channel: str, theme: Theme) -> Spec:
    return {
        "data": {"name": data},
        "mark": {"type": "rule", "strokeDash": [2, 4], "color": theme.quiet, "opacity": 0.8},
        "encoding": {channel: {"field": channel, "type": "quantitative"}},
    }


def text_mark(theme: Theme, offset: int, colour: str = "") -> Spec:
    """Text below a point, or above it where the offset is negative."""
    return {"type": "text", "fontSize": 13, "color": colour or theme.text, "dy": offset, "align": "center"}


def spec(layers: list[Spec], theme: Theme, x: tuple[str, Spec], y: tuple[str, Spec], height: int) -> Spec:
    """Layers in the shared look; x and y are an axis title and the settings of its scale."""
    axis = {
        "gridColor": theme.grid, "domainColor": theme.grid, "tickColor": theme.grid, "labelColor": theme.quiet,
        "titleColor": theme.quiet, "labelFontSize": 12, "labelSeparation": 10, "titleFontSize": 13,
        "titleFontWeight": "normal",
    }  # fmt: skip
    first = layers[0]["encoding"]
    first["x"] = {**first["x"], "title": x[0], "scale": x[1]}
    first["y"] = {**first["y"], "title": y[0], "scale": y[1]}
    return {
        "$schema": "https://vega.github.io/schema/vega-lite/v6.json",
        "width": "container",
        "height": height,
        "layer": layers,
        "resolve": {"scale": {"x": "shared", "y": "shared"}},
        # The chart's alternative text says it; marks without names would be read out one by one.
        "config": {
            "axis": axis,
            "view": {"stroke": None},
            "font": FONT,
            "background": theme.surface,
            "mark": {"aria": False},
        },
    }
