"""A line holds evaluations on the same test images; the end on all of them stands beside it."""

import json
from typing import Any

import pytest

from upvit_core.figures.evaluations import along, on_all
from upvit_core.figures.live import Points, titles
from upvit_core.figures.runs import COLOURS, RunCurve, speed_table
from upvit_core.figures.starts import starts_chart
from upvit_core.figures.step_curves import step_chart
from upvit_core.figures.theme import LIGHT


def row(phase: str, step: int, top1: float, images: int, **more: Any) -> dict[str, Any]:
    return {"phase": phase, "step": step, "top1": top1, "images": images, "images_per_s": 10.0, "kl_teacher": 0.1,
            **more}  # fmt: skip


PART = [
    row("teacher", 0, 92.5, 400), row("surgery", 0, 20.0, 400), row("eval", 5, 60.0, 400), row("eval", 9, 80.0, 400),
    row("final", 9, 79.0, 3000, teacher_top1=92.1),
]  # fmt: skip
WHOLE = [{**entry, "images": 3000} for entry in PART if entry["step"] != 9 or entry["phase"] == "final"]


def test_a_line_has_one_set_of_images() -> None:
    assert [entry["top1"] for entry in along(PART)] == [20, 60, 80]
    assert on_all(PART) == PART[-1]
    assert [entry["top1"] for entry in along(WHOLE)] == [20, 60, 79]
    assert on_all(WHOLE) is None
    assert along([]) == [] and on_all([]) is None  # noqa: PT018


def test_a_run_from_before_ends_its_line_where_the_images_change() -> None:
    old = [entry for entry in PART if (entry["phase"], entry["step"]) != ("eval", 9)]
    assert [entry["top1"] for entry in along(old)] == [20, 60]
    assert on_all(old) == PART[-1]


@pytest.mark.parametrize("rows", [PART, WHOLE])
def test_charts_mark_the_end_on_all_apart(rows: list[dict[str, Any]]) -> None:
    curve = RunCurve("a", "a", COLOURS[0], rows, teacher="demo")
    steps, starts = step_chart([curve], "top1", LIGHT), starts_chart([curve], "top1", LIGHT)
    for line in (steps.datasets["lines"], starts.datasets["lines"]):
        assert line["images"].nunique() == 1
        assert line["y"].tolist() == [entry["top1"] for entry in along(rows)]
    part = rows is PART
    for chart in (steps, starts):
        assert chart.datasets["whole"]["y"].tolist() == ([79.0] if part else [])
        assert ("of all 3,000" in chart.alt) == part
    assert ("of 400 test images; □ all 3,000" in json.dumps(steps.spec, ensure_ascii=False)) == part
    assert speed_table([curve]).table()["y"].tolist() == [entry["top1"] for entry in along(rows)]
    assert "whole" not in step_chart([curve], "loss", LIGHT).datasets


@pytest.mark.parametrize("rows", [PART, WHOLE])
def test_a_browser_is_told_the_line_and_the_end_on_all_apart(rows: list[dict[str, Any]]) -> None:
    points = Points()
    for entry in rows:  # one by one, as they are written
        points.add([entry])
    assert points.since("evals", 0)[2]["top1"] == [entry["top1"] for entry in along(rows)]
    assert points.tested == along(rows)[0]["images"]
    assert (points.whole and points.whole["top1"]) == (79.0 if rows is PART else None)
    title = titles([points], "top1", relative=False)["y"]
    assert title == "top-1, %" + (" of 400 test images; □ all 3,000" if rows is PART else " of 3,000 test images")
