"""Runs as pictures: top-1 against images/s, and loss and top-1 against step. Vega-Lite, whose node a page can keep.

Only the named data sets change while a run goes on; the specification stays, so that the browser redraws points in
place. Filled marks are measured, hollow diamonds published. A line holds evaluations on the same test images; where
they are a part of them, a hollow square (of a teacher, a hollow star) is the end on all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Literal

import numpy as np

from upvit_core.figures.evaluations import along, counted, has_numbers, on_all
from upvit_core.figures.published import PUBLISHED
from upvit_core.figures.theme import Theme
from upvit_core.figures.vega import Row, Spec, VegaChart, columns, layer, rule, spec, table, text_mark, tip

Quantity = Literal["loss", "features", "top1", "perplexity", "kl_teacher"]
# Paul Tol's qualitative colours that differ from the three of the components.
LOSSES = ("loss", "features")
COLOURS = ("#AA3377", "#997700", "#4477AA", "#CC6677", "#228833", "#EE7733", "#6655AA", "#338888", "#BB5566", "#777711")
STAR = (
    "M0,-1 L0.225,-0.31 L0.951,-0.309 L0.363,0.118 L0.588,0.809 L0,0.382 L-0.588,0.809 L-0.363,0.118 "
    "L-0.951,-0.309 L-0.225,-0.31 Z"
)
WHOLE: Spec = {"type": "point", "shape": "square", "size": 120, "filled": False, "strokeWidth": 2.4, "opacity": 1}
TITLES: dict[Quantity, str] = {
    "loss": "loss, nats",
    "features": "last feature, mean square",
    "top1": "top-1, %",
    "perplexity": "perplexity a token, less is better",
    "kl_teacher": "KL to the teacher, nats an image or token",
}


@dataclass(frozen=True)
class RunCurve:
    """One run as it is drawn; `rows` are those of its metrics.jsonl. Runs of one `group` are joined into a curve."""

    id: str
    label: str
    colour: str
    rows: Sequence[Row]
    plan: str = ""
    group: str = ""
    teacher: str = ""

    @property
    def evaluations(self) -> list[Row]:
        """After surgery and at each evaluation on the same images, by step; empty until the first is there."""
        return along(self.rows, "images_per_s")

    @property
    def whole(self) -> Row | None:
        """The end on all test images, where `evaluations` are of a part of them."""
        return on_all(self.rows)

    @property
    def teacher_row(self) -> Row | None:
        return next((row for row in self.rows if row.get("phase") == "teacher" and has_numbers(row, "top1")), None)

    @property
    def latest(self) -> Row | None:
        found = self.evaluations
        return found[-1] if found else None


def judged_by(curves: Sequence[RunCurve]) -> Literal["top1", "perplexity"]:
    """Perplexity where every run that has been evaluated is a language model's, else top-1."""
    rows = [row for curve in curves for row in curve.evaluations]
    return "perplexity" if rows and all(has_numbers(row, "perplexity") for row in rows) else "top1"


def colour_of(position: int) -> str:
    """Colour of a run by its position in the order of creation, so that it keeps it when others are hidden."""
    return COLOURS[position % len(COLOURS)]


def front_of(points: Sequence[tuple[float, float]]) -> list[int]:
    """Positions of the points that no other beats in both values, from left to right."""
    order = sorted(range(len(points)), key=lambda i: (-points[i][0], -points[i][1]))
    best, kept = -np.inf, []
    for i in order:
        if points[i][1] > best:
            best = points[i][1]
            kept.append(i)
    return kept[::-1]


