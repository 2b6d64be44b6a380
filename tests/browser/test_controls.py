"""The controls of the pages in a real browser: keyboard alone, history, plans, panels, report, presenter, glossary."""

import json
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from playwright.sync_api import Page, expect

from pages.workshop.room import Room
from tests.support.browser import ARTEFACTS, Visit, faults, settle
from tests.support.elastic import demo_folder
from tests.support.reading import PAPER
from upvit_core.models.checkpoint import load_model
from upvit_core.runs.store import RunStore

SECOND = 1000
A4, PRINTED = (595, 842), 680  # points; pixels of a width of 180 mm
CUT_OFF = """width => [...document.querySelectorAll("h1, h2, p, pre, td, th, .main-svg, .main-svg text")]
    .filter(e => e.getBoundingClientRect().right > width + 1 || e.scrollWidth > e.clientWidth + 1 && e.matches("pre"))
    .map(e => e.outerHTML.slice(0, 120))"""
SURFACES = """() => [".st-key-distil-foot", "[data-testid=stApp]"].map(
    place => getComputedStyle(document.querySelector(place)).backgroundColor)"""
BOX = rb"/MediaBox \[0 0 ([\d.]+) ([\d.]+)\]"
NAME = """() => {
  const e = document.activeElement, own = ["BUTTON", "A", "INPUT", "SUMMARY"].includes(e.tagName);
  return e.getAttribute("aria-label") || (own && (e.innerText || e.title)) || e.tagName;
}"""


expect.set_options(timeout=60_000)


@pytest.fixture(params=["light", pytest.param("dark", marks=pytest.mark.slow)])
def usual_theme(request: pytest.FixtureRequest) -> str:
    """Every control in both themes; in the dark with `-m slow`, but for the panels, which no other test opens."""
    return str(request.param)


def tab_to(page: Page, name: str, most: int = 80) -> None:
    """Press Tab until what has the focus is called so."""
    seen = []
    for _ in range(most):
        page.keyboard.press("Tab")
        seen.append(str(page.evaluate(NAME)).strip())
        if any(line == name or line.startswith((f"{name} ·", f"{name} from")) for line in seen[-1].splitlines()):
            return  # buttons tell how long a run takes, once that is known
    pytest.fail(f"{name} is not reached by Tab; these are: {seen}")


def query(page: Page) -> dict[str, list[str]]:
    return parse_qs(urlsplit(page.url).query)


def until(page: Page, condition: Callable[[], bool], what: str) -> None:
    for _ in range(300):
        if condition():
            return
        page.wait_for_timeout(200)
    pytest.fail(f"waited in vain until {what}; the page is {page.url}")


def test_keyboard_alone_leads_from_load_to_slider_to_run(visit: Visit, home: Path) -> None:
    store = RunStore(home / "runs")
    before = {run.id for run in store.list()}
    page = visit("tradeoff")
    tab_to(page, "Residual removed")
    page.keyboard.press("ArrowRight")
    until(page, lambda: query(page).get("residual") == ["56"], "the link says 56, the next width that six heads divide")
    expect(page.locator(".strip").first).to_contain_text("56/50/50 %", timeout=60 * SECOND)
    settle(page)
    tab_to(page, "Distil…")
    page.keyboard.press("Enter")
    page.get_by_role("button", name="Start", exact=False).last.wait_for()
    tab_to(page, "Epochs")
    page.keyboard.press("Control+a")
    page.keyboard.type("1")
    tab_to(page, "Start")
    page.keyboard.press("Enter")
    page.get_by_role("heading", name="Runs", level=1).wait_for()
    until(page, lambda: len(store.list()) > len(before), "there is a run")
    (run,) = (run for run in store.list() if run.id not in before)
    assert "56/50/50 %" in run.name
    assert run.spec is not None
    assert run.spec.epochs == 1
    store.cancel(run.id)


def test_undo_and_redo_follow_the_sliders(visit: Visit) -> None:
    page = visit("tradeoff", residual=30)
    slider, strip = page.get_by_role("slider", name="Residual removed"), page.locator(".strip").first
    slider.press("ArrowRight")
    expect(strip).to_contain_text("31/50/50 %")
    page.get_by_role("button", name="Undo").click()
    expect(strip).to_contain_text("30/50/50 %")
    expect(slider).to_have_value("30")
    page.get_by_role("button", name="Redo").click()
    expect(strip).to_contain_text("31/50/50 %")
    expect(slider).to_have_value("31")


