"""Both ways in one chart on Runs: which runs are drawn, their starts and ends, and what is said of them."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from pages.runs import both_bases
from pages.services import run_data
from tests.support.made_runs import made_run
from tests.support.reading import check, html_of
from upvit_core.figures.theme import DARK
from upvit_core.figures.training_curves import SYMBOLS, plot_training_curves
from upvit_core.runs import Run, RunStore
from upvit_core.training.settings import PRESETS

PAGE = "pages/runs/page.py"


def by_directions(run: Run, *, repair: bool = True) -> Run:
    """The made-up run as one whose plan keeps directions."""
    spec = json.loads((run.folder / "spec.json").read_text())
    spec["plan"]["basis"], spec["repair"] = "directions", repair
    (run.folder / "spec.json").write_text(json.dumps(spec))
    return run


@pytest.fixture
def store(tmp_path: Path) -> RunStore:
    return RunStore(tmp_path / "runs")


def test_only_runs_of_one_shape_and_two_bases_are_paired(store: RunStore) -> None:
    letter = made_run(store, 0.5)
    assert both_bases.pair(store, store.list()) == []
    by_directions(made_run(store, 0.25))
    assert both_bases.pair(store, store.list()) == []
    made_run(store, 0.5, from_scratch=True)
    ours = by_directions(made_run(store, 0.5))
    assert [s.id for s in both_bases.pair(store, store.list())] == [letter.id, ours.id]


def test_starts_and_ends_are_those_of_the_rows(store: RunStore) -> None:
    made_run(store, 0.5)
    by_directions(made_run(store, 0.5, "running", share=0.5))
    curves = run_data.curves(store, store.list(), store.list())
    for measure in ("top1", "kl_teacher"):
        chart = plot_training_curves(curves, measure, DARK)
        marks = {(t["name"], t["marker"]["symbol"]): t for t in chart.spec["data"] if t["mode"] == "markers"}
        for curve, symbol in zip(curves, SYMBOLS, strict=False):
            rows = [row for row in curve.points.evals if measure in row]
            start, end = (marks[curve.label, name] for name in ("circle-open", symbol))
            assert (start["x"], start["y"]) == ([0], [rows[0][measure]])
            assert (end["x"], end["y"]) == ([rows[-1]["step"]], [rows[-1][measure]])
        ends = [note["x"] for note in chart.spec["layout"]["annotations"] if note["x"] > 0]
        assert sorted(ends) == sorted(curve.points.evals[-1]["step"] for curve in curves)
    assert "starts at" in chart.alt


def test_the_page_draws_both_ways_and_says_which_recipes(page: Callable[..., AppTest], store: RunStore) -> None:
    made_run(store, 0.5, **PRESETS["demo"].model_dump())
    by_directions(made_run(store, 0.5, **(PRESETS["repaired"].model_dump() | {"seed": 4})))
    test = page(PAGE)
    check(test)
    assert "Both ways" in [s.value for s in test.subheader]
    text = html_of(test)
    assert "each with its recipe (minutes on a CPU; small steps, after repair)" in text
    assert "Channels (UP-ViT)" in text
    assert "Directions, repaired" in text
    test.checkbox[0].uncheck().run()
    assert "Both ways" not in [s.value for s in test.subheader]