def speed_chart(
    curves: Sequence[RunCurve], theme: Theme, *, relative: bool = False, published: bool = False, height: int = 440
) -> VegaChart:
    """Top-1 against images/s, or perplexity against blocks of text a second.

    `relative` divides each run's speed by its teacher's, measured in the same run.
    """
    speed = {curve.id: _unit(curve, relative) for curve in curves}
    quantity = judged_by(curves)
    better = -1 if quantity == "perplexity" else 1
    path = [
        {**_describe(curve), "x": row["images_per_s"] / speed[curve.id], "y": row[quantity], "phase": _phase(row),
         "step": row.get("step"), "epoch": row.get("epoch"), "seconds": row.get("seconds"), "images": row.get("images"),
         "kl": row.get("kl_teacher")}
        for curve in curves for row in curve.evaluations
    ]  # fmt: skip
    whole = [
        {**_describe(curve), "x": row["images_per_s"] / speed[curve.id], "y": row[quantity], "images": row["images"],
         "kl": row.get("kl_teacher"), "step": row["step"]}
        for curve in curves if (row := curve.whole) is not None and has_numbers(row, quantity, "images_per_s")
    ]  # fmt: skip
    latest = list({entry["id"]: entry for entry in path}.values())
    starts = list({entry["id"]: entry for entry in reversed(path)}.values())
    front = [(entry["x"], entry["y"]) for entry in latest]
    teachers = _teachers(curves, relative, quantity)
    front += [(t["x"], t["y"]) for t in teachers]
    on_front = front_of([(x, better * y) for x, y in front])
    sweeps = [e for e in sorted(latest, key=lambda e: e["x"]) if e["group"] and _shared(latest, e["group"])]
    datasets = {
        "path": table(path, _PATH),
        "latest": table(latest, _PATH),
        "starts": table(starts, _PATH),
        "sweeps": table(sweeps, _PATH),
        "teacher": table(teachers, ("label", "x", "y", "images", "device", "runs")),
        "whole": table(whole, _WHOLE),
        "whole teacher": table(_whole_teachers(curves, teachers, quantity), ("label", "x", "y", "images")),
        "front": table([{"x": front[i][0], "y": front[i][1]} for i in on_front if len(on_front) > 1], ("x", "y")),
        "published": table(_published() if published and not relative else [], ("label", "x", "y", "note")),
    }
    how, told_by = _conditions(curves), _path_tips(quantity)
    inputs = "images" if better > 0 else "blocks"
    title = f"× the teacher's {inputs}/s, measured in the same run" if relative else f"{inputs}/s, measured{how}"
    y_title = title_of(quantity, path, whole)
    layers = [
        layer("front", {"type": "line", "strokeWidth": 7, "opacity": 0.22, "color": theme.text}, order="x"),
        layer("sweeps", {"type": "line", "strokeWidth": 1.6, "strokeDash": [5, 4], "color": theme.quiet}, order="x",
               detail="group"),
        rule("teacher", "x", theme),
        rule("teacher", "y", theme),
        layer("path", {"type": "line", "strokeWidth": 2}, order="step", detail="id", colour=True),
        layer("path", {"type": "point", "size": 34, "filled": True, "opacity": 0.75}, colour=True, tooltip=told_by),
        layer("latest", {"type": "point", "size": 150, "filled": True, "opacity": 1}, colour=True, tooltip=told_by),
        layer("whole", WHOLE, colour=True, tooltip=_whole_tips(quantity)),
        layer("starts", text_mark(theme, 17), text="label"),
        layer("teacher", {"type": "point", "shape": STAR, "size": 190, "filled": True, "opacity": 1,
                           "color": theme.text}, tooltip=_teacher_tips(quantity)),
        layer("whole teacher", {"type": "point", "shape": STAR, "size": 190, "filled": False, "opacity": 1,
                                "color": theme.text}, tooltip=[tip("label", "teacher, all test images"),
                                tip("y", TITLES[quantity], ".2f"), tip("images", TESTED[quantity], ",.0f")]),
        layer("teacher", text_mark(theme, -16), text="label"),
        layer("published", {"type": "point", "shape": "diamond", "size": 120, "filled": False, "strokeWidth": 2,
                             "color": theme.quiet}, tooltip=_PUBLISHED_TIPS),
        layer("published", text_mark(theme, -15, theme.quiet), text="label"),
    ]  # fmt: skip
    sign = " %" if better > 0 else ""
    told = "; ".join(f"{e['label']} {e['y']:.1f}{sign} at {e['x']:,.4g}" for e in latest)
    told += "".join(f"; {e['label']} {e['y']:.1f}{sign} of all {e['images']:,}" for e in whole)
    told = told or "no run has been evaluated yet"
    alt = f"{'Top-1 in percent' if better > 0 else 'Perplexity'} against {title}: {told}."
    scales = {"zero": False, "nice": True, "padding": 24}
    y_scale = scales if better > 0 else {**scales, "type": "log"}
    return VegaChart(
        spec(layers, theme, (title, scales), (y_title, y_scale), height), datasets, alt, lambda: columns(path)
    )


_WHOLE = ("id", "label", "colour", "plan", "x", "y", "images", "kl", "step")
_PATH = ("id", "label", "colour", "group", "plan", "x", "y", "phase", "step", "epoch", "seconds", "images", "kl")


def _path_tips(quantity: Quantity) -> list[Spec]:
    return [
        tip("label", "run"), tip("plan", "plan"), tip("phase", "point"), tip("y", TITLES[quantity], ".2f"),
        tip("images", TESTED[quantity], ",.0f"), tip("x", "speed", ",.4g"),
        tip("kl", "KL to the teacher, nats", ".4f"), tip("epoch", "epoch", ".2f"), tip("step", "step", ",.0f"),
        tip("seconds", "seconds of training", ",.0f"),
    ]  # fmt: skip


