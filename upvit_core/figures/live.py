"""Measurements of runs in growing columns, from which a browser receives only those that it does not have yet.

A row of metrics.jsonl becomes a few numbers in one of two lists, evaluations and losses of training; only the number of
entries that a browser has received must be remembered to send it the rest.
"""

import math
from collections.abc import Iterable, Sequence

from upvit_core.figures.evaluations import EVALUATED, Row, has_numbers
from upvit_core.figures.published import PUBLISHED
from upvit_core.figures.runs import TITLES, Quantity, title_of

PHASES = ("teacher", *EVALUATED)
COLUMNS = {
    "evals": ("step", "epoch", "seconds", "phase", "top1", "perplexity", "images_per_s", "images", "kl_teacher"),
    "train": ("step", "epoch", "seconds", "loss", "features"),
}
DRAWN = {"evals": ("perplexity", "top1"), "train": ("loss",)}
TEACHER = ("top1", "perplexity", "images_per_s", "images", "device", "batch_size", "dtype", "threads")
WHOLE = (*(name for name in COLUMNS["evals"] if name != "phase"), "teacher_top1", "teacher_perplexity")
MOST = 600  # points of one run's line that are sent at once; a screen has no more columns for it
DIGITS = 6
Columns = dict[str, list[float | int | None]]
Part = tuple[int, int, Columns]  # from, next, and the columns of what lies between


class Points:
    """Measurements of one run so far, in columns; rows are added as they are written."""

    def __init__(self) -> None:
        self.columns: dict[str, Columns] = {kind: {n: [] for n in names} for kind, names in COLUMNS.items()}
        self.count = {**dict.fromkeys(COLUMNS, 0), "marks": 0}
        self.teacher: dict[str, object] | None = None
        # The end on all test images, where the others are on a part of them.
        self.whole: dict[str, float | int | None] | None = None
        self.tested: object = None  # images or tokens of the evaluations in `columns`
        self.of_text: bool | None = None  # not known before the first evaluation

    def add(self, rows: Iterable[Row]) -> None:
        """Rows that are neither evaluations nor training, or without numbers where they belong, are left out."""
        for row in rows:
            phase = row.get("phase")
            if phase == "train" and _number(row.get("step")) is not None:
                self._append("train", row)
            elif phase == "teacher" and _number(row.get("top1")) is not None:
                self.teacher = {name: _plain(row.get(name)) for name in TEACHER}
                self.count["marks"] += 1
            elif phase in PHASES and has_numbers(row, "step", "top1", "images_per_s"):
                self._evaluation(row)

    def _evaluation(self, row: Row) -> None:
        """Into the line where it is of the same images as the first; else it may be the end on all of them."""
        if not self.count["evals"]:
            self.tested = row.get("images")
        if row.get("images") == self.tested:
            self._append("evals", {**row, "phase": PHASES.index(row["phase"])})
            self.of_text = bool(self.of_text) or "perplexity" in row
        elif row["phase"] == "final":
            self.whole = {name: _number(row.get(name)) for name in WHOLE}
            self.count["marks"] += 1

    def _append(self, kind: str, row: Row) -> None:
        for name, column in self.columns[kind].items():
            column.append(_number(row.get(name)))
        self.count[kind] += 1

    def since(self, kind: str, first: int) -> Part:
        """Entries of a kind after the first `first`; their extremes where they are more than a line can show."""
        columns, count = self.columns[kind], self.count[kind]
        drawn = next((columns[name] for name in DRAWN[kind] if count > first and columns[name][first] is not None), [])
        places = _extremes(drawn, first, count) if count - first > MOST and drawn else range(first, count)
        shown = {name: [column[i] for i in places] for name, column in columns.items()}
        return first, count, {name: column for name, column in shown.items() if any(v is not None for v in column)}


def _extremes(values: Sequence[float | None], first: int, end: int) -> list[int]:
    """Places of the lowest and the highest in each of MOST / 2 stretches, with the first and the last of all."""
    kept = {first, end - 1}
    stretches = MOST // 2
    for number in range(stretches):
        places = range(first + (end - first) * number // stretches, first + (end - first) * (number + 1) // stretches)
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


def titles(runs: Sequence[Points], quantity: Quantity, *, relative: bool) -> dict[str, str]:
    """Titles of the axes: how speed was measured and on how many images or tokens, where all runs agree."""
    inputs = "images" if quantity == "top1" else "blocks"
    measured = f"{inputs}/s, measured{_conditions(runs)}"
    line, whole = [{"images": run.tested} for run in runs], [run.whole for run in runs if run.whole is not None]
    return {
        "x": f"× the teacher's {inputs}/s, measured in the same run" if relative else measured,
        "y": title_of(quantity, line, whole),
        "task": TITLES[quantity],
        "loss": TITLES["loss"],
        "features": TITLES["features"],
    }


def _conditions(runs: Sequence[Points]) -> str:
    """` · AMD EPYC, batch 32, float32, 2 threads`."""
    rows = [run.teacher for run in runs if run.teacher is not None]
    names = ("device", "batch_size", "dtype", "threads")
    conditions = {tuple(row[name] for name in names) for row in rows if row["device"]}
    if len(conditions) != 1:
        return " on several devices or settings" if conditions else ""
    device, batch, dtype, threads = conditions.pop()
    parts = [device, batch and f"batch {batch}", dtype, threads and f"{threads} thread{'' if threads == 1 else 's'}"]
    return " · " + ", ".join(str(part) for part in parts if part)


def published() -> list[tuple[str, float, float, str]]:
    """Name, images/s, top-1 and a note, as published for ImageNet."""
    return [
        (entry.name, entry.images_per_s, entry.top1, entry.note or "as published, ImageNet")
        for entry in PUBLISHED
        if entry.images_per_s is not None
    ]
