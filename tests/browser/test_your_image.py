"""A picture dropped on Trade-off: both models' answers, which follow a slider, and a sentence for another file."""

from pathlib import Path

from PIL import Image
from playwright.sync_api import expect

from tests.support.browser import Visit, faults


def test_an_image_dropped_in_is_answered_by_both_models(visit: Visit, tmp_path: Path) -> None:
    Image.radial_gradient("L").resize((120, 80)).save(tmp_path / "mine.png")
    (tmp_path / "bad.png").write_text("<svg></svg>")
    page = visit("tradeoff", basis="Cut as in the paper")
    page.get_by_role("tab", name="Your image").click()
    page.locator(".st-key-own-image input[type=file]").set_input_files(tmp_path / "mine.png")
    plan = page.locator(".own ol").nth(1)
    expect(plan.locator("li b")).to_have_count(5, timeout=120_000)
    original, before = page.locator(".own ol").nth(0).inner_text(), plan.inner_text()
    assert not faults(page)
    page.get_by_role("slider", name="FFN removed").press("End")
    expect(plan).not_to_have_text(before, timeout=120_000, use_inner_text=True)
    expect(plan.locator("li b")).to_have_count(5, timeout=120_000)
    assert page.locator(".own ol").nth(0).inner_text() == original
    page.locator(".st-key-own-image input[type=file]").set_input_files(tmp_path / "bad.png")
    expect(page.get_by_role("alert")).to_contain_text("bad.png cannot be read as a picture", timeout=60_000)
