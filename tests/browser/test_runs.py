"""Runs in a real browser while a run goes on: no control breaks the page, and it stays live."""

import re
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.support.browser import settle
from tests.support.made_runs import made_run
from tests.support.server import server
from upvit_core.runs import Run, RunStore


@pytest.fixture(scope="module")
def going(tmp_path_factory: pytest.TempPathFactory) -> Run:
    store = RunStore(tmp_path_factory.mktemp("going") / "runs")
    made_run(store, 0.5)
    return made_run(store, 0.4, "running", share=0.5)


@pytest.fixture
def page(browser: Browser, going: Run) -> Iterator[Page]:
    with server(going.folder.parent.parent, OMP_NUM_THREADS="1") as (url, _):
        context = browser.new_context(reduced_motion="reduce", viewport={"width": 1440, "height": 1600})
        page = context.new_page()
        page.set_default_timeout(60_000)
        page.goto(f"{url}/runs")
        settle(page, 180)
        yield page
        context.close()


def test_every_switch_may_be_turned_while_a_run_goes_on(page: Page, going: Run) -> None:
    store = RunStore(going.folder.parent)
    switches = page.locator('[data-testid="stMain"] [data-testid="stCheckbox"] label')
    assert switches.count() >= 2
    for step, turn in enumerate([*range(switches.count())] * 2):
        switches.nth(turn).click()
        page.wait_for_timeout(1200)
        state = store.state(going.id)
        going.write_state(state.model_copy(update={"step": 210 + step, "seconds_left": 100.0 - step}))
        assert page.get_by_text("encountered an error").count() == 0
    expect(page.locator(".run").first).to_contain_text(f"{round(100 * (210 + step) / 400)} %")
    assert page.get_by_role("button", name="Pause").count() == 1


def test_the_end_of_a_run_is_told_on_another_page_and_in_the_title(page: Page, going: Run) -> None:
    store = RunStore(going.folder.parent)
    page.get_by_role("link", name="Importance").first.click()
    expect(page).to_have_title(re.compile(r"^\d+ % · .+ – Importance$"), timeout=60_000)
    before = store.state(going.id)
    going.write_state(before.model_copy(update={"state": "done", "top1": 88.1}))
    expect(page.get_by_role("link", name="done 88.1 %")).to_be_visible(timeout=60_000)
    expect(page).to_have_title("Importance – UP-ViT Studio")
    page.get_by_role("link", name="done 88.1 %").click()
    page.wait_for_url("**/runs**")
    settle(page, 120)
    expect(page.get_by_role("link", name="done 88.1 %")).to_have_count(0)
    going.write_state(before)
