"""Evaluations of runs against training steps: where each starts, how it climbs and where it ends, with the values.

Every line is of the same test images; a hollow square is the end on all of them, where the line is of a part. Top-1
shows how far apart runs are, the KL to the teacher (log axis) what still happens near the teacher.
"""

import math
from collections.abc import Sequence
from typing import Literal

from upvit_core.figures.evaluations import Row, has_numbers
from upvit_core.figures.runs import RunCurve, columns, title_of
from upvit_core.figures.theme import Chart, Spec, Theme, axis, drawn, lines, log_ticks, markers, note

Measure = Literal["top1", "kl_teacher"]
TITLES: dict[Measure, str] = {"top1": "top-1, %", "kl_teacher": "KL to the teacher, nats an image"}
# Marks that distinguish lines beside their colours, and the same as text on a page.
SYMBOLS = ("circle", "diamond", "triangle-up", "triangle-down", "cross")
GLYPHS = ("●", "◆", "▲", "▼", "✚")
ROOM, STAR = 1.35, 1.3  # of the steps: values stand to the right of the ends, the teacher beyond them
LINE = 18  # pixels between values


def plot_training_curves(curves: Sequence[RunCurve], measure: Measure, theme: Theme, *, height: int = 300) -> Chart:
    """`curves` are the runs with their labels; a hollow circle is a start, before any training."""
    series = [
        [
            _entry(curve, row, measure)
            for row in curve.points.evals
            if has_numbers(row, measure) and math.isfinite(row[measure])
        ]
        for curve in curves
    ]
    wholes = [(curve, row) for curve in curves if (row := curve.points.whole) is not None]
    whole = [
        _entry(curve, row, measure)
        for curve, row in wholes
        if has_numbers(row, "step", measure) and math.isfinite(row[measure])
    ]
    teacher = _teacher(curves) if measure == "top1" else None
    every = [entry for line in series for entry in line]
    x_end = max([1, *(entry["x"] for entry in (*every, *whole))])
    top, bottom = 14, 48
    values = [entry["y"] for entry in (*every, *whole)] + ([teacher["top1"]] if teacher else [])
    scale = _Scale(values, measure == "kl_teacher", height - top - bottom)
    traces = [_line(line, i, measure) for i, line in enumerate(series) if line]
    traces += [_mark(line[0], "circle-open", 15, measure) for line in series if line]
    traces += [_mark(line[-1], SYMBOLS[i % len(SYMBOLS)], 12, measure) for i, line in enumerate(series) if line]
    traces += [_mark(entry, "square-open", 12, measure) for entry in whole]
    shapes = []
    if teacher is not None:
        goal = teacher["top1"]
        star = {"label": curves[0].teacher or "the teacher", "colour": theme.text, "x": STAR * x_end, "y": goal}
        traces.append(_mark({**star, "epoch": None, "images": teacher.get("images")}, "star", 14, measure))
        across = {"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": goal, "y1": goal, "layer": "below"}
        shapes.append({**across, "line": {"color": theme.quiet, "width": 1, "dash": "dot"}})
    title = title_of("top1", every, whole) if measure == "top1" else TITLES[measure]
    kind: Spec = {}
    if scale.log:
        exponents, words = log_ticks(scale.low, scale.high)
        title += " (log)"
        kind = {"type": "log", "tickvals": [10**exponent for exponent in exponents], "ticktext": words}
    layout: Spec = {
        "annotations": _values(series, whole, teacher, measure, scale, x_end, theme),
        "shapes": shapes,
        "hovermode": "closest",
        "uirevision": measure,
        "xaxis": axis(theme, "training step", range=[-0.02 * x_end, ROOM * x_end]),
        "yaxis": axis(theme, title, range=[scale.low, scale.high], **kind),
    }
    figure = drawn(traces, layout, theme, height=height, margin=(58, 12, top, bottom))
    return Chart(figure, TITLES[measure], _alt(series, whole, measure), lambda: columns(every))


class _Scale:
    """An axis with room for values above and below its points: its ends, and pixels from its foot."""

    def __init__(self, values: Sequence[float], log: bool, pixels: int):
        self.log, self.pixels = log and all(value > 0 for value in values), pixels
        places = [self.at(value) for value in values] or [0.0]
        low, high = min(places), max(places)
        room = 26 / pixels * (high - low) / (1 - 52 / pixels) or 1.0
        self.low, self.high = low - room, high + room

    def at(self, value: float) -> float:
        """The value's place as plotly's annotations take it: on a log axis, its exponent."""
        return math.log10(value) if self.log else value

    def height(self, value: float) -> float:
        return (self.at(value) - self.low) / (self.high - self.low) * self.pixels


