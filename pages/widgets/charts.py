"""A figure on a page: with its alternative text, without the tool bar, and with its table to download."""

from base64 import b64encode
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from html import escape
from typing import Any, Protocol

import numpy as np
import streamlit as st
from plotly.basedatatypes import BaseFigure

from pages.widgets import presenter
from upvit_core.figures.theme import DARK, LIGHT, Chart, Spec, Theme
from upvit_core.files import as_csv

GLYPHS = {
    "solid": "━", "dash": "╍", "dot": "┈", "circle": "●", "circle-open": "○", "diamond-open": "◇", "star": "★",
}  # fmt: skip
CONFIG = {"displaylogo": False, "displayModeBar": False, "scrollZoom": False, "responsive": True}
TYPED = {"float32": "f4", "float64": "f8", "int8": "i1", "uint8": "u1", "int16": "i2", "int32": "i4"}
"""Names in plotly.js of the types of numbers that it reads in binary form."""


class _Ready(BaseFigure):  # type: ignore[misc]
    """A figure for `st.plotly_chart` that is a dictionary already; plotly's own would be built, copied and walked."""

    def __init__(self, spec: Spec):
        self.__dict__["spec"] = spec

    def to_dict(self) -> Spec:
        return _packed(self.__dict__["spec"])  # type: ignore[no-any-return]


def _packed(node: Any) -> Any:
    """Arrays in plotly's binary form, text as lists, everything else as it is."""
    if isinstance(node, dict):
        return {key: _packed(value) for key, value in node.items()}
    if isinstance(node, np.ndarray):
        node = node.astype(float) if node.dtype.kind in "iu" and node.dtype.name not in TYPED else node
        if node.dtype.name not in TYPED or not node.size:
            return node.tolist()
        spec = {"dtype": TYPED[node.dtype.name], "bdata": b64encode(node.tobytes()).decode()}
        return spec if node.ndim == 1 else {**spec, "shape": ", ".join(map(str, node.shape))}
    if isinstance(node, list) and node and isinstance(node[0], dict):
        return [_packed(value) for value in node]
    return node


class HasTable(Protocol):
    """A source of columns by name, computed when they are asked for."""

    @property
    def table(self) -> Callable[[], dict[str, Any]]: ...


def theme() -> Theme:
    """Light or dark, as the browser shows the page."""
    return DARK if st.context.theme.type == "dark" else LIGHT


def show(chart: Chart, key: str, *, on_select: Callable[[], None] | str = "ignore", tools: bool = False) -> object:
    """Draw a chart; returns its selection where it is clickable. While presenting, type, lines and marks are larger."""
    chart = presented(chart)
    result = st.plotly_chart(  # type: ignore[call-overload]
        _Ready(chart.spec),
        width="stretch",
        theme=None,
        key=key,
        config={**CONFIG, "displayModeBar": tools},
        alt=chart.alt,
        on_select=on_select,
        selection_mode="points",
    )
    table_button(chart, key)
    return result


def clicked_data(event: object) -> object:
    """The data of the point that was clicked, from the selection that `show` returned; None without one."""
    points = event["selection"]["points"] if event else []  # type: ignore[index]
    return (points[0].get("customdata") or [None, None, None])[2] if points else None


def presented(chart: Chart) -> Chart:
    """The chart as `show` draws it: larger while presenting."""
    return _larger(chart, presenter.LARGER) if presenter.on() else chart


def enlarged(chart: Chart) -> Chart:
    """The same chart with larger type, to be read from the back of a room; `show` does that itself while presenting."""
    return chart if presenter.on() else _larger(chart, 1.3, marks=False)


def _larger(chart: Chart, factor: float, *, marks: bool = True) -> Chart:
    spec = deepcopy(chart.spec)
    _enlarge(spec, factor, marks)
    layout = spec["layout"]
    for side in ("l", "r", "b", *("t" * marks)):
        layout["margin"][side] = round(layout["margin"][side] * factor)
    if marks:
        layout["height"] = round(layout["height"] * 1.15)
    return replace(chart, spec=spec)


def _enlarge(node: object, factor: float, marks: bool) -> None:
    """Sizes of type, and with `marks` widths of lines and sizes of marks."""
    if isinstance(node, dict):
        for key, value in node.items():
            if key in ("font", "tickfont", "textfont") and isinstance(value, dict) and "size" in value:
                value["size"] = round(value["size"] * factor)
            if marks and key == "line" and isinstance(value, dict) and "width" in value:
                value["width"] = value["width"] * factor
            if marks and key == "marker" and isinstance(value, dict) and isinstance(value.get("size"), (int, float)):
                value["size"] = value["size"] * factor
            _enlarge(value, factor, marks)
    elif isinstance(node, (list, tuple)) and len(node) < 500:
        for value in node:
            _enlarge(value, factor, marks)


def legend(chart: Chart) -> None:
    """Draw the names of a chart's lines and marks under it, where they cover no point."""
    entries = []
    for trace in chart.spec["data"]:
        if trace.get("showlegend", True):
            style = trace["marker"] if "markers" in trace["mode"] else trace["line"]
            glyph = GLYPHS[str(style.get("symbol") or style.get("dash", "solid"))]
            entries.append(f'<span><i style="color: {style["color"]}">{glyph}</i> {escape(trace["name"])}</span>')
    st.html(f'<p class="key">{"".join(entries)}</p>')


def table_button(chart: HasTable, key: str, label: str = "Table (CSV)") -> None:
    """A button that writes the chart's table when it is pressed, not before."""
    st.download_button(
        label,
        data=lambda: as_csv(chart.table()),
        file_name=f"{key}.csv",
        mime="text/csv",
        key=f"{key}-csv",
        type="tertiary",
        icon=":material/download:",
        on_click="ignore",
        help=label,
    )
