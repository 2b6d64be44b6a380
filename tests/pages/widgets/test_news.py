"""The end of long work is told once on every page, and its page forgets it."""

import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from pages.services import jobs, news
from tests.support.made_runs import made_run
from tests.support.reading import check
from upvit_core.errors import DataError
from upvit_core.runs import RunStore

Page = Callable[..., AppTest]


def toasts(test: AppTest) -> list[str]:
    return [toast.value for toast in test.toast]


def test_the_end_of_a_run_is_told_on_another_page_once_with_a_link(page: Page, tmp_path: Path) -> None:
    store = RunStore(tmp_path / "runs")
    run = made_run(store, 0.5, "running", share=0.5, name="*half*")
    test = page("pages/glossary/page.py")
    assert toasts(test) == []
    run.write_state(store.state(run.id).model_copy(update={"state": "done", "top1": 88.12}))
    check(test.run())
    assert toasts(test) == [r"\*half\*: done 88.1 %"]
    assert toasts(test.run()) == []
    ended = test.session_state["studio"].part(news.News).ended
    assert [(end.page, end.well) for end in ended] == [("Runs", True)]


def test_the_end_of_a_long_job_and_why_it_failed(page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    workers, release = jobs.Workers(), threading.Event()
    monkeypatch.setattr(jobs, "workers", lambda: workers)
    monkeypatch.setattr(jobs.imports, "import_heavy", lambda step: None)
    test = page("pages/glossary/page.py")

    def work(report: jobs.Report) -> None:
        release.wait(30)
        raise DataError("No images.")

    job = jobs.start("scoring", work, "Scoring", long=True)
    test.session_state["studio"].part(news.News).watched["scoring"] = "Importance"
    assert toasts(test.run()) == []
    release.set()
    for _ in range(600):
        if not job.active:
            break
        threading.Event().wait(0.05)
    assert toasts(test.run()) == ["Scoring: No images."]


@pytest.mark.parametrize(
    ("work", "title"),
    [
        ([], "Runs – UP-ViT Studio"),
        ([news.Work("a", "a", "Runs", 0.87, 120.0), news.Work("b", "b", "Runs", 0.1)], "87 % · 2 min – Runs"),
        ([news.Work("a", "a", "Runs", 0.0)], "0 % – Runs"),
    ],
)
def test_the_title_of_the_tab(work: list[news.Work], title: str) -> None:
    assert news.tab_title("Runs", work) == title
