"""Runs as curves: what is measured of them, how axes are named, and the table of accuracy against speed."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from upvit_core.figures.evaluations import Points, Row, counted, has_numbers, sizes_of
from upvit_core.records.task import IMAGES, TEXT, Task

Quantity = Literal["loss", "features", "top1", "perplexity", "kl_teacher"]
# Paul Tol's qualitative colours that differ from the three of the components.
LOSSES = ("loss", "features")
COLOURS = ("#AA3377", "#997700", "#4477AA", "#CC6677", "#228833", "#EE7733", "#6655AA", "#338888", "#BB5566", "#777711")
TITLES: dict[Quantity, str] = {
    "loss": "loss, nats",
    "features": "last feature, mean square",
    **{task.key: task.axis for task in (IMAGES, TEXT)},
    "kl_teacher": "KL to the teacher, nats an image or token",
}


@dataclass(frozen=True)
class RunCurve:
    """One run as it is drawn. Runs of one `group` are joined into a curve.

    data: what it learns and is tested on, as its spec names it; epochs: those planned.
    """

    id: str
    label: str
    colour: str
    points: Points
    plan: str = ""
    group: str = ""
    teacher: str = ""
    data: str = ""
    epochs: int = 1


def judged_by(runs: Iterable[Points]) -> Task:
    """By perplexity where every run that has been evaluated is a language model's, else by top-1."""
    rows = [row for points in runs for row in points.evals]
    return TEXT if rows and all(has_numbers(row, TEXT.key) for row in rows) else IMAGES


def colour_of(position: int) -> str:
    """Colour of a run by its position in the order of creation, so that it keeps it when others are hidden."""
    return COLOURS[position % len(COLOURS)]


@dataclass(frozen=True)
class Table:
    """Columns that are computed when someone asks for them."""

    table: Callable[[], dict[str, np.ndarray]]


def columns(entries: Sequence[Row]) -> dict[str, np.ndarray]:
    """Entries of the same names by name, without what only a picture needs."""
    names = [name for name in (entries[0] if entries else {}) if name != "colour"]
    return {name: np.array([entry[name] for entry in entries], dtype=object) for name in names}


def step_table(curves: Sequence[RunCurve], quantity: Quantity) -> Table:
    """Losses of training as means over some steps; anything else at evaluations on the same images. As written."""

    def rows_of(curve: RunCurve) -> list[Row]:
        rows = curve.points.train if quantity in LOSSES else curve.points.evals
        return [row for row in rows if has_numbers(row, quantity)]

    def rows() -> dict[str, np.ndarray]:
        return columns(
            [
                {"id": curve.id, "label": curve.label, "x": row["step"], "y": row[quantity],
                 "epoch": row.get("epoch"), "seconds": row.get("seconds"), "images": row.get("images")}
                for curve in curves for row in rows_of(curve)
            ]
        )  # fmt: skip

    return Table(rows)


def speed_table(curves: Sequence[RunCurve]) -> Table:
    """Every evaluation of runs that were timed: times the original's speed as x, top-1 or perplexity as y; images/s
    (blocks/s of text) beside them. An elastic run has a row for each size."""

    def rows() -> dict[str, np.ndarray]:
        quantity = judged_by(curve.points for curve in curves).key
        return columns(
            [
                {"id": curve.id, "label": curve.label, "group": curve.group, "plan": curve.plan,
                 "x": x, "y": y, "phase": _phase(row), "removed": removed,
                 "step": row.get("step"), "epoch": row.get("epoch"), "seconds": row.get("seconds"),
                 "images": row.get("images"), "kl": kl, "images_per_s": speed}
                for curve in curves if curve.points.speedup is not None for row in curve.points.evals
                for removed, x, y, speed, kl in _points_of(row, curve.points.speedup, quantity)
            ]
        )  # fmt: skip

    return Table(rows)


def _points_of(row: Row, speedup: float, quantity: str) -> list[tuple[Any, ...]]:
    """Percent removed, x, y, images/s and KL in nats of an evaluation, or of each size of an elastic run's."""
    sizes = [(removed, x, y, speed, kl) for removed, x, y, speed, _, kl in sizes_of(row)]
    return sizes or [(None, speedup, row.get(quantity), row.get("images_per_s"), row.get("kl_teacher"))]


TESTED: dict[str, str] = {task.key: task.samples for task in (IMAGES, TEXT)}


def _phase(row: Row) -> str:
    return {"surgery": "after surgery", "start": "before training", "eval": "while training", "final": "at the end"}[
        str(row["phase"])
    ]


def title_of(quantity: Quantity, lines: Sequence[Row], whole: Sequence[Row]) -> str:
    """The title of an axis: its quantity, and the numbers of images or tokens of the lines and of the squares."""
    if quantity not in TESTED:
        return TITLES[quantity] + ("; □ of all" if whole else "")
    sizes, all_sizes = ({entry["images"] for entry in part if entry.get("images")} for part in (lines, whole))
    squares = f"; □ all {' or '.join(f'{size:,}' for size in sorted(all_sizes))}" if all_sizes else ""
    return TITLES[quantity] + counted(sizes, TESTED[quantity]) + squares
