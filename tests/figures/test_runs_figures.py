import json
import random
from pathlib import Path
from typing import Any

import pytest
from made_runs import made_store

from upvit_core.figures.runs import COLOURS, RunCurve, front_of, speed_chart
from upvit_core.figures.step_curves import step_chart
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


def test_front_equals_a_slow_comparison() -> None:
    rng = random.Random(0)
    for _ in range(50):
        points = [(rng.randint(0, 9), rng.randint(0, 9)) for _ in range(rng.randint(1, 12))]
        front = front_of(points)
        assert [points[i][0] for i in front] == sorted(points[i][0] for i in front)
        for i, (x, y) in enumerate(points):
            beaten = any(u >= x and v >= y and (u, v) != (x, y) for u, v in points)
            first = points.index((x, y)) == i
            assert (i in front) <= (not beaten)
            if not beaten and first:
                assert (x, y) in [points[k] for k in front]


def test_speed_chart_holds_every_evaluation(curves: list[RunCurve]) -> None:
    chart = speed_chart(curves, LIGHT)
    expected = sum(row["phase"] in ("surgery", "eval", "final") for curve in curves for row in curve.rows)
    assert len(chart.datasets["path"]) == expected
    assert len(chart.datasets["latest"]) == len(chart.datasets["starts"]) == len(curves)
    assert chart.datasets["starts"]["phase"].unique().tolist() == ["after surgery"]
    teacher = chart.datasets["teacher"].iloc[0]
    assert (teacher["x"], teacher["y"], teacher["runs"]) == pytest.approx((900.0, 91.7, len(curves)))
    sweep = chart.datasets["sweeps"]
    assert sweep["group"].tolist() == ["sweep"] * 3
    assert sweep["x"].is_monotonic_increasing
    assert "2,000 test images" in json.dumps(chart.spec)
    assert len(chart.table()["y"]) == expected


def test_relative_speeds_are_those_of_the_same_run(curves: list[RunCurve]) -> None:
    slow = RunCurve("s", "slow machine", COLOURS[0], [
        {**row, "images_per_s": row["images_per_s"] / 10} if "images_per_s" in row else row for row in curves[1].rows
    ], teacher="demo")  # fmt: skip
    points = speed_chart([curves[1], slow], LIGHT, relative=True).datasets["latest"]["x"]
    assert points[0] == pytest.approx(points[1]) == pytest.approx(0.5**-1.3)


def test_published_points_are_shown_on_demand_and_never_beside_ratios(curves: list[RunCurve]) -> None:
    assert len(speed_chart(curves, LIGHT).datasets["published"]) == 0
    shown = speed_chart(curves, LIGHT, published=True).datasets["published"]
    assert {"DeiT-B", "UP-DeiT-S"} <= set(shown["label"])
    assert shown["x"].notna().all()
    assert len(speed_chart(curves, LIGHT, published=True, relative=True).datasets["published"]) == 0


@pytest.mark.parametrize("quantity", ["loss", "top1", "kl_teacher"])
def test_step_charts_hold_what_was_written(curves: list[RunCurve], quantity: Any) -> None:
    chart = step_chart(curves, quantity, DARK)
    rows = [row for curve in curves for row in curve.rows if quantity in row and row["phase"] != "teacher"]
    assert chart.datasets["lines"]["y"].tolist() == pytest.approx([row[quantity] for row in rows])


def test_nothing_yet_is_no_error() -> None:
    for curve in ([], [RunCurve("a", "a", COLOURS[0], [])]):
        assert "no run" in speed_chart(curve, LIGHT).alt
        assert "nothing yet" in step_chart(curve, "loss", LIGHT).alt


def test_rows_with_nonsense_are_left_out() -> None:
    rows = [{"phase": "eval"}, {"phase": "eval", "top1": "x", "images_per_s": 1}, {"phase": 3}, {"step": 1}]
    assert len(speed_chart([RunCurve("a", "a", COLOURS[0], rows)], LIGHT).datasets["path"]) == 0


def test_the_specification_does_not_change_while_points_arrive(curves: list[RunCurve], tmp_path: Path) -> None:
    part = [
        RunCurve(c.id, c.label, c.colour, c.rows[: len(c.rows) // 2], group=c.group, teacher="demo") for c in curves
    ]
    assert json.dumps(speed_chart(part, LIGHT).spec) == json.dumps(speed_chart(curves, LIGHT).spec)
    assert json.dumps(step_chart(part, "loss", LIGHT).spec) == json.dumps(step_chart(curves, "loss", LIGHT).spec)


def test_colours_are_not_those_of_the_components() -> None:
    assert not set(COLOURS) & set(COMPONENTS.values())
    assert len(set(COLOURS)) == 10


def test_specifications_are_valid_vega_lite(curves: list[RunCurve]) -> None:
    altair = pytest.importorskip("altair")
    for chart in (speed_chart(curves, LIGHT, published=True), step_chart(curves, "top1", DARK)):
        altair.LayerChart.from_dict({**chart.spec}, validate=True)


def test_made_runs_are_read_by_the_store(tmp_path: Path) -> None:
    assert {s.state.state for s in made_store(tmp_path / "runs").list()} >= {"done", "running", "queued", "cancelled"}
    assert RunStore(tmp_path / "runs").list()[0].problem == ""
