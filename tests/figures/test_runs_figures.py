import json
from pathlib import Path
from typing import Any

import pytest
from made_runs import made_store

from upvit_core.figures.runs import COLOURS, RunCurve, speed_table
from upvit_core.figures.step_curves import step_chart, step_table
from upvit_core.figures.theme import COLOURS as COMPONENTS
from upvit_core.figures.theme import DARK, LIGHT
from upvit_core.runs import RunStore


@pytest.fixture(scope="module")
def curves(tmp_path_factory: pytest.TempPathFactory) -> list[RunCurve]:
    store = made_store(tmp_path_factory.mktemp("made") / "runs")
    return [
        RunCurve(
            s.id, s.name, COLOURS[i], store.read_metrics(s.id)[0], group=s.spec.group if s.spec else "", teacher="demo"
        )
        for i, s in enumerate(reversed(store.list()))
    ]


def test_the_table_holds_every_evaluation(curves: list[RunCurve]) -> None:
    expected = [
        (curve.id, row["images_per_s"], row["top1"])
        for curve in curves for row in curve.rows if row["phase"] in ("surgery", "eval", "final")
    ]  # fmt: skip
    table = speed_table(curves).table()
    assert list(zip(table["id"], table["x"], table["y"], strict=True)) == expected
    assert set(table["phase"]) == {"after surgery", "while training", "at the end"}


def test_relative_speeds_are_those_of_the_same_run(curves: list[RunCurve]) -> None:
    slow = RunCurve("s", "slow machine", COLOURS[0], [
        {**row, "images_per_s": row["images_per_s"] / 10} if "images_per_s" in row else row for row in curves[1].rows
    ], teacher="demo")  # fmt: skip
    assert speed_table([curves[1], slow], relative=True).table()["x"] == pytest.approx(0.5**-1.3)


@pytest.mark.parametrize("quantity", ["loss", "top1", "kl_teacher"])
def test_step_charts_hold_what_was_written(curves: list[RunCurve], quantity: Any) -> None:
    chart = step_chart(curves, quantity, DARK)
    rows = [row for curve in curves for row in curve.rows if quantity in row and row["phase"] != "teacher"]
    assert chart.datasets["lines"]["y"].tolist() == pytest.approx([row[quantity] for row in rows])
    assert step_table(curves, quantity).table()["y"].tolist() == [row[quantity] for row in rows]


def test_nothing_yet_is_no_error() -> None:
    for curve in ([], [RunCurve("a", "a", COLOURS[0], [])]):
        assert speed_table(curve).table() == {}
        assert "nothing yet" in step_chart(curve, "loss", LIGHT).alt


def test_rows_with_nonsense_are_left_out() -> None:
    rows = [{"phase": "eval"}, {"phase": "eval", "top1": "x", "images_per_s": 1}, {"phase": 3}, {"step": 1}]
    assert speed_table([RunCurve("a", "a", COLOURS[0], rows)]).table() == {}


def test_the_specification_does_not_change_while_points_arrive(curves: list[RunCurve], tmp_path: Path) -> None:
    part = [
        RunCurve(c.id, c.label, c.colour, c.rows[: len(c.rows) // 2], group=c.group, teacher="demo") for c in curves
    ]
    assert json.dumps(step_chart(part, "loss", LIGHT).spec) == json.dumps(step_chart(curves, "loss", LIGHT).spec)


def test_colours_are_not_those_of_the_components() -> None:
    assert not set(COLOURS) & set(COMPONENTS.values())
    assert len(set(COLOURS)) == 10


def test_specifications_are_valid_vega_lite(curves: list[RunCurve]) -> None:
    altair = pytest.importorskip("altair")
    altair.LayerChart.from_dict({**step_chart(curves, "top1", DARK).spec}, validate=True)


def test_made_runs_are_read_by_the_store(tmp_path: Path) -> None:
    assert {s.state.state for s in made_store(tmp_path / "runs").list()} >= {"done", "running", "queued", "cancelled"}
    assert RunStore(tmp_path / "runs").list()[0].problem == ""
