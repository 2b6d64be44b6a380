"""Terms in a real browser: defined where they stand, and no way to them or back loses the open model."""

from pathlib import Path

from playwright.sync_api import Page, expect

from tests.support.browser import Visit, settle


def strip(page: Page) -> str:
    return page.locator(".strip").first.inner_text()


def test_a_term_is_defined_where_it_stands_and_the_glossary_keeps_the_model(visit: Visit, published: Path) -> None:
    page = visit("importance", open=f"published:{published}", residual=75)
    before, address = strip(page), page.url
    term = page.locator("button.term").first
    term.click()
    definition = page.locator(".definition:popover-open")
    expect(definition).to_contain_text("The stream of D channels")
    page.keyboard.press("Escape")
    expect(definition).to_have_count(0)
    assert page.url == address
    page.get_by_text("Learn", exact=True).first.click()
    page.get_by_test_id("stTopNavDropdownLink").filter(has_text="Glossary").click()
    page.wait_for_url("**/glossary**")
    settle(page, 120)
    page.get_by_role("link", name="Seen on Trade-off").click()
    page.wait_for_url("**/tradeoff**")
    settle(page, 120)
    assert strip(page) == before
    assert "DeiT-B" in before


def test_presenting_shows_one_idea_a_screen_turned_by_arrow_keys(visit: Visit) -> None:
    page = visit("method", presenter="on")
    assert page.evaluate("parseFloat(getComputedStyle(document.querySelector('.lesson p')).fontSize)") >= 28
    for chrome in ('[data-testid="stHeader"]', ".strip", "h1"):
        assert not page.locator(chrome).first.is_visible()
    dots = page.locator(".dots")
    for key, step in (("ArrowRight", 2), ("ArrowRight", 3), ("ArrowLeft", 2)):
        settle(page, 120)
        page.keyboard.press(key)
        expect(dots).to_have_attribute("aria-label", f"step {step} of 8", timeout=60_000)
    settle(page, 120)
    foot = page.locator(".st-key-next button").bounding_box()
    assert foot is not None
    assert foot["y"] + foot["height"] <= 900
    page.keyboard.press("Escape")
    expect(page.locator("h1")).to_be_visible(timeout=60_000)
