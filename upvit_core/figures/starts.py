"""Two starts of one shape, and how both climb: evaluations against training steps, each start and end with its value.

Every line is of the same test images; a hollow square is the end on all of them, where the line is of a part.
Top-1 shows how far apart the starts are, the KL to the teacher (log axis) what still happens near the teacher.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from upvit_core.figures.evaluations import along, counted
from upvit_core.figures.runs import STAR, WHOLE, RunCurve
from upvit_core.figures.theme import Theme
from upvit_core.figures.vega import Row, Spec, VegaChart, columns, layer, rule, spec, table, text_mark, tip

Measure = Literal["top1", "kl_teacher"]
TITLES: dict[Measure, str] = {"top1": "top-1, %", "kl_teacher": "KL to the teacher, nats an image (log)"}
_NAMES = ("id", "label", "colour", "x", "y", "text", "epoch", "images")

_WHOLE = "abs(log(datum.value) / LN10 - round(log(datum.value) / LN10)) < 0.01"
_DECADES = {"condition": {"test": _WHOLE, "value": 1}, "value": 0.12}


def starts_chart(curves: Sequence[RunCurve], measure: Measure, theme: Theme, *, height: int = 300) -> VegaChart:
    """`curves` are the runs with their labels; a hollow circle is a start, before any training."""

    def entry(curve: RunCurve, row: Row) -> Spec:
        return {"id": curve.id, "label": curve.label, "colour": curve.colour, "x": row["step"], "y": row[measure],
                "text": _value(row[measure], measure), "epoch": row.get("epoch"),
                "images": row.get("images")}  # fmt: skip

    lines = [entry(curve, row) for curve in curves for row in along(curve.rows, measure)]
    whole = [entry(curve, row) for curve in curves if (row := curve.whole) is not None and measure in row]
    first = list({entry["id"]: entry for entry in reversed(lines)}.values())
    last = list({entry["id"]: entry for entry in lines if entry["x"] > 0}.values())
    x_end = max([1, *(entry["x"] for entry in lines)])
    teachers = _teacher(curves, 1.24 * x_end) if measure == "top1" else []
    tips = [
        tip("label", "start"), tip("x", "step", ",.0f"), tip("y", TITLES[measure], ".4g"), tip("epoch", "epoch", ".2f"),
        tip("images", "test images", ",.0f"),
    ]  # fmt: skip
    beside = {"align": "left", "dx": 10, "fontWeight": "bold"}
    layers = [
        layer("lines", {"type": "line", "strokeWidth": 2.2}, detail="id", colour=True, order="x"),
        layer("lines", {"type": "point", "size": 34, "filled": True, "opacity": 1}, colour=True, tooltip=tips),
        layer("starts", {"type": "point", "size": 170, "filled": False, "strokeWidth": 2.6, "opacity": 1}, colour=True,
              tooltip=tips),
        layer("ends", {"type": "point", "size": 130, "filled": True, "opacity": 1}, colour=True, tooltip=tips),
        layer("whole", WHOLE, colour=True, tooltip=tips),
        layer("upper starts", {**text_mark(theme, -15), **beside}, text="text"),
        layer("lower starts", {**text_mark(theme, 15), **beside}, text="text"),
        layer("upper ends", {**text_mark(theme, -13), **beside}, text="text"),
        layer("lower ends", {**text_mark(theme, 13), **beside}, text="text"),
        rule("teacher", "y", theme),
        layer("teacher", {"type": "point", "shape": STAR, "size": 170, "filled": True, "opacity": 1,
                          "color": theme.text}, tooltip=[tip("label", "teacher"), tip("y", TITLES["top1"], ".2f"),
                                                         tip("images", "test images", ",.0f")]),
    ]  # fmt: skip
    told = "; ".join(f"{e['label']} starts at {e['text']}" for e in first)
    told += "".join(f"; {e['label']} is at {e['text']} after {e['x']:,} steps" for e in last)
    told += "".join(f"; {e['label']} ends at {e['text']} of all {e['images']:,} test images" for e in whole)
    y_title = TITLES[measure] + counted({e["images"] for e in lines if e["images"]}, "images") * (measure == "top1")
    y_scale: Spec = {"zero": False, "nice": True, "padding": 26}
    if measure == "kl_teacher":
        layers[0]["encoding"]["y"]["axis"] = {"gridOpacity": _DECADES}
    return VegaChart(
        spec(
            layers, theme, ("training step", {"domain": [0, 1.24 * x_end], "nice": False, "padding": 14}),
            (y_title, {**y_scale, "type": "log"} if measure == "kl_teacher" else y_scale), height,
        ),
        {
            "lines": table(lines, _NAMES), "starts": table(first, _NAMES), "ends": table(last, _NAMES),
            **_apart("starts", first), **_apart("ends", last),
            "teacher": table(teachers, ("label", "x", "y", "images")), "whole": table(whole, _NAMES),
        },
        f"{TITLES[measure]} against training step: {told or 'nothing is measured yet'}.",
        lambda: columns(lines),
    )  # fmt: skip


def _value(value: float, measure: Measure) -> str:
    return f"{value:.1f} %" if measure == "top1" else f"{value:.2g}"


def _apart(name: str, entries: Sequence[Row]) -> Spec:
    """Labels above the upper points and below the lower ones, so that near points stay legible."""
    order = sorted(entries, key=lambda entry: -entry["y"])
    half = (len(order) + 1) // 2
    return {f"upper {name}": table(order[:half], _NAMES), f"lower {name}": table(order[half:], _NAMES)}


def _teacher(curves: Sequence[RunCurve], x: float) -> list[Spec]:
    rows = [row for curve in curves if (row := curve.teacher_row) is not None]
    return [{"label": curves[0].teacher, "x": x, "y": row["top1"], "images": row.get("images")} for row in rows[-1:]]
