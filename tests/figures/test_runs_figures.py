import math
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
import pytest

from tests.support.made_runs import made_store
from upvit_core.figures.evaluations import Points
from upvit_core.figures.runs import COLOURS, RunCurve, speed_table, step_table
from upvit_core.figures.theme import COLOURS as COMPONENTS
from upvit_core.figures.theme import DARK, LIGHT, Theme
from upvit_core.figures.training_curves import plot_training_curves
from upvit_core.runs import RunStore


@pytest.fixture(scope="module")
def curves(tmp_path_factory: pytest.TempPathFactory) -> list[RunCurve]:
    store = made_store(tmp_path_factory.mktemp("made") / "runs")
    return [
        RunCurve(
            s.id,
            s.name,
            COLOURS[i],
            Points(store.read_metrics(s.id)[0]),
            group=s.spec.group if s.spec else "",
            teacher="demo",
        )
        for i, s in enumerate(reversed(store.list()))
    ]


def test_the_table_holds_every_evaluation(curves: list[RunCurve]) -> None:
    expected = [
        (curve.id, row["images_per_s"], row["top1"])
        for curve in curves for row in curve.points.evals
    ]  # fmt: skip
    table = speed_table(curves).table()
    assert list(zip(table["id"], table["x"], table["y"], strict=True)) == expected
    assert set(table["phase"]) == {"after surgery", "while training", "at the end"}


def test_relative_speeds_are_those_of_the_same_run(curves: list[RunCurve]) -> None:
    points = curves[1].points
    assert points.teacher is not None
    rows = [{**row, "images_per_s": row["images_per_s"] / 10} for row in (points.teacher, *points.evals)]
    slow = RunCurve("s", "slow machine", COLOURS[0], Points(rows), teacher="demo")
    assert speed_table([curves[1], slow], relative=True).table()["x"] == pytest.approx(0.5**-1.3)


@pytest.mark.parametrize("quantity", ["loss", "top1", "kl_teacher"])
def test_tables_of_steps_hold_what_was_written(curves: list[RunCurve], quantity: Any) -> None:
    rows = [row for c in curves for row in (*c.points.train, *c.points.evals) if quantity in row]
    assert step_table(curves, quantity).table()["y"].tolist() == [row[quantity] for row in rows]


@pytest.mark.parametrize("measure", ["top1", "kl_teacher"])
@pytest.mark.parametrize("theme", [LIGHT, DARK])
def test_climbs_are_valid_and_hold_every_evaluation(curves: list[RunCurve], measure: Any, theme: Theme) -> None:
    chart = plot_training_curves(curves, measure, theme)
    go.Figure(chart.spec)
    drawn = [trace for trace in chart.spec["data"] if trace["mode"] == "lines+markers"]
    rows = [[row[measure] for row in curve.points.evals if measure in row] for curve in curves]
    assert [trace["y"] for trace in drawn] == [own for own in rows if own]
    assert chart.table()["y"].tolist() == [value for own in rows for value in own]


def test_values_at_the_ends_keep_clear_of_each_other_and_of_the_teacher() -> None:
    def curve(name: str, end: float) -> RunCurve:
        images = {"images": 400, "images_per_s": 9.0}
        rows = [
            {"phase": "teacher", "step": 0, "top1": 91.2, **images},
            {"phase": "surgery", "step": 0, "top1": 10.0, **images},
        ]
        return RunCurve(name, name, COLOURS[0], Points([*rows, {"phase": "eval", "step": 9, "top1": end, **images}]))

    chart = plot_training_curves(
        [curve("a", 91.0), curve("b", 90.9), curve("c", 91.1), curve("d", 50.0)], "top1", LIGHT, height=300
    )
    low, high = chart.spec["layout"]["yaxis"]["range"]
    pixels = 300 - chart.spec["layout"]["margin"]["t"] - chart.spec["layout"]["margin"]["b"]
    notes = [note for note in chart.spec["layout"]["annotations"] if note["x"] == 9]
    at = [(note["y"] - low) / (high - low) * pixels + note["yshift"] for note in notes]
    at.append((91.2 - low) / (high - low) * pixels)
    assert len(notes) == 4
    assert min(abs(a - b) for i, a in enumerate(at) for b in at[:i]) >= 17.9
    assert next(note for note in notes if "50.0" in note["text"])["yshift"] == 0
    starts = [note for note in chart.spec["layout"]["annotations"] if note["x"] == 0]
    assert [note["text"] for note in starts] == ["<b>10.0 %</b>"]


def test_nothing_yet_is_no_error() -> None:
    for curve in ([], [RunCurve("a", "a", COLOURS[0], Points())]):
        assert speed_table(curve).table() == {}
        assert step_table(curve, "loss").table() == {}
        assert "nothing is measured yet" in plot_training_curves(curve, "top1", LIGHT).alt


@pytest.mark.parametrize("measure", ["top1", "kl_teacher"])
def test_rows_with_nonsense_are_left_out(measure: Any) -> None:
    rows = [{"phase": "eval"}, {"phase": "eval", "top1": "x", "images_per_s": 1}, {"phase": 3}, {"step": 1}]
    assert speed_table([RunCurve("a", "a", COLOURS[0], Points(rows))]).table() == {}
    rows += [{"phase": "teacher", "step": 0, "top1": math.nan}]
    rows += [{"phase": "eval", "step": 4, "top1": math.nan, "kl_teacher": math.inf}]
    rows += [{"phase": "eval", "step": 5, "top1": 30.0, "kl_teacher": 0.0}]
    chart = plot_training_curves([RunCurve("a", "a", COLOURS[0], Points(rows))], measure, LIGHT)
    assert chart.table()["x"].tolist() == [5]
    assert all(map(math.isfinite, chart.spec["layout"]["yaxis"]["range"]))
    named = {"top1": "top-1, %", "kl_teacher": "KL to the teacher, nats an image"}[measure]
    assert chart.spec["layout"]["yaxis"]["title"]["text"] == named  # not a log axis: there is a 0


def test_colours_are_not_those_of_the_components() -> None:
    assert not set(COLOURS) & set(COMPONENTS.values())
    assert len(set(COLOURS)) == 10


def test_made_runs_are_read_by_the_store(tmp_path: Path) -> None:
    assert {s.state.state for s in made_store(tmp_path / "runs").list()} >= {"done", "running", "queued", "cancelled"}
    assert RunStore(tmp_path / "runs").list()[0].problem == ""
