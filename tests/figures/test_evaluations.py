"""A line holds evaluations on the same test images; the end on all of them stands beside it."""

import json
from typing import Any

import pytest

from upvit_core.figures.evaluations import along, on_all
from upvit_core.figures.runs import COLOURS, RunCurve, speed_chart
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
    speed, steps, starts = speed_chart([curve], LIGHT), step_chart([curve], "top1", LIGHT), starts_chart(
        [curve], "top1", LIGHT
    )  # fmt: skip
    lines = [speed.datasets["path"], steps.datasets["lines"], starts.datasets["lines"]]
    for line in lines:
        assert line["images"].nunique() == 1
        assert line["y"].tolist() == [entry["top1"] for entry in along(rows)]
    part = rows is PART
    for chart in (speed, steps, starts):
        assert chart.datasets["whole"]["y"].tolist() == ([79.0] if part else [])
        assert ("of all 3,000" in chart.alt) == part
    assert speed.datasets["whole teacher"]["y"].tolist() == (pytest.approx([92.1]) if part else [])
    for chart in (speed, steps):
        assert ("of 400 test images; □ all 3,000" in json.dumps(chart.spec, ensure_ascii=False)) == part
    assert "whole" not in step_chart([curve], "loss", LIGHT).datasets
