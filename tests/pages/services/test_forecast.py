"""The forecast on Trade-off: only with enough runs, from the KL that was measured or that the map estimates."""

import json
from collections.abc import Callable

import pytest
from streamlit.testing.v1 import AppTest

from pages.services import evaluation, folders, open_model
from pages.services import forecast as on_page
from pages.services.maps import Estimate
from tests.support.made_runs import made_run
from tests.support.reading import check, html_of
from upvit_core.evaluation import Evaluation
from upvit_core.runs.forecast import Outcome, forecast
from upvit_core.runs.store import RunStore

PAGE = "pages/tradeoff/page.py"
Run = Callable[..., AppTest]


@pytest.mark.parametrize("count", [4, 6])
def test_a_band_once_there_are_enough_runs(
    count: int, page: Run, jobs_at_once: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluation, "evaluate_plan", lambda *a, **k: Evaluation(1000, 20.0, 90.0, 1.0, 1.0))
    store = RunStore(folders.runs())
    for number in range(count):
        run = made_run(store, 0.1 + 0.12 * number)
        rows = [json.loads(row) for row in run.metrics.read_text().splitlines()]
        for row in rows:
            if row["phase"] == "surgery":
                row["kl_teacher"] = 0.2 * 2**number
        run.metrics.write_text("".join(json.dumps(row) + "\n" for row in rows))
    test = page(PAGE)
    test.run()
    check(test)
    assert (f"forecast (80 % band) from {count} finished runs" in html_of(test)) == (count >= 5)


def test_an_estimated_kl_widens_the_band(monkeypatch: pytest.MonkeyPatch) -> None:
    known = [Outcome(f"r{n}", 0.1 * 2**n, 92.0, 91.0 - n * 1.5 + 0.3 * (n % 2)) for n in range(6)]
    monkeypatch.setattr(on_page, "_outcomes", lambda *asked: [(4, known)])
    folders.runs().mkdir(parents=True)
    model = open_model.inspect("demo")
    assert model is not None
    found = on_page.forecast_of(model, None, Estimate(0.8, 0.5, 1.6, 60.0, 50.0, 70.0, cuts=24))
    each = [forecast(known, kl, 4) for kl in (0.8, 0.5, 1.6)]
    assert None not in each
    assert found is not None
    assert (found.low, found.middle, found.high) == (each[2].low, each[0].middle, each[1].high)
    assert found.high - found.low > each[0].high - each[0].low
    assert on_page.forecast_of(model, None, None) is None
    assert on_page.forecast_of(model, None, Estimate(0.8, 0.5, 99.0, 60.0, 50.0, 70.0, cuts=24)) is None
