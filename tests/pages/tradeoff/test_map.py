"""The map on Trade-off: it grows and is gone on with, speaks on the cards, and its picture sets the sliders."""

import json
import re
from collections.abc import Callable

import numpy as np
import pytest
from streamlit.testing.v1 import AppTest

from pages.services import folders, maps, open_model
from pages.tradeoff import map_section
from tests.pages.tradeoff.test_estimates import cards
from tests.support.made_runs import made_run
from tests.support.reading import PAPER, what_if_of
from upvit_core.planning.what_if import WhatIf
from upvit_core.profiling.macs import count_macs
from upvit_core.records.map import Map
from upvit_core.records.scores import ImportanceScores
from upvit_core.runs.store import RunStore

PAGE = "pages/tradeoff/page.py"
Run = Callable[..., AppTest]


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory) -> Map:
    """Eight cuts of the demo, measured once for this file."""
    from upvit_core.data import open_images
    from upvit_core.mapping.grow import grow
    from upvit_core.mapping.measure import CutMeter
    from upvit_core.models.checkpoint import load_model

    loaded = load_model("demo")
    return grow(CutMeter(loaded, demo()[1], open_images("demo", "val", pretrained_cfg=loaded.pretrained_cfg)), most=8)


def demo() -> tuple[open_model.OpenModel, ImportanceScores]:
    model = open_model.inspect("demo")
    assert model is not None
    assert model.bundled is not None
    return open_model.choose_dataset(model, "demo"), model.bundled


@pytest.fixture
def on_disk(grown: Map, monkeypatch: pytest.MonkeyPatch) -> maps.Known:
    """The map lies where the app keeps it, and has been read."""
    (model, scores), now = demo(), WhatIf(50, 50, 3, 50)
    monkeypatch.setattr(maps, "STEPS", (8,))
    grown.save(maps._file(maps.key_of(model, scores, now)))
    job = maps.jobs.Job(
        "map",
        "Measuring around",
        lambda report: maps._grow(maps.key_of(model, scores, now), model, scores, now, report),
    )
    maps._touched[maps.key_of(model, scores, now)] = (0.0, now)
    job.run()
    assert (job.state, job.error, job.result) == ("done", "", grown)
    known = maps.find(model, scores, now)
    assert known is not None
    return known


def test_an_unmeasured_plan_is_told_with_its_band(page: Run, on_disk: maps.Known) -> None:
    test = page(PAGE, "Details", residual="33", ffn="21", **PAPER)
    assert not test.exception
    plan = what_if_of(test).plan(demo()[1])
    expected = on_disk.of(plan)
    found = cards(test)
    assert f"estimated {expected.kl:.2g} nats an image, from 8 measured cuts" in found["KL after"]
    assert expected.kl_low < expected.kl < expected.kl_high
    text = " ".join(str(element.proto.body) for element in test.get("html"))
    assert re.search(rf"{expected.value:.1f} %.*from 8 measured cuts: 80 % band {expected.value_low:.1f}", text, re.S)


def test_all_measured_plans_and_runs_are_lines(page: Run, on_disk: maps.Known) -> None:
    made_run(RunStore(folders.runs()), 0.5)
    test = page(PAGE, "Compare", compared="All plans and runs", **PAPER)
    assert not test.exception
    drawn = next(e.proto for e in test.get("plotly_chart") if '"parcoords"' in e.proto.spec)
    assert re.search(r"9 models as lines .*: 8 cut only, 1 trained, 0 this plan", drawn.alt)
    assert any("permutation importance" in str(element.proto.body) for element in test.get("html"))


def test_a_map_is_of_one_basis_and_one_repair(page: Run, on_disk: maps.Known) -> None:
    assert "not known yet" in cards(page(PAGE, "Details", repair="true", **PAPER))["KL after"]


def test_the_picture_is_what_each_plan_is_estimated_to_be(on_disk: maps.Known) -> None:
    (model, scores), now = demo(), WhatIf(50, 50, 3, 50)
    grid = map_section._Grid(model.shape, on_disk, scores, now, "residual", "ffn")
    for row, column in ((0, 0), (3, 17), (19, 8)):
        what_if = WhatIf(*json.loads(grid.data[row][column]))
        assert (what_if.ffn, what_if.residual) == (5 * row, 5 * column)
        plan = what_if.plan(scores)
        assert grid.costs[row, column] == count_macs(plan.shape_after)
        there, alone = on_disk.at([grid.points[row][column]]), on_disk.of(plan)
        assert alone is not None
        assert (there.kl[0], there.value[0]) == pytest.approx((alone.kl, alone.value), rel=1e-9)


def test_measured_cuts_near_the_sliders_are_drawn(on_disk: maps.Known) -> None:
    now = WhatIf(50, 50, 3, 50)
    drawn = map_section._near(on_disk, now, "residual", "ffn", by_kl=True)
    heads = [set(cut.heads.values()) == {3} for cut in on_disk.record.cuts]
    assert len(drawn) <= sum(heads)
    for x, y, words in drawn:
        assert 0 <= x <= 95.5
        assert 0 <= y <= 95.5
        assert words.startswith("KL ")


def test_cuts_that_a_session_measured_are_given_to_the_map(on_disk: maps.Known) -> None:
    from upvit_core.evaluation import Evaluation

    (model, scores), now = demo(), WhatIf(11, 50, 3, 50)
    plan, samples = now.plan(scores), on_disk.record.samples
    maps.give(model, scores, now, plan, Evaluation(samples - 1, 50.0, 90.0, 1.0, 0.5, 0.1, 0.1))
    assert not maps._given.get(maps.key_of(model, scores, now))
    maps.give(model, scores, now, plan, Evaluation(samples, 50.0, 90.0, 1.0, 0.5, 0.1, 0.1))
    cut = maps._given.pop(maps.key_of(model, scores, now))[plan.digest]
    assert (cut.kl, cut.top1, cut.origin) == (0.5, 50.0, "given")
    assert np.isclose(sum(cut.lost.values()), sum(on_disk.worth.of(plan).lost.values()))


def test_of_two_maps_the_one_looked_at_last_grows_first(monkeypatch: pytest.MonkeyPatch) -> None:
    active = maps.jobs.Job[Map]("b", "Measuring around")
    monkeypatch.setattr(maps.jobs, "find", {"b": active}.get)
    monkeypatch.setattr(maps, "_touched", {key: (when, WhatIf(1, 1, 1, 1)) for key, when in (("a", 1.0), ("b", 2.0))})
    assert maps._comes_later("a")
    assert not maps._comes_later("b")
    active.state = "done"
    assert not maps._comes_later("a")
