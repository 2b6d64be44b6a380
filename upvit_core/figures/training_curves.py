"""Evaluations of runs against training steps: where each starts, how it climbs and where it ends, with the values.

Every line is of the same test images; a hollow square is the end on all of them, where the line is of a part. Top-1
shows how far apart runs are, the KL to the teacher (log axis) what still happens near the teacher.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from upvit_core.figures.evaluations import Row, evaluated_rows, has_numbers
from upvit_core.figures.runs import RunCurve, columns, title_of
from upvit_core.figures.theme import Chart, Spec, Theme, axis, drawn, log_ticks

Measure = Literal["top1", "kl_teacher"]
TITLES: dict[Measure, str] = {"top1": "top-1, %", "kl_teacher": "KL to the teacher, nats an image"}
# What tells lines apart beside their colours, and the same in words on a page.
SYMBOLS = ("circle", "diamond", "triangle-up", "triangle-down", "cross")
GLYPHS = ("●", "◆", "▲", "▼", "✚")
ROOM, STAR = 1.35, 1.3  # of the steps: values stand to the right of the ends, the teacher beyond them
LINE = 18  # pixels between values


def plot_training_curves(curves: Sequence[RunCurve], measure: Measure, theme: Theme, *, height: int = 300) -> Chart:
    """`curves` are the runs with their labels; a hollow circle is a start, before any training."""
    lines = [
        [_entry(curve, row, measure) for row in evaluated_rows(curve.rows, measure) if math.isfinite(row[measure])]
        for curve in curves
    ]  # fmt: skip
    whole = [
        _entry(curve, row, measure) for curve in curves
        if (row := curve.whole) is not None and has_numbers(row, "step", measure) and math.isfinite(row[measure])
    ]  # fmt: skip
    teacher = _teacher(curves) if measure == "top1" else None
    every = [entry for line in lines for entry in line]
    x_end = max([1, *(entry["x"] for entry in (*every, *whole))])
    top, bottom = 14, 48
    known = [entry["y"] for entry in (*every, *whole)] + ([teacher["top1"]] if teacher else [])
    scale = _Scale(known, measure == "kl_teacher", height - top - bottom)
    traces = [_line(line, i, measure) for i, line in enumerate(lines) if line]
    traces += [_mark(line[0], "circle-open", 15, measure) for line in lines if line]
    traces += [_mark(line[-1], SYMBOLS[i % len(SYMBOLS)], 12, measure) for i, line in enumerate(lines) if line]
    traces += [_mark(entry, "square-open", 12, measure) for entry in whole]
    layout: Spec = {"annotations": [], "shapes": [], "hovermode": "closest", "uirevision": measure}
    if teacher is not None:
        star = {"label": curves[0].teacher or "the teacher", "colour": theme.text, "x": STAR * x_end,
                "y": teacher["top1"], "epoch": None, "images": teacher.get("images")}  # fmt: skip
        traces.append(_mark(star, "star", 14, measure))
        layout["shapes"].append({
            "type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": star["y"], "y1": star["y"], "layer": "below",
            "line": {"color": theme.quiet, "width": 1, "dash": "dot"},
        })  # fmt: skip
    layout["annotations"] = _values(lines, whole, teacher, measure, scale, x_end, theme)
    title = title_of("top1", every, whole) if measure == "top1" else TITLES[measure]
    kind: Spec = {}
    if scale.log:
        exponents, words = log_ticks(scale.low, scale.high)
        title += " (log)"
        kind = {"type": "log", "tickvals": [10**exponent for exponent in exponents], "ticktext": words}
    layout["xaxis"] = axis(theme, "training step", range=[-0.02 * x_end, ROOM * x_end])
    layout["yaxis"] = axis(theme, title, range=[scale.low, scale.high], **kind)
    figure = drawn(traces, layout, theme, height=height, margin=(58, 12, top, bottom))
    return Chart(figure, TITLES[measure], _told(lines, whole, measure), lambda: columns(every))


class _Scale:
    """An axis with room for values above and below its points: its ends, and pixels from its foot."""

    def __init__(self, values: Sequence[float], log: bool, pixels: int):
        self.log, self.pixels = log and all(value > 0 for value in values), pixels
        found = [self.at(value) for value in values] or [0.0]
        low, high = min(found), max(found)
        room = 26 / pixels * (high - low) / (1 - 52 / pixels) or 1.0
        self.low, self.high = low - room, high + room

    def at(self, value: float) -> float:
        """A value as plotly takes the places of annotations: of a log axis, its exponent."""
        return math.log10(value) if self.log else value

    def height(self, value: float) -> float:
        return (self.at(value) - self.low) / (self.high - self.low) * self.pixels


def _entry(curve: RunCurve, row: Row, measure: Measure) -> Spec:
    return {"id": curve.id, "label": curve.label, "colour": curve.colour, "x": row["step"], "y": row[measure],
            "epoch": row.get("epoch"), "images": row.get("images")}  # fmt: skip


def _line(line: Sequence[Spec], place: int, measure: Measure) -> Spec:
    symbol = SYMBOLS[place % len(SYMBOLS)]
    return {
        "type": "scatter", "mode": "lines+markers", "name": line[0]["label"], "x": [e["x"] for e in line],
        "y": [e["y"] for e in line], "line": {"color": line[0]["colour"], "width": 2.2},
        "marker": {"symbol": symbol, "size": 6, "color": line[0]["colour"]}, **_tips(line, measure),
    }  # fmt: skip


def _mark(entry: Spec, symbol: str, size: int, measure: Measure) -> Spec:
    return {
        "type": "scatter", "mode": "markers", "name": entry["label"], "x": [entry["x"]], "y": [entry["y"]],
        "marker": {"symbol": symbol, "size": size, "color": entry["colour"],
                   "line": {"width": 2.4 if symbol.endswith("open") else 0}},
        "cliponaxis": False, **_tips([entry], measure),
    }  # fmt: skip


def _tips(entries: Sequence[Spec], measure: Measure) -> Spec:
    def more(entry: Spec) -> str:
        epoch = "" if entry["epoch"] is None else f"<br>epoch {entry['epoch']:.2f}"
        return epoch + (f"<br>{entry['images']:,} test images" if entry["images"] else "")

    value = "%{y:.2f} %" if measure == "top1" else "%{y:.4g} nats"
    return {"customdata": [[entry["label"], more(entry)] for entry in entries],
            "hovertemplate": f"<b>%{{customdata[0]}}</b><br>{value} at step %{{x:,.0f}}%{{customdata[1]}}"
                             "<extra></extra>"}  # fmt: skip


def _values(
    lines: Sequence[Sequence[Spec]], whole: Sequence[Spec], teacher: Row | None, measure: Measure, scale: _Scale,
    x_end: float, theme: Theme,
) -> list[Spec]:  # fmt: skip
    """What each line starts and ends at: starts above the upper ones and below the others, ends to the right."""

    def note(entry: Spec, x: float, shift: tuple[float, float]) -> Spec:
        return {"x": x, "y": scale.at(entry["y"]), "xshift": shift[0], "yshift": shift[1], "xanchor": "left",
                "yanchor": "middle", "showarrow": False, "text": f"<b>{_value(entry['y'], measure)}</b>",
                "font": {"size": 13, "color": theme.text}}  # fmt: skip

    begun = sorted((line for line in lines if line), key=lambda line: -line[0]["y"])
    starts = list({_value(line[0]["y"], measure): line[0] for line in begun}.values())
    found = [note(entry, 0, (11, 15 if i < (len(starts) + 1) // 2 else -15)) for i, entry in enumerate(starts)]
    squares = {entry["id"]: entry["x"] for entry in whole}
    taken = [] if teacher is None else [(STAR * x_end, scale.height(teacher["top1"]))]
    for line in sorted((line for line in begun if line[-1]["x"] > 0), key=lambda line: -line[-1]["y"]):
        end = line[-1]
        x, y = max(end["x"], squares.get(end["id"], 0)), scale.height(end["y"])
        near = [other for place, other in taken if abs(place - x) <= (ROOM - 1) * x_end]
        moves = sorted(range(-10 * LINE, 10 * LINE + 1, 3), key=abs)
        move = next((m for m in moves if all(abs(y + m - other) >= LINE for other in near)), 0)
        taken.append((x, y + move))
        found.append(note(end, x, (12, move)))
    return found


def _value(value: float, measure: Measure) -> str:
    return f"{value:.1f} %" if measure == "top1" else f"{value:.2g}"


def _teacher(curves: Sequence[RunCurve]) -> Row | None:
    rows = [row for curve in curves if (row := curve.teacher_row) is not None and math.isfinite(row["top1"])]
    return rows[-1] if rows else None


def _told(lines: Sequence[Sequence[Spec]], whole: Sequence[Spec], measure: Measure) -> str:
    begun = [line for line in lines if line]
    told = [f"{line[0]['label']} starts at {_value(line[0]['y'], measure)}" for line in begun]
    told += [
        f"{line[-1]['label']} is at {_value(line[-1]['y'], measure)} after {line[-1]['x']:,} steps"
        for line in begun if line[-1]["x"] > 0
    ]  # fmt: skip
    told += [f"{e['label']} ends at {_value(e['y'], measure)} of all {e['images']:,} test images" for e in whole]
    return f"{TITLES[measure]} against training step: {'; '.join(told) or 'nothing is measured yet'}."
