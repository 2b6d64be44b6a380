"""A line holds evaluations on the same test images; the end on all of them stands beside it."""

from typing import Any

import pytest

from upvit_core.figures.evaluations import Points
from upvit_core.figures.live import marks, since, titles
from upvit_core.figures.runs import COLOURS, RunCurve, speed_table


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


def test_the_speed_up_is_the_one_that_was_measured_in_turns_whatever_is_measured_later() -> None:
    timed = [{**entry, "speedup": 2.5} if entry["phase"] == "surgery" else entry for entry in PART]
    table = speed_table([RunCurve("a", "a", COLOURS[0], Points(timed)), RunCurve("b", "b", COLOURS[1], Points(PART))])
    assert (table.table()["x"].tolist(), table.table()["y"].tolist()) == ([2.5] * 3, [20, 60, 80])


@pytest.mark.parametrize("rows", [PART, WHOLE])
def test_a_browser_is_told_the_line_and_the_end_on_all_apart(rows: list[dict[str, Any]]) -> None:
    points = Points()
    for entry in rows:  # one by one, as they are written
        points.add([entry])
    assert since(points, "evals", 0)[2]["top1"] == [20, 60, 80 if rows is PART else 79]
    whole: Any = marks(points)["whole"]
    assert (whole and whole["top1"]) == (79.0 if rows is PART else None)
    title = titles([points], "top1")["y"]
    assert title == "top-1, %" + (" of 400 test images; □ all 3,000" if rows is PART else " of 3,000 test images")
