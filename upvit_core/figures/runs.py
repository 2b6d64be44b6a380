"""Runs as curves: what is measured of them, how axes are named, and the table of accuracy against speed."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from upvit_core.figures.evaluations import Points, Row, counted, has_numbers
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

    data: what it learns and is tested on, as its spec names it.
    """

    id: str
    label: str
    colour: str
    points: Points
    plan: str = ""
    group: str = ""
    teacher: str = ""
    data: str = ""


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


def speed_table(curves: Sequence[RunCurve], *, relative: bool = False) -> Table:
    """Every evaluation: images/s (blocks/s of text) as x, top-1 or perplexity as y.

    `relative` divides each run's speed by its teacher's, measured in the same run.
    """

    def rows() -> dict[str, np.ndarray]:
        speed = {curve.id: _unit(curve, relative) for curve in curves}
        quantity = judged_by(curve.points for curve in curves).key
        return columns(
            [
                {"id": curve.id, "label": curve.label, "group": curve.group, "plan": curve.plan,
                 "x": row["images_per_s"] / speed[curve.id], "y": row[quantity], "phase": _phase(row),
                 "step": row.get("step"), "epoch": row.get("epoch"), "seconds": row.get("seconds"),
                 "images": row.get("images"), "kl": row.get("kl_teacher")}
                for curve in curves for row in curve.points.evals if has_numbers(row, "images_per_s")
            ]
        )  # fmt: skip

    return Table(rows)


TESTED: dict[str, str] = {task.key: task.samples for task in (IMAGES, TEXT)}


def _phase(row: Row) -> str:
    return {"surgery": "after surgery", "start": "before training", "eval": "while training", "final": "at the end"}[
        str(row["phase"])
    ]


def _unit(curve: RunCurve, relative: bool) -> float:
    """The divisor of a run's speeds."""
    row = curve.points.teacher
    return float(row["images_per_s"]) if relative and row is not None and row.get("images_per_s") else 1.0


def title_of(quantity: Quantity, lines: Sequence[Row], whole: Sequence[Row]) -> str:
    """The title of an axis: its quantity, and the numbers of images or tokens of the lines and of the squares."""
    if quantity not in TESTED:
        return TITLES[quantity] + ("; □ of all" if whole else "")
    sizes, all_sizes = ({entry["images"] for entry in part if entry.get("images")} for part in (lines, whole))
    squares = f"; □ all {' or '.join(f'{size:,}' for size in sorted(all_sizes))}" if all_sizes else ""
    return TITLES[quantity] + counted(sizes, TESTED[quantity]) + squares
