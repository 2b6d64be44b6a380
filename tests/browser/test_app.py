"""The sliders, the link, opening something else, and the promises that need real pixels."""

from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.support.browser import Visit, settle
from tests.support.server import server


def strip(page: Page) -> str:
    return page.locator(".strip").first.inner_text()


def numbers(page: Page) -> str:
    """The first row of cards: parameters, MACs, speed, top-1."""
    return page.locator(".cards").first.inner_text()


def test_sliders_change_numbers_and_link(visit: Visit, published: Path, browser: Browser) -> None:
    """Ten quick presses on the first page that a server shows, then the link in another browser."""
    page = visit("tradeoff", open=f"published:{published}")
    assert "22.05 M" in numbers(page)
    thumb = page.get_by_role("slider", name="Residual removed")
    for _ in range(10):
        thumb.press("ArrowRight")
    expect(page.locator(".strip").first).to_contain_text("60/50/50 %", timeout=120_000)
    settle(page)
    after = numbers(page)
    assert "22.05 M" not in after
    assert parse_qs(urlsplit(page.url).query)["residual"] == ["60"]
    other = browser.new_context(reduced_motion="reduce", viewport={"width": 1440, "height": 900})
    again = other.new_page()
    again.goto(page.url)
    settle(again, 180)
    assert numbers(again) == after
    assert strip(again) == strip(page)
    other.close()


@pytest.mark.slow
def test_what_if_follows_to_other_pages(visit: Visit, published: Path) -> None:
    page = visit("tradeoff", open=f"published:{published}", residual=75, attention=75, heads=3, ffn=75)
    assert "5.72 M" in strip(page)
    page.get_by_role("link", name="Importance").first.click()
    expect(page.get_by_text("192 of 768 kept").first).to_be_visible(timeout=120_000)
    settle(page, 120)
    assert "5.72 M" in strip(page)
    assert "75/75/75 %" in strip(page)
    page.get_by_role("link", name="Trade-off").first.click()
    expect(page.get_by_role("slider", name="FFN removed")).to_have_value("75", timeout=120_000)
    expect(page.locator(".cards").first).to_contain_text("5.72 M", timeout=120_000)


def open_from_field(page: Page, text: str) -> None:
    page.get_by_role("textbox", name="or a timm name, a path, a hub id").fill(text)
    page.get_by_role("button", name="Open", exact=True).click()


@pytest.mark.slow
def test_published_scores_open_from_the_field(visit: Visit, published: Path) -> None:
    page = visit("")
    open_from_field(page, str(published))
    expect(page.locator(".strip")).to_contain_text("DeiT-B", timeout=120_000)
    assert "86.57 M" in numbers(page)
    settle(page)
    page.get_by_role("button", name="Choose how much to remove").click()
    expect(page.locator(".cards").first).to_contain_text("22.05 M", timeout=120_000)


@pytest.mark.slow
def test_a_wrong_path_is_told_in_the_panel_and_the_model_stays(visit: Visit) -> None:
    page = visit("")
    before = strip(page)
    open_from_field(page, "/no/such/folder")
    panel = page.locator(".st-key-open-another")
    expect(panel.get_by_text("There is no file or folder /no/such/folder")).to_be_visible(timeout=60_000)
    assert strip(page) == before
    assert page.locator(".tour").is_visible()
    assert "Traceback" not in page.inner_text("body")


@pytest.mark.slow
def test_a_click_on_a_picture_shows_the_channel_in_detail(visit: Visit, published: Path) -> None:
    page = visit("importance", open=f"published:{published}")
    chart = page.locator(".js-plotly-plot").nth(2)
    chart.scroll_into_view_if_needed()
    box = chart.locator(".nsewdrag").first.bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + box["width"] * 0.4, box["y"] + box["height"] * 0.5)
    page.wait_for_timeout(400)
    page.mouse.click(box["x"] + box["width"] * 0.4, box["y"] + box["height"] * 0.5)
    expect(page.get_by_text("of its merged head").first).to_be_attached(timeout=120_000)
    expect(page.locator(".cards").last).to_contain_text("of 128")


@pytest.mark.slow
def test_the_first_deep_link_after_a_start_is_right(browser: Browser, tmp_path: Path, published: Path) -> None:
    with server(tmp_path) as (url, _):
        context = browser.new_context(reduced_motion="reduce", viewport={"width": 1440, "height": 900})
        page = context.new_page()
        page.goto(f"{url}/tradeoff?open=published:{published}")
        settle(page, 180)
        page.wait_for_timeout(1500)
        assert page.locator('[role="dialog"]').count() == 0
        assert page.locator("h1").inner_text().startswith("Trade-off")
        context.close()


def test_an_address_puts_no_link_into_a_message(visit: Visit) -> None:
    place = "/x **[sign in](https:evil.example/login)** __old__"
    alert = visit("model", open=place).get_by_role("alert").first
    expect(alert).to_contain_text(place)
    assert not alert.get_by_role("link").count()
