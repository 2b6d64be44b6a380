"""The real app in a real Chromium: one server and one browser for all tests, a fresh context for each."""

import os
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlencode

import pytest
from playwright.sync_api import Browser, Page

from tests.support.browser import ARTEFACTS, Visit, chromium, settle
from tests.support.made_up import made_up_scores
from tests.support.server import server

HAVE_CHROMIUM = Path("/usr/bin/chromium").exists()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in Path(item.fspath).parents:
            item.add_marker(pytest.mark.browser)
            if not HAVE_CHROMIUM and not os.environ.get("CI"):
                item.add_marker(pytest.mark.skip(reason="/usr/bin/chromium is not installed: apt install chromium"))


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="session")
def address(home: Path) -> Iterator[str]:
    with server(home, OMP_NUM_THREADS="1") as (url, _):
        yield url


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    with chromium() as running:
        yield running


@pytest.fixture(scope="session")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """DeiT-B's shape with made-up numbers."""
    return made_up_scores(tmp_path_factory.mktemp("published"))


@pytest.fixture
def usual_theme() -> str:
    """Of pages that a test visits without saying which; a module may ask for both."""
    return "light"


@pytest.fixture
def visit(browser: Browser, address: str, usual_theme: str, request: pytest.FixtureRequest) -> Iterator[Visit]:
    """Open a page in a context of its own; what is on the screen at the end of the test is kept as a picture."""
    opened: list[Page] = []

    def go(name: str, *, theme: str = usual_theme, width: int = 1440, height: int = 900, **query: object) -> Page:
        context = browser.new_context(
            reduced_motion="reduce",
            viewport={"width": width, "height": height},
            color_scheme=theme,  # type: ignore[arg-type]
            accept_downloads=True,
        )
        page = context.new_page()
        page.set_default_timeout(60_000)
        opened.append(page)
        page.goto(f"{address}/{name}?{urlencode(query)}")
        settle(page, 180)
        return page

    yield go
    ARTEFACTS.mkdir(exist_ok=True)
    for number, page in enumerate(opened):
        page.screenshot(path=ARTEFACTS / f"{request.node.name.replace('/', '-')}-{number}.png")
        page.context.close()
