"""Everything follows the pointer while a slider is dragged."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import Locator, Page, expect

from pages.services import open_model
from tests.support.browser import Visit, settle
from upvit_core import units
from upvit_core.planning.what_if import WhatIf
from upvit_core.profiling.macs import count_macs, count_parameters
from upvit_core.records.known_shapes import deit_shape
from upvit_core.records.shape import ModelShape

SHIFTS = """window.shifts = []; new PerformanceObserver((list) => { for (const entry of list.getEntries())
  if (!entry.hadRecentInput) window.shifts.push([entry.startTime, entry.value]); })
  .observe({ type: "layout-shift", buffered: true });"""
FRAMES = """() => { window.drawn = []; let last = performance.now(); window.watching = true;
  const tick = (now) => { window.drawn.push(now - last); last = now;
    if (window.watching) requestAnimationFrame(tick); };
  requestAnimationFrame(tick); }"""


def counted(shape: ModelShape, percents: tuple[int, int, int], heads: int | None) -> tuple[str, str]:
    residual, attention, ffn = percents
    after = WhatIf(residual, attention, heads, ffn).plan(open_model.no_scores(shape)).shape_after
    return units.short(count_parameters(after)), units.short(count_macs(after))


def number(page: Page, name: str) -> str:
    return page.locator(f'[data-follow="{name}"] .value').inner_text()


@contextmanager
def held(page: Page, thumb: Locator) -> Iterator[tuple[float, float, float]]:
    """The thumb of a slider under a pressed button: its middle, and the pixels of one percent."""
    track = thumb.locator("xpath=ancestor::*[@role='group']").first
    box = track.bounding_box()
    assert box is not None
    value = float(str(thumb.input_value()))
    width = box["width"] / float(str(thumb.get_attribute("max")))
    x, y = box["x"] + value * width, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    yield x, y, width
    page.mouse.up()


@pytest.mark.parametrize("which", ["demo", "DeiT-B"])
def test_numbers_follow_the_pointer_exactly(visit: Visit, published: Path, which: str) -> None:
    """Thirty positions under a held button, against the library's counts of the same plan; and frames a second."""
    query = {} if which == "demo" else {"open": f"published:{published}"}
    page = visit("tradeoff", **query)
    demo = open_model.inspect("demo")
    assert demo is not None
    shape, heads = (demo.shape, 6) if which == "demo" else (deit_shape("base"), 6)
    thumb = page.get_by_role("slider", name="FFN removed")
    before = page.url
    page.evaluate(FRAMES)
    with held(page, thumb) as (x, y, percent):
        for step in range(1, 31):
            page.mouse.move(x + step * percent, y, steps=2)
            page.wait_for_timeout(40)
            value = int(thumb.input_value())
            assert (number(page, "params"), number(page, "macs")) == counted(shape, (50, 50, value), heads)
        assert value > 70
        drawn = page.evaluate("() => { window.watching = false; return window.drawn }")
        assert page.url == before, "the server has heard of nothing yet"
        assert page.locator(".follow-veil i").count()
    rate = 1000 * len(drawn) / sum(drawn)
    print(f"{which}: {rate:.0f} frames a second, longest {max(drawn):.0f} ms")
    assert rate > 15  # 60 and 30 are the aim on a machine that does nothing else
    expect(page).to_have_url(re.compile("ffn="))
    settle(page)
    assert not page.locator(".follow-veil").count()
    assert number(page, "params") == counted(shape, (50, 50, int(thumb.input_value())), heads)[0]


def test_only_widths_that_can_be_reached_are_set(visit: Visit) -> None:
    page = visit("tradeoff")
    thumb = page.get_by_role("slider", name="Residual removed")
    thumb.focus()
    thumb.press("ArrowRight")
    expect(thumb).to_have_value("56")  # 48 of 96, then 42: six heads divide it
    thumb.press("ArrowLeft")
    expect(thumb).to_have_value("50")


def test_the_first_screen_follows_the_pointer(visit: Visit) -> None:
    page = visit("")
    tour = json.loads(Path("assets/demo/tour.json").read_text())
    thumb, shape = page.locator("#tour-slider"), open_model.inspect("demo")
    assert shape is not None
    for percent in (0, 25, 63, 80, 95):
        thumb.evaluate("(node, value) => { node.value = value; node.dispatchEvent(new Event('input')) }", percent)
        params = count_parameters(
            WhatIf(percent, percent, 6, percent).plan(open_model.no_scores(shape.shape)).shape_after
        )
        digits = 1 if params < 1e5 else 0
        assert page.locator('[data-at="params"]').inner_text() == units.short(params, digits)
        for way, name in (("paper", "Cut as in the paper"), ("repaired", "Rotate, cut, repair")):
            page.get_by_role("radio", name=re.compile(name)).click()
            expect(page.locator('[data-at="top1"]')).to_have_text(f"{tour['ways'][way]['top1'][percent]:.1f} %")
            label, _ = tour["ways"][way]["answers"][percent][0]
            expect(page.locator('[data-at="answer-0"]')).to_contain_text(tour["classes"][label])
            expect(page.locator('[data-at="answer-0"]')).to_have_class("" if label == tour["labels"][0] else "wrong")
