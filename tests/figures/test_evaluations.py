"""A line holds evaluations on the same test images; the end on all of them stands beside it."""

import json
from typing import Any

import pytest

from upvit_core.figures.evaluations import Points
from upvit_core.figures.live import marks, since, titles
from upvit_core.figures.runs import COLOURS, RunCurve, speed_table
from upvit_core.figures.theme import LIGHT
from upvit_core.figures.training_curves import plot_training_curves


def row(phase: str, step: int, top1: float, images: int, **more: Any) -> dict[str, Any]:
    return {"phase": phase, "step": step, "top1": top1, "images": images, "images_per_s": 10.0, "kl_teacher": 0.1,
            **more}  # fmt: skip


PART = [
    row("teacher", 0, 92.5, 400), row("surgery", 0, 20.0, 400), row("eval", 5, 60.0, 400), row("eval", 9, 80.0, 400),
    row("final", 9, 79.0, 3000, teacher_top1=92.1),
]  # fmt: skip
WHOLE = [{**entry, "images": 3000} for entry in PART if entry["step"] != 9 or entry["phase"] == "final"]


def test_a_line_has_one_set_of_images() -> None:
    for rows, line, whole in ((PART, [20, 60, 80], PART[-1]), (WHOLE, [20, 60, 79], None), ([], [], None)):
        points = Points(rows)
        assert [entry["top1"] for entry in points.evals] == line
        assert points.whole == whole


def test_a_run_from_before_ends_its_line_where_the_images_change() -> None:
    old = [entry for entry in PART if (entry["phase"], entry["step"]) != ("eval", 9)]
    assert [entry["top1"] for entry in Points(old).evals] == [20, 60]
    assert Points(old).whole == PART[-1]


@pytest.mark.parametrize("rows", [PART, WHOLE])
def test_charts_mark_the_end_on_all_apart(rows: list[dict[str, Any]]) -> None:
    curve = RunCurve("a", "a", COLOURS[0], Points(rows), teacher="demo")
    chart = plot_training_curves([curve], "top1", LIGHT)
    by_symbol = {trace["marker"]["symbol"]: trace for trace in chart.spec["data"] if trace["mode"] == "markers"}
    line = next(trace for trace in chart.spec["data"] if trace["mode"] == "lines+markers")
    part = rows is PART
    assert line["y"] == [20, 60, 80 if part else 79]
    assert set(chart.table()["images"]) == {400 if part else 3000}
    assert ("square-open" in by_symbol) == part
    assert not part or by_symbol["square-open"]["y"] == [79.0]
    assert ("of all 3,000" in chart.alt) == part
    assert ("of 400 test images; □ all 3,000" in json.dumps(chart.spec, ensure_ascii=False)) == part
    assert speed_table([curve]).table()["y"].tolist() == line["y"]


@pytest.mark.parametrize("rows", [PART, WHOLE])
def test_a_browser_is_told_the_line_and_the_end_on_all_apart(rows: list[dict[str, Any]]) -> None:
    points = Points()
    for entry in rows:  # one by one, as they are written
        points.add([entry])
    assert since(points, "evals", 0)[2]["top1"] == [20, 60, 80 if rows is PART else 79]
    whole: Any = marks(points)["whole"]
    assert (whole and whole["top1"]) == (79.0 if rows is PART else None)
    title = titles([points], "top1", relative=False)["y"]
    assert title == "top-1, %" + (" of 400 test images; □ all 3,000" if rows is PART else " of 3,000 test images")
