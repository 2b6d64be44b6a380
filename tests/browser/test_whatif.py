"""The what-if in a real browser: a plan previewed, spread over blocks, solved for, and chosen from the front."""

import re
from urllib.parse import parse_qs, urlsplit

import pytest
from playwright.sync_api import Locator, Page, expect

from tests.support.browser import Visit, settle
from tests.support.reading import PAPER

expect.set_options(timeout=60_000)
FRONT = ".st-key-front .js-plotly-plot"


def query(page: Page) -> dict[str, str]:
    return {key: values[-1] for key, values in parse_qs(urlsplit(page.url).query).items()}


def card(page: Page, name: str) -> Locator:
    return page.locator(".card").filter(has=page.locator(".name", has_text=name))


def points(page: Page) -> list[dict[str, float]]:
    """Positions on the screen of the plans of the front that a click would choose."""
    return page.evaluate(
        """selector => {
            const chart = document.querySelector(selector), box = chart.getBoundingClientRect(), found = []
            const {xaxis, yaxis} = chart._fullLayout
            for (const trace of chart._fullData) for (let i = 0; trace.customdata && i < trace.x.length; i++)
                found.push({x: box.left + xaxis._offset + xaxis.d2p(trace.x[i]),
                            y: box.top + yaxis._offset + yaxis.d2p(trace.y[i]), cost: trace.x[i]})
            return found
        }""",
        FRONT,
    )


def to_front(page: Page) -> None:
    settle(page)
    page.evaluate("selector => document.querySelector(selector).scrollIntoView({block: 'center'})", FRONT)
    page.wait_for_timeout(300)


WATCH = """() => {
    window.seen = new Set()
    const look = () => { for (const card of document.querySelectorAll('.card[data-follow="quality"]'))
        seen.add(card.className + " " + card.innerText) }
    new MutationObserver(look).observe(document.body, {subtree: true, childList: true, characterData: true})
}"""


def test_a_number_is_called_measured_only_for_the_plan_that_was(visit: Visit) -> None:
    page = visit("tradeoff", residual=10, attention=10, ffn=10, heads=6)
    top1 = card(page, "Right answers")
    expect(top1).to_contain_text("measured", timeout=120_000)
    before = top1.locator(".value").inner_text()
    page.evaluate(WATCH)
    page.get_by_role("slider", name="Residual removed").press("End")
    expect(page.locator(".strip").first).to_contain_text("94/10/10 %")  # four channels of 96
    expect(top1.locator(".source")).to_have_text("measured", timeout=120_000)
    after = top1.locator(".value").inner_text()
    assert float(after.split()[0]) < float(before.split()[0]) - 20
    seen = page.evaluate("[...seen]")
    assert any("estimated" in text or "stale" in text for text in seen)
    measured = [text for text in seen if "measured\n" in text]
    assert all(before in text or after in text for text in measured)
    page.get_by_role("tab", name="Details").click()
    expect(card(page, "after the cut")).to_contain_text("95 % interval")


def test_blocks_budgets_and_the_front_set_the_plan(visit: Visit) -> None:
    page = visit("tradeoff", loss="Score removed", **PAPER)
    page.get_by_role("tab", name="Block by block").click()
    grid = page.get_by_test_id("stDataFrame").first
    grid.scroll_into_view_if_needed()
    for name in ("Right answers", "Images/s"):  # a rerun of the page closes the editor of a cell
        expect(card(page, name).locator(".source")).to_have_text("measured", timeout=120_000)
    settle(page)
    grid.click(position={"x": 30, "y": 36 + 18})
    for key in ("ArrowRight", "ArrowRight", "7", "5", "Enter"):
        page.wait_for_timeout(300)  # the cell's editor opens with the first digit
        page.keyboard.press(key)
    expect(page).to_have_url(re.compile("widths="))
    settle(page)
    assert query(page)["widths"] == "48:3x24x192,3x48x192*5"
    assert query(page)["allocation"] == "Block by block"

    page.get_by_role("button", name="Budget…").click()
    for label, value in (("Parameters, M, at most", "0.2"), ("MACs of one image, M, at most", "9.5")):
        box = page.get_by_label(label)
        ticked = page.get_by_role("checkbox", name=f"Limit {label.removesuffix(', at most')}")
        if not ticked.is_checked():
            ticked.locator("xpath=ancestor::label").click()
        box.fill(value)
        box.press("Enter")
    page.get_by_text("a shape of stock timm", exact=True).click()
    page.get_by_text("Blocks may go too").click()
    settle(page)
    page.get_by_role("button", name="Find the best plan").click()
    answer = page.get_by_test_id("stAlert").filter(has_text="Best within")
    expect(answer).to_contain_text("Best within 200.05 k parameters and 9.50 M MACs, a shape of stock timm")
    expect(page).to_have_url(re.compile("depth=5"))
    expect(card(page, ", one image")).to_contain_text(re.compile(r"9\.(50|[0-4]\d) M"))
    page.keyboard.press("Escape")

    page.get_by_role("button", name="Axes").click()
    expect(page.get_by_role("button", name=re.compile("Measure these"))).to_be_visible(timeout=60_000)
    settle(page)
    every = points(page)
    page.get_by_text("Only the best").click()
    settle(page)
    page.keyboard.press("Escape")
    to_front(page)
    left = points(page)
    assert 5 < len(left) < len(every)
    chosen = max(left, key=lambda point: point["cost"])
    page.mouse.move(chosen["x"], chosen["y"])
    page.wait_for_timeout(300)
    page.mouse.click(chosen["x"], chosen["y"])
    expect(card(page, "Parameters")).to_contain_text(f"{chosen['cost'] / 1e3:.2f} k")
    expect(page).not_to_have_url(re.compile("depth="))
    assert query(page)["hide-dominated"] == "true"


@pytest.mark.slow
def test_calibration_is_a_button_that_can_be_stopped(visit: Visit) -> None:
    page = visit("tradeoff")
    page.get_by_role("button", name="Finer").click()
    page.get_by_role("button", name="Calibrate this device").click()
    device = page.locator(".st-key-slot-device")
    expect(device).to_contain_text("Calibrating this device")
    device.get_by_role("button", name="Cancel").click()
    expect(device.get_by_role("button", name="Calibrate this device")).to_be_visible(timeout=60_000)
    expect(device).to_contain_text("Not calibrated")


def test_the_map_grows_at_a_press_and_a_click_on_it_sets_the_plan(visit: Visit) -> None:
    page = visit("tradeoff", heads=3, basis=PAPER["basis"])
    page.get_by_role("tab", name="Map").click()
    page.get_by_role("button", name="Measure around").click()
    chart = page.locator(".st-key-map .js-plotly-plot")
    expect(chart).to_be_visible(timeout=180_000)
    page.locator(".st-key-slot-map").get_by_role("button", name="Cancel").click()
    settle(page)
    chart.scroll_into_view_if_needed()
    place = chart.evaluate(
        """chart => {
            const box = chart.getBoundingClientRect(), {xaxis, yaxis} = chart._fullLayout
            return [box.left + xaxis._offset + xaxis.d2p(20), box.top + yaxis._offset + yaxis.d2p(30)]
        }"""
    )
    page.mouse.click(*place)
    page.wait_for_url(lambda url: "residual=20" in url and "ffn=30" in url, timeout=60_000)
