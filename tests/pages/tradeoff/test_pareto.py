"""The front on Trade-off: candidates, what has been measured of them, and dominated plans."""

import json
from collections.abc import Callable

import pytest
from streamlit.testing.v1 import AppTest

from pages.services import good_plans
from pages.tradeoff import pareto, tried_plans
from tests.support.reading import PAPER, session_of, what_if_of
from upvit_core.evaluation import Evaluation
from upvit_core.figures.pareto import Point

PAGE = "pages/tradeoff/page.py"
Run = Callable[..., AppTest]


def point(x: float, y: float, kind: str = "estimated", **more: object) -> Point:
    return Point("", x, y, kind, **more)  # type: ignore[arg-type]


def test_dominated_plans_are_left_out_kind_by_kind() -> None:
    kept, beaten = point(1, 2), point(2, 3)
    here, measured, teacher = point(3, 9, now=True), point(2, 9, "measured"), point(9, 9, "teacher")
    every = [kept, beaten, here, measured, teacher]
    assert tried_plans.without_dominated(every, more_is_better=(False, False)) == [kept, here, measured, teacher]
    assert tried_plans.without_dominated([kept, beaten], more_is_better=(True, True)) == [beaten]
    assert tried_plans.without_dominated([kept, beaten], more_is_better=(True, False)) == [kept, beaten]


def test_candidates_are_drawn_and_what_was_measured_of_them(
    page: Run, jobs_at_once: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pages.services import evaluation

    asked: list[str] = []

    def evaluate(model: object, plan: object, report: object, *, repair: bool) -> Evaluation:
        asked.append(plan.digest)  # type: ignore[attr-defined]
        return Evaluation(1000, 50.0, 90.0, 1.0, 0.5)

    monkeypatch.setattr(evaluation, "evaluate_plan", evaluate)
    test = page(PAGE, **PAPER)
    assert not test.exception
    open_now = session_of(test).shown
    assert open_now is not None
    model, scores = open_now
    assert scores is not None
    now = what_if_of(test)
    found = good_plans.find(model, scores, now).result
    assert found is not None
    assert len(found) >= 30
    name, plan, what_if = found[0].name, found[0].plan, found[0].what_if
    assert what_if.plan(scores).digest == plan.digest
    assert name.startswith("best")
    button = test.button(key="measure-front")
    assert button.label == f"Measure these {len(found)} plans"
    button.click().run()
    assert not test.exception
    assert {candidate.plan.digest for candidate in found} <= set(asked)
    entries = pareto.candidate_entries(model, found, {plan.digest: Evaluation(1000, 50.0, 90.0, 1.0, 0.5)}, None)
    drawn = tried_plans.pareto_points(model, scores, now, "MACs", "Top-1", None, entries)
    assert [p.y for p in drawn if p.data == json.dumps(list(vars(what_if).values()))] == [50.0]


def test_without_calibration_no_speed_up_is_drawn(page: Run) -> None:
    test = page(PAGE, cost="Speed-up")
    assert not test.exception
    assert any("Not calibrated" in caption.value for caption in test.caption)
