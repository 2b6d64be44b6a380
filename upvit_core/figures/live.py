"""Measurements of runs as columns, of which a browser receives only the entries that it does not have yet.

A row of metrics.jsonl becomes a few numbers of an evaluation or of a loss of training; only the number of entries that
a browser has received must be remembered to send it the rest.
"""

import math
from collections.abc import Sequence
from typing import Any

from upvit_core.figures.evaluations import EVALUATED, Points, Row, has_numbers, sizes_of
from upvit_core.figures.published import PUBLISHED
from upvit_core.figures.runs import TITLES, Quantity, title_of

PHASES = ("teacher", *EVALUATED)
WHEN = ("step", "epoch", "seconds")
COLUMNS = {
    "evals": (
        *WHEN,
        "phase",
        "top1",
        "perplexity",
        "images_per_s",
        "images",
        "kl_teacher",
        "cosine",
        "speedup",
        "ladder",
    ),
    "train": (*WHEN, "loss", "features"),
}
DRAWN = {"evals": ("perplexity", "top1"), "train": ("loss",)}
TEACHER = ("top1", "perplexity", "images_per_s", "images", "device", "batch_size", "dtype", "threads")
NO_NUMBERS = ("phase", "ladder")
NUMBERS = {kind: [name for name in names if name not in NO_NUMBERS] for kind, names in COLUMNS.items()}
WHOLE = (*(name for name in NUMBERS["evals"] if name != "speedup"), "teacher_top1", "teacher_perplexity")
MOST = 600  # points of one run's line that are sent at once; a screen has no more columns for it
DIGITS = 6
Columns = dict[str, list[Any]]
Part = tuple[int, int, Columns]  # from, next, and the columns of what lies between


def counts(points: Points) -> dict[str, int]:
    """Numbers of entries of each kind, and of `marks`."""
    return {**{kind: len(getattr(points, kind)) for kind in COLUMNS}, "marks": points.marks}


def since(points: Points, kind: str, first: int) -> Part:
    """Entries of a kind after the first `first`; their extremes where they are more than a line can show."""
    rows: list[Row] = getattr(points, kind)[first:]
    if len(rows) > MOST and (drawn := next((name for name in DRAWN[kind] if has_numbers(rows[0], name)), None)):
        places = _extremes([_number(row.get(drawn)) for row in rows])
        shown = [rows[place] for place in places]
    else:
        shown = rows
    columns: Columns = {name: [_number(row.get(name)) for row in shown] for name in NUMBERS[kind]}
    if kind == "evals":
        columns["phase"] = [PHASES.index(row["phase"]) for row in shown]
        columns["ladder"] = [[[_number(value) for value in size] for size in sizes_of(row)] or None for row in shown]
    return first, first + len(rows), {n: column for n, column in columns.items() if any(v is not None for v in column)}


def marks(points: Points) -> dict[str, object]:
    """The teacher's evaluation and the end on all test images, None where they are not there."""
    teacher, whole = points.teacher, points.whole
    return {
        "teacher": None if teacher is None else {name: _plain(teacher.get(name)) for name in TEACHER},
        "whole": None if whole is None else {name: _number(whole.get(name)) for name in WHOLE},
    }


def _extremes(values: Sequence[float | None]) -> list[int]:
    """Places of the lowest and the highest in each of MOST / 2 stretches, with the first and the last of all."""
    count, stretches = len(values), MOST // 2
    kept = {0, count - 1}
    for number in range(stretches):
        places = range(count * number // stretches, count * (number + 1) // stretches)
        numbers = [i for i in places if values[i] is not None]
        if numbers:
            kept |= {min(numbers, key=lambda i: values[i] or 0.0), max(numbers, key=lambda i: values[i] or 0.0)}
    return sorted(kept)


def _number(value: object) -> float | int | None:
    """A finite number, rounded; JSON has no others."""
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None
    return value if isinstance(value, int) else None


def _plain(value: object) -> object:
    return value if isinstance(value, str) else _number(value)


def titles(runs: Sequence[Points], quantity: Quantity) -> dict[str, str]:
    """Titles of the axes: how speed was measured and on how many images or tokens, where all runs agree."""
    inputs = "images" if quantity == "top1" else "blocks"
    line = [row for run in runs for row in run.evals[:1]]
    whole = [run.whole for run in runs if run.whole is not None]
    return {
        "x": f"speed, times the original, in turns{_conditions(runs)}",
        "speed": f"{inputs}/s",
        "y": title_of(quantity, line, whole),
        "task": TITLES[quantity],
        "loss": TITLES["loss"],
        "features": TITLES["features"],
    }


def _conditions(runs: Sequence[Points]) -> str:
    """` · AMD EPYC, batch 32, float32, 2 threads`."""
    rows = [run.teacher for run in runs if run.teacher is not None]
    names = ("device", "batch_size", "dtype", "threads")
    conditions = {tuple(row.get(name) for name in names) for row in rows if row.get("device")}
    if len(conditions) != 1:
        return " on several devices or settings" if conditions else ""
    device, batch, dtype, threads = conditions.pop()
    parts = [device, batch and f"batch {batch}", dtype, threads and f"{threads} thread{'' if threads == 1 else 's'}"]
    return " · " + ", ".join(str(part) for part in parts if part)


def published() -> list[tuple[str, float, float, str]]:
    """Name, times DeiT-B's speed, top-1 and a note, as published for ImageNet."""
    return [
        (entry.name, entry.speed_up, entry.top1, entry.note or "as published, ImageNet")
        for entry in PUBLISHED
        if entry.speed_up is not None
    ]