def _whole_tips(quantity: Quantity) -> list[Spec]:
    return [
        tip("label", "run, on all test images"), tip("plan", "plan"), tip("y", TITLES[quantity], ".2f"),
        tip("images", TESTED[quantity], ",.0f"), tip("x", "speed", ",.4g"),
        tip("kl", "KL to the teacher, nats", ".4f"), tip("step", "step", ",.0f"),
    ]  # fmt: skip


def _teacher_tips(quantity: Quantity) -> list[Spec]:
    return [
        tip("label", "teacher"), tip("y", TITLES[quantity], ".2f"), tip("images", TESTED[quantity], ",.0f"),
        tip("x", "speed, median over runs", ",.4g"), tip("runs", "runs"), tip("device", "device"),
    ]  # fmt: skip


TESTED: dict[str, str] = {"top1": "test images", "perplexity": "test tokens"}
_PUBLISHED_TIPS = [
    tip("label", "published"), tip("y", "top-1, %", ".2f"), tip("x", "images/s, Titan Xp, batch 32", ",.1f"),
    tip("note", "note"),
]  # fmt: skip


def _describe(curve: RunCurve) -> Spec:
    return {"id": curve.id, "label": curve.label, "colour": curve.colour, "group": curve.group, "plan": curve.plan}


def _phase(row: Row) -> str:
    return {"surgery": "after surgery", "start": "before training", "eval": "while training", "final": "at the end"}[
        str(row["phase"])
    ]


def _unit(curve: RunCurve, relative: bool) -> float:
    """What a run's speeds are divided by."""
    row = curve.teacher_row
    return float(row["images_per_s"]) if relative and row is not None and row.get("images_per_s") else 1.0


def _shared(latest: Sequence[Row], group: str) -> bool:
    return sum(entry["group"] == group for entry in latest) > 1


def _teachers(curves: Sequence[RunCurve], relative: bool, quantity: str) -> list[Spec]:
    """One star a teacher: its top-1 or perplexity, and the median of the speeds that its runs measured."""
    by_name: dict[str, list[Row]] = {}
    for curve in curves:
        if (row := curve.teacher_row) is not None and has_numbers(row, "images_per_s"):
            by_name.setdefault(curve.teacher, []).append(row)
    return [
        {"label": name, "x": 1.0 if relative else median(row["images_per_s"] for row in rows), "y": rows[-1][quantity],
         "images": rows[-1].get("images"), "device": rows[-1].get("device", ""), "runs": len(rows)}
        for name, rows in by_name.items()
    ]  # fmt: skip


def _published() -> list[Spec]:
    return [
        {"label": entry.name, "x": entry.images_per_s, "y": entry.top1, "note": entry.note or "as published, ImageNet"}
        for entry in PUBLISHED
        if entry.images_per_s is not None
    ]


def _conditions(curves: Sequence[RunCurve]) -> str:
    """How the speeds were measured, where all runs agree: ` · AMD EPYC, batch 32, float32, 2 threads`."""
    rows = [curve.teacher_row or {} for curve in curves]
    found = {(r.get("device"), r.get("batch_size"), r.get("dtype"), r.get("threads")) for r in rows if r.get("device")}
    if len(found) != 1:
        return " on several devices or settings" if found else ""
    device, batch, dtype, threads = found.pop()
    parts = [device, batch and f"batch {batch}", dtype, threads and f"{threads} thread{'s' if threads > 1 else ''}"]
    return " · " + ", ".join(str(part) for part in parts if part)


def title_of(quantity: Quantity, lines: Sequence[Row], whole: Sequence[Row]) -> str:
    """What an axis counts, on how many images or tokens the lines are, and on how many the squares."""
    if quantity not in TESTED:
        return TITLES[quantity] + ("; □ of all" if whole else "")
    sizes, all_sizes = ({entry["images"] for entry in part if entry.get("images")} for part in (lines, whole))
    squares = f"; □ all {' or '.join(f'{size:,}' for size in sorted(all_sizes))}" if all_sizes else ""
    return TITLES[quantity] + counted(sizes, TESTED[quantity].removeprefix("test ")) + squares


def _whole_teachers(curves: Sequence[RunCurve], teachers: Sequence[Spec], quantity: str) -> list[Spec]:
    """The teachers again, on all test images, where a run has measured them so at its end."""
    found = {
        curve.teacher: row for curve in curves
        if (row := curve.whole) is not None and has_numbers(row, f"teacher_{quantity}")
    }  # fmt: skip
    return [
        {"label": star["label"], "x": star["x"], "y": found[star["label"]][f"teacher_{quantity}"],
         "images": found[star["label"]]["images"]}
        for star in teachers if star["label"] in found
    ]  # fmt: skip
