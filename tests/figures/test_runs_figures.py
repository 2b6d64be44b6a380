from pathlib import Path
from typing import Any

import pytest

from tests.support.made_runs import evaluate_sizes, made_elastic, made_store
from upvit_core.figures.evaluations import Points
from upvit_core.figures.runs import COLOURS, RunCurve, speed_table, step_table
from upvit_core.figures.theme import COLOURS as COMPONENTS
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
    table = speed_table(curves).table()
    timed = [(c, c.points.evals, c.points.teacher) for c in curves if c.points.teacher is not None]
    expected = [(curve.id, row["top1"], row["images_per_s"]) for curve, rows, _ in timed for row in rows]
    assert list(zip(table["id"], table["y"], table["images_per_s"], strict=True)) == expected
    by_hand = {c.id: rows[0]["images_per_s"] / teacher["images_per_s"] for c, rows, teacher in timed}
    assert table["x"].tolist() == pytest.approx([by_hand[run] for run in table["id"]])
    assert set(table["phase"]) == {"after surgery", "while training", "at the end"}


def test_an_elastic_run_has_a_row_for_each_size(tmp_path: Path) -> None:
    store = RunStore(tmp_path / "runs")
    run = made_elastic(store)
    evaluate_sizes(run, 100, [91.9, 91.5, 90.0, 85.0])
    table = speed_table([RunCurve(run.id, "", COLOURS[0], Points(store.read_metrics(run.id)[0]))]).table()
    assert table["y"].tolist() == [91.7, 90.0, 80.0, 40.0, 91.9, 91.5, 90.0, 85.0]
    assert table["removed"].tolist() == [0, 25, 50, 75] * 2
    assert table["x"].tolist() == pytest.approx([1, 4 / 3, 2, 4] * 2)
    assert table["images_per_s"].tolist() == pytest.approx([900, 1200, 1800, 3600] * 2)
    assert table["kl"][3] == pytest.approx(0.6)


@pytest.mark.parametrize("quantity", ["loss", "top1", "kl_teacher"])
def test_tables_of_steps_hold_what_was_written(curves: list[RunCurve], quantity: Any) -> None:
    rows = [row for c in curves for row in (*c.points.train, *c.points.evals) if quantity in row]
    assert step_table(curves, quantity).table()["y"].tolist() == [row[quantity] for row in rows]


def test_nothing_yet_is_no_error() -> None:
    for curve in ([], [RunCurve("a", "a", COLOURS[0], Points())]):
        assert speed_table(curve).table() == {}
        assert step_table(curve, "loss").table() == {}


def test_rows_with_nonsense_are_left_out() -> None:
    rows = [{"phase": "eval"}, {"phase": "eval", "top1": "x", "speedup": 1}, {"phase": 3}, {"step": 1}]
    assert speed_table([RunCurve("a", "a", COLOURS[0], Points(rows))]).table() == {}


def test_colours_are_not_those_of_the_components() -> None:
    assert not set(COLOURS) & set(COMPONENTS.values())
    assert len(set(COLOURS)) == 10


def test_made_runs_are_read_by_the_store(tmp_path: Path) -> None:
    assert {s.state.state for s in made_store(tmp_path / "runs").list()} >= {"done", "running", "queued", "cancelled"}
    assert RunStore(tmp_path / "runs").list()[0].problem == ""