def test_two_plans_are_compared_saved_and_brought_back(visit: Visit, tmp_path: Path) -> None:
    page = visit("tradeoff", residual=40)
    page.get_by_role("tab", name="Compare").click()
    page.get_by_role("button", name="Swap").wait_for()
    settle(page)
    table = page.locator("table.plain", has_text="B against A")
    expect(table).to_contain_text("40/50/50 %")
    first = table.locator("tr").nth(1).locator("td")
    before = first.all_inner_texts()
    page.get_by_role("button", name="Swap").click()
    expect(first.nth(0)).to_have_text(before[1])
    expect(first.nth(1)).to_have_text(before[0])
    assert not faults(page)
    page.get_by_role("button", name="Swap").click()
    expect(first.nth(0)).to_have_text(before[0])
    page.get_by_role("button", name="Save…").first.click()
    page.get_by_role("textbox", name="Name").fill("My forty")
    page.get_by_role("button", name="Save", exact=True).click()
    expect(page.get_by_role("combobox", name="A", exact=True)).to_have_value("Saved: My forty")
    with page.expect_download() as got:
        page.get_by_role("button", name="File").first.click()
    got.value.save_as(tmp_path / "plan.json")
    requested = json.loads((tmp_path / "plan.json").read_text())["requested"]
    assert (requested["name"], requested["what_if"]["residual"]) == ("My forty", 40)
    page.get_by_role("button", name="Forget").first.click()
    expect(page.get_by_role("button", name="Forget")).to_have_count(0)


@pytest.mark.parametrize("usual_theme", ["light", "dark"])
def test_opened_panels_have_no_faults(visit: Visit) -> None:
    page = visit("tradeoff")
    for name in ("Finer", "Budget…", "Axes", "Save and share"):
        page.get_by_role("button", name=name).first.click()
        page.locator('[data-testid="stPopoverBody"]').first.wait_for()
        settle(page)
        assert not faults(page), name
        page.keyboard.press("Escape")
        expect(page.locator('[data-testid="stPopoverBody"]')).to_have_count(0)
    for name in ("Map", "Block by block", "Fewer blocks", "Heads", "Compare", "Details"):
        page.get_by_role("tab", name=name).click()
        settle(page)
        assert not faults(page), name
    page.get_by_role("button", name="Distil…").click()
    dialog = page.get_by_role("dialog")
    start = dialog.get_by_role("button", name="Start")
    expect(start).to_be_in_viewport()
    assert not faults(page)
    foot, surface = page.evaluate(SURFACES)
    assert foot == surface  # which axe does not see under what sticks


def test_a_size_of_an_elastic_student_is_taken_by_one_click(visit: Visit, tmp_path: Path) -> None:
    page = visit("tradeoff", open=demo_folder(tmp_path / "elastic"), residual=50, attention=50, ffn=50)
    page.get_by_role("button", name="Save and share").click()
    settle(page)
    with page.expect_download() as got:
        page.get_by_role("button", name="Take this size").click()
    assert not faults(page)
    got.value.save_as(tmp_path / "size.zip")
    with zipfile.ZipFile(tmp_path / "size.zip") as archive:
        archive.extractall(tmp_path)
    assert load_model(tmp_path / got.value.suggested_filename.removesuffix(".zip")).shape.embed_dim == 48


def test_the_report_opens_without_a_network_and_prints_on_a4(visit: Visit, tmp_path: Path) -> None:
    page = visit("tradeoff", residual=35)
    with page.expect_download() as got:
        page.get_by_role("button", name="Save and share").click()
        page.get_by_role("button", name="Report").click()
    got.value.save_as(tmp_path / "report.html")
    context = page.context.browser.new_context(offline=True)  # type: ignore[union-attr]
    asked: list[str] = []
    try:
        report = context.new_page()
        report.on("request", lambda request: asked.append(request.url))
        report.goto((tmp_path / "report.html").as_uri())
        report.locator(".js-plotly-plot .main-svg").first.wait_for()
        assert "35/50/50 %" in report.inner_text("body")
        assert not [url for url in asked if not url.startswith(("file:", "data:", "blob:"))]
        report.emulate_media(media="print")
        report.set_viewport_size({"width": PRINTED, "height": 1000})
        assert report.evaluate(CUT_OFF, PRINTED) == []
        paper = report.pdf(prefer_css_page_size=True, print_background=True)
        sheets = {tuple(map(round, map(float, box))) for box in re.findall(BOX, paper)}
        assert sheets == {A4}
        (ARTEFACTS / "report.pdf").write_bytes(paper)
    finally:
        context.close()


