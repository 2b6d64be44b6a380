"""Pages run one by one with Streamlit's AppTest; folders of their own, and synthetic scores of DeiT-B's shape."""

from collections.abc import Callable
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from pages.services import evaluation, jobs, maps
from tests.support import ROOT
from tests.support.made_up import made_up_scores

OPENED = ("best-under", "save-box")  # drawn only while open


@pytest.fixture(autouse=True)
def _own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("UPVIT_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("UPVIT_RUNS", str(tmp_path / "runs"))


@pytest.fixture(autouse=True)
def _no_maps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages whose jobs run at once do not measure a map each."""
    monkeypatch.setattr(maps, "STEPS", (0,))
    monkeypatch.setattr(evaluation, "SPEED_SECONDS", 0.0)


@pytest.fixture(autouse=True)
def no_background(monkeypatch: pytest.MonkeyPatch) -> None:
    """Jobs are queued and not run: a page must say what is coming, and torch stays out of these tests."""
    workers = jobs.Workers(submit=lambda job: None)
    monkeypatch.setattr(jobs, "workers", lambda: workers)


@pytest.fixture
def jobs_at_once(no_background: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Jobs run to their end while the page waits."""
    workers = jobs.Workers(submit=jobs.Job.run)
    monkeypatch.setattr(jobs, "workers", lambda: workers)


@pytest.fixture(scope="session")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Score files of DeiT-B's shape with made-up numbers, in the form in which the real ones were released."""
    return made_up_scores(tmp_path_factory.mktemp("published"))


@pytest.fixture
def page() -> Callable[..., AppTest]:
    """A page, run once with query parameters; of Trade-off, the tab that is open."""

    def run(path: str, picture: str = "", **query: str) -> AppTest:
        test = AppTest.from_file(str(ROOT / path), default_timeout=300)
        for key in OPENED:
            test.session_state[key] = True
        if picture:
            test.session_state["pictures"] = picture
        for key, value in query.items():
            test.query_params[key] = value
        return test.run()

    return run