def _entry(curve: RunCurve, row: Row, measure: Measure) -> Spec:
    run = {"id": curve.id, "label": curve.label, "colour": curve.colour}
    return {**run, "x": row["step"], "y": row[measure], "epoch": row.get("epoch"), "images": row.get("images")}


def _line(line: Sequence[Spec], place: int, measure: Measure) -> Spec:
    name, colour = line[0]["label"], line[0]["colour"]
    points = {"symbol": SYMBOLS[place % len(SYMBOLS)], "size": 6, "color": colour}
    more: Spec = {"mode": "lines+markers", "name": name, "marker": points, **_tips(line, measure)}
    return lines([e["x"] for e in line], [e["y"] for e in line], colour, 2.2, **more)


def _mark(entry: Spec, symbol: str, size: int, measure: Measure) -> Spec:
    edge = {"width": 2.4 if symbol.endswith("open") else 0}
    marker = {"symbol": symbol, "size": size, "color": entry["colour"], "line": edge}
    tips = _tips([entry], measure)
    return markers([entry["x"]], [entry["y"]], marker, name=entry["label"], cliponaxis=False, **tips)


def _tips(entries: Sequence[Spec], measure: Measure) -> Spec:
    def more(entry: Spec) -> str:
        epoch = "" if entry["epoch"] is None else f"<br>epoch {entry['epoch']:.2f}"
        return epoch + (f"<br>{entry['images']:,} test images" if entry["images"] else "")

    value = "%{y:.2f} %" if measure == "top1" else "%{y:.4g} nats"
    template = f"<b>%{{customdata[0]}}</b><br>{value} at step %{{x:,.0f}}%{{customdata[1]}}<extra></extra>"
    return {"customdata": [[entry["label"], more(entry)] for entry in entries], "hovertemplate": template}


def _values(
    series: Sequence[Sequence[Spec]],
    whole: Sequence[Spec],
    teacher: Row | None,
    measure: Measure,
    scale: _Scale,
    x_end: float,
    theme: Theme,
) -> list[Spec]:
    """The first and last value of each line: starts above the upper ones and below the others, ends to the right."""

    def value(entry: Spec, x: float, right: int, up: int) -> Spec:
        text = f"<b>{_value(entry['y'], measure)}</b>"
        place: Spec = {"xshift": right, "yshift": up, "xanchor": "left", "yanchor": "middle"}
        return note(text, x, scale.at(entry["y"]), theme.text, **place)

    begun = sorted((line for line in series if line), key=lambda line: -line[0]["y"])
    starts = list({_value(line[0]["y"], measure): line[0] for line in begun}.values())
    notes = [value(entry, 0, 11, 15 if i < (len(starts) + 1) // 2 else -15) for i, entry in enumerate(starts)]
    squares = {entry["id"]: entry["x"] for entry in whole}
    taken = [] if teacher is None else [(STAR * x_end, scale.height(teacher["top1"]))]
    for line in sorted((line for line in begun if line[-1]["x"] > 0), key=lambda line: -line[-1]["y"]):
        end = line[-1]
        x, y = max(end["x"], squares.get(end["id"], 0)), scale.height(end["y"])
        near = [other for place, other in taken if abs(place - x) <= (ROOM - 1) * x_end]
        moves = sorted(range(-10 * LINE, 10 * LINE + 1, 3), key=abs)
        move = next((m for m in moves if all(abs(y + m - other) >= LINE for other in near)), 0)
        taken.append((x, y + move))
        notes.append(value(end, x, 12, move))
    return notes


def _value(value: float, measure: Measure) -> str:
    return f"{value:.1f} %" if measure == "top1" else f"{value:.2g}"


def _teacher(curves: Sequence[RunCurve]) -> Row | None:
    rows = [row for curve in curves if (row := curve.points.teacher) is not None and math.isfinite(row["top1"])]
    return rows[-1] if rows else None


def _alt(series: Sequence[Sequence[Spec]], whole: Sequence[Spec], measure: Measure) -> str:
    begun = [line for line in series if line]
    words = [f"{line[0]['label']} starts at {_value(line[0]['y'], measure)}" for line in begun]
    ends = [(line[-1]["label"], _value(line[-1]["y"], measure), line[-1]["x"]) for line in begun if line[-1]["x"] > 0]
    words += [f"{label} is at {value} after {step:,} steps" for label, value, step in ends]
    words += [f"{e['label']} ends at {_value(e['y'], measure)} of all {e['images']:,} test images" for e in whole]
    return f"{TITLES[measure]} against training step: {'; '.join(words) or 'nothing is measured yet'}."
