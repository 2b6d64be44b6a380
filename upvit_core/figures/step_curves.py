"""Loss, top-1, perplexity or KL of runs against training step, in Vega-Lite; marks as in figures/runs.py."""

from __future__ import annotations

from collections.abc import Sequence

from upvit_core.figures.evaluations import along, has_numbers
from upvit_core.figures.runs import LOSSES, TESTED, TITLES, WHOLE, Quantity, RunCurve, Table, title_of
from upvit_core.figures.theme import Theme
from upvit_core.figures.vega import Row, Spec, VegaChart, columns, layer, spec, table, tip


def step_chart(curves: Sequence[RunCurve], quantity: Quantity, theme: Theme, *, height: int = 240) -> VegaChart:
    """One line a run: losses of training as means over some steps, top-1 or the KL to the teacher at evaluations."""

    lines = _lines(curves, quantity)
    whole = [
        _entry(curve, row, quantity) for curve in curves
        if quantity not in LOSSES and (row := curve.whole) is not None and has_numbers(row, "step", quantity)
    ]  # fmt: skip
    ends = list({entry["id"]: entry for entry in lines}.values())
    names = ["id", "label", "colour", "x", "y", "epoch", "seconds", *([] if quantity in LOSSES else ["images"])]
    mark = {"type": "line", "strokeWidth": 1.8, "point": False if quantity in LOSSES else {"size": 30, "filled": True}}
    tips = [
        tip("label", "run"), tip("x", "step", ",.0f"), tip("y", TITLES[quantity], ".4g"),
        tip("epoch", "epoch", ".2f"), tip("seconds", "seconds of training", ",.0f"),
    ]  # fmt: skip
    layers = [
        layer("lines", mark, detail="id", colour=True, order="x", tooltip=tips),
        layer("ends", {"type": "point", "size": 60, "filled": True, "opacity": 1}, colour=True, tooltip=tips),
    ]
    if quantity not in LOSSES:
        for one in layers:
            one["encoding"]["tooltip"] = [*tips, tip("images", TESTED.get(quantity, "test images or tokens"), ",.0f")]
        layers.append(layer("whole", {**WHOLE, "size": 80}, colour=True, tooltip=layers[0]["encoding"]["tooltip"]))
    told = "; ".join(f"{e['label']} {e['y']:.4g} at step {e['x']:,}" for e in ends) or "nothing yet"
    told += "".join(f"; {e['label']} {e['y']:.4g} of all {e['images']:,}" for e in whole)
    return VegaChart(
        spec(
            layers,
            theme,
            ("step", {"zero": True, "nice": False}),
            (title_of(quantity, lines, whole), {"zero": False, "nice": True, "padding": 8}),
            height,
        ),
        {"lines": table(lines, names), "ends": table(ends, names)}
        | ({} if quantity in LOSSES else {"whole": table(whole, names)}),
        f"{TITLES[quantity]} against step: {told}.",
        lambda: columns(lines),
    )


def step_table(curves: Sequence[RunCurve], quantity: Quantity) -> Table:
    """What the lines hold, as it was written."""
    return Table(lambda: columns(_lines(curves, quantity)))


def _lines(curves: Sequence[RunCurve], quantity: Quantity) -> list[Spec]:
    def rows_of(curve: RunCurve) -> list[Row]:
        if quantity in LOSSES:
            return [r for r in curve.rows if r.get("phase") == "train" and has_numbers(r, "step", quantity)]
        return along(curve.rows, quantity)

    return [_entry(curve, row, quantity) for curve in curves for row in rows_of(curve)]


def _entry(curve: RunCurve, row: Row, quantity: Quantity) -> Spec:
    return {"id": curve.id, "label": curve.label, "colour": curve.colour, "x": row["step"], "y": row[quantity],
            "epoch": row.get("epoch"), "seconds": row.get("seconds"), "images": row.get("images")}  # fmt: skip
