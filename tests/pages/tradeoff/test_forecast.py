"""The forecast on Trade-off: only with enough runs, only for a plan whose KL was measured."""

import json
from collections.abc import Callable

import pytest
from streamlit.testing.v1 import AppTest

from pages.services import evaluation, folders
from tests.support.made_runs import made_run
from tests.support.reading import check, html_of
from upvit_core.evaluation import Evaluation
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