def test_presenting_is_larger_and_in_the_link(visit: Visit) -> None:
    page = visit("tradeoff")
    size = "parseFloat(getComputedStyle(document.documentElement).fontSize)"
    assert page.evaluate(size) == 16
    page.get_by_text("Presenter").click()
    until(page, lambda: page.evaluate(size) == 21, "type is larger")
    assert query(page)["presenter"] == ["on"]
    settle(page)
    assert not faults(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= 1440
    page.get_by_text("Presenter").click()
    until(page, lambda: page.evaluate(size) == 16, "type is as before")


def test_arrows_pressed_while_a_lesson_is_drawn_all_count(visit: Visit) -> None:
    page = visit("method", presenter="on")
    for key in ("ArrowRight", "ArrowRight", "ArrowRight", "ArrowLeft"):
        page.keyboard.press(key)
    expect(page.get_by_role("img", name="step 3 of 8")).to_be_visible()


def click_cell(page: Page, component: str, across: float) -> None:
    """Click a cell in the middle row of a picture on Importance."""
    chart = page.locator(f".st-key-{component}-scores .js-plotly-plot")
    chart.scroll_into_view_if_needed()
    page.wait_for_timeout(300)
    box = chart.locator(".nsewdrag").first.bounding_box()
    assert box is not None
    x, y = box["x"] + box["width"] * across, box["y"] + box["height"] * 0.5
    page.mouse.move(x, y)
    page.wait_for_timeout(400)
    page.mouse.click(x, y)


def test_a_click_on_a_channel_shows_what_its_removal_does(visit: Visit) -> None:
    page = visit("importance", **PAPER)
    click_cell(page, "residual", 0.4)
    expect(page.locator(".cards").last).to_contain_text("39 of 96")
    page.locator(".st-key-kl-by-image .main-svg").first.wait_for(timeout=120 * SECOND)
    settle(page, 60)
    click_cell(page, "attention", 0.01)
    page.locator(".st-key-kl-by-image .main-svg").first.wait_for(timeout=120 * SECOND)
    page.locator(".st-key-attention-maps .main-svg").first.wait_for()
    settle(page, 60)
    assert len(page.locator(".tile").all()) == 8
    assert re.search(r"\d+ of 32", page.locator(".cards").last.inner_text())
    assert not faults(page)


def test_an_exercise_is_answered_by_measuring_and_progress_stays(visit: Visit, usual_theme: str) -> None:
    page = visit("workshop")
    assert not faults(page)
    page.get_by_role("textbox", name="Nickname").fill(f"Ada {usual_theme}")
    page.get_by_role("button", name="Join the list").click()
    expect(page.get_by_role("button", name="Change")).to_be_visible()
    for answer in ("Attention", "FFN", "Residual"):
        page.get_by_test_id("stRadioGroup").get_by_role("radio", name=answer).check(force=True)
        page.get_by_role("button", name="Check by measuring").click()
        settle(page, 180)  # until then the verdict on the answer before may stand there
        verdict = page.locator(".st-key-ws-verdict [data-testid=stAlert]")
        expect(verdict).to_contain_text(re.compile("Right|Not yet"), timeout=180 * SECOND)
        if "Right." in verdict.inner_text():
            break
    expect(page.get_by_text("1 of 8 solved in this browser.")).to_be_visible()
    expect(page.locator(".st-key-ws-verdict .tile")).to_have_count(
        24
    )  # eight images that each of the three cuts changes
    page.reload()
    expect(page.get_by_text("1 of 8 solved in this browser.")).to_be_visible(timeout=60 * SECOND)
    expect(page.get_by_role("radio", name="✓ 1")).to_be_visible()


def test_the_host_sees_the_queue_and_clears_the_room(visit: Visit, home: Path) -> None:
    page = visit("workshop")
    page.get_by_role("textbox", name="Nickname").fill("Grace")
    page.get_by_role("button", name="Join the list").click()
    expect(page.get_by_role("button", name="Change")).to_be_visible()
    assert "Grace" in [person.name for person in Room(home / "home" / "workshop").leaderboard()]
    page.locator("[data-testid=stExpander] summary", has_text="Host").click()
    expect(page.get_by_text(re.compile(r"Queue: \d+ measurements?, \d+ runs?"))).to_be_visible()
    page.get_by_role("button", name="Clear the room…").click()
    page.get_by_role("button", name="Clear the room", exact=True).click()
    expect(page.get_by_role("button", name="Join the list")).to_be_visible(timeout=60 * SECOND)
    assert not Room(home / "home" / "workshop").leaderboard()
