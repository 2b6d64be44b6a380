"""Start: the demo's tour is what a fresh computation gives, and a failed Open keeps what was open."""

from collections.abc import Callable

import pytest
from streamlit.testing.v1 import AppTest

from pages.services import demo_tour, jobs, open_model
from pages.start import tour
from tests.support.reading import check, session_of
from upvit_core.paths import DEMO_FOLDER
from upvit_core.records.map import Map
from upvit_core.records.tour import Tour

PAGE = "pages/start/page.py"
Run = Callable[..., AppTest]


def test_the_first_visit_computes_nothing(page: Run) -> None:
    test = page(PAGE)
    check(test)
    assert not jobs.workers().all()


@pytest.fixture(scope="module")
def measurer():  # type: ignore[no-untyped-def]
    from upvit_core.demo.tour import Measurer

    return Measurer(DEMO_FOLDER)


@pytest.mark.parametrize(("way", "percent"), [("paper", 0), ("paper", 50), ("repaired", 50), ("repaired", 75)])
def test_positions_of_the_tour_are_what_is_measured_now(measurer, way: str, percent: int) -> None:  # type: ignore[no-untyped-def]
    shipped = Tour.load(DEMO_FOLDER / "tour.json")
    top1, answers = measurer.look(measurer.cut(way, percent))
    assert shipped.ways[way].top1[percent] == pytest.approx(top1, abs=0.2)  # one image of 500 may fall otherwise
    for (label, sure), (known, before) in zip(answers, shipped.ways[way].answers[percent], strict=True):
        assert label == known
        assert sure == pytest.approx(before, abs=1)


def test_what_is_shipped_belongs_together(measurer) -> None:  # type: ignore[no-untyped-def]
    """The tour, the directions and the map are of these weights, these images and one another."""
    from upvit_core.mapping.measure import CutMeter

    shipped, record = Tour.load(DEMO_FOLDER / "tour.json"), measurer.scores["repaired"]
    assert shipped.model_digest == record.model_digest == measurer.loaded.digest
    assert shipped.data_digest == measurer.held_out.digest
    assert {way.scores_digest for way in shipped.ways.values()} == {s.digest for s in measurer.scores.values()}
    meter = CutMeter(measurer.loaded, record, measurer.test, measurer.train, record.basis, True)
    assert Map.load(DEMO_FOLDER / "map.json").belongs_to == meter.empty().belongs_to


def test_the_slider_s_plan_goes_along_to_trade_off() -> None:
    model, shown = open_model.inspect("demo"), demo_tour.known()
    assert model is not None
    assert shown is not None
    assert tour.what_if(model, shown).words == "50/50/50 %, 6 heads, directions, repaired"


@pytest.mark.usefixtures("jobs_at_once")
def test_a_failed_open_keeps_the_model_and_tells_why_in_the_panel(page: Run) -> None:
    test = page(PAGE)
    test.text_input(key="open-what").set_value("/no/such/place")
    next(b for b in test.button if b.label == "Open").click().run()
    assert [e.value for e in test.error] == [
        "There is no file or folder /no/such/place; give a path on the machine that runs this app."
    ]
    now = session_of(test)
    assert now.source == "demo"
    assert now.shown is not None
    assert now.shown[0].is_demo
    test.text_input(key="open-what").set_value("no_such_model")
    next(b for b in test.button if b.label == "Open").click().run()
    assert len(test.error) == 1
    assert "no_such_model" in test.error[0].value
    assert session_of(test).source == "demo"


def test_published_scores_open_from_the_field(page: Run, published) -> None:  # type: ignore[no-untyped-def]
    test = page(PAGE)
    test.text_input(key="open-what").set_value(str(published))
    next(b for b in test.button if b.label == "Open").click().run()
    check(test)
    assert session_of(test).source == f"published:{published}"
    assert "DeiT-B" in test.title[0].value
