"""The report of a plan on a phone without a network: its numbers at the sliders are the library's."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page

from upvit_core.mapping.points import Worth
from upvit_core.mapping.surrogate import Surrogate
from upvit_core.paths import DEMO_FOLDER
from upvit_core.planning.depth_records import DepthRecords
from upvit_core.planning.what_if import WhatIf
from upvit_core.profiling.macs import count_macs, count_parameters
from upvit_core.records.basis import Basis
from upvit_core.records.map import Map
from upvit_core.records.scores import ImportanceScores
from upvit_core.report import plan_report

START = WhatIf(50, 33, 6, 62, Basis.DIRECTIONS, True)
POSITIONS = [(50, 33, 6, 62), (0, 0, 6, 0), (95, 95, 1, 95), (10, 80, 3, 25), (75, 33, 2, 62), (60, 5, 6, 90)]


@pytest.fixture
def phone(browser: Browser) -> Iterator[Page]:
    context = browser.new_context(viewport={"width": 390, "height": 844}, offline=True)
    yield context.new_page()
    context.close()


def shown(page: Page, name: str) -> str:
    return page.locator(f'[data-at="{name}"]').inner_text()


@pytest.mark.parametrize("mapped", [True, False])
def test_numbers_at_the_sliders_are_the_librarys(phone: Page, tmp_path: Path, mapped: bool) -> None:
    scores = ImportanceScores.load(DEMO_FOLDER / "directions.safetensors")
    surrogate, worth = Surrogate(Map.load(DEMO_FOLDER / "map.json")), Worth(scores, Basis.DIRECTIONS)
    html = plan_report(START.plan(scores), scores, surrogate=surrogate if mapped else None)
    (tmp_path / "plan.html").write_text(html, encoding="utf-8")
    asked: list[str] = []
    phone.on("request", lambda request: asked.append(request.url))
    phone.goto(f"file://{tmp_path}/plan.html")
    for residual, attention, heads, ffn in POSITIONS:
        for name, wanted in (("residual", residual), ("attention", attention), ("ffn", ffn), ("heads", heads)):
            thumb = phone.locator(f'.moving input[name="{name}"]')
            thumb.focus()
            thumb.press("Home")
            while int(re.findall(r"\d+", shown(phone, name))[0]) != wanted:
                before = thumb.input_value()
                thumb.press("ArrowRight")
                assert thumb.input_value() != before, f"{name} has no {wanted}"
        plan = WhatIf(residual, attention, heads, ffn, Basis.DIRECTIONS, True).plan(scores)
        assert shown(phone, "params") == f"{count_parameters(plan.shape_after):,}"
        assert shown(phone, "macs") == f"{count_macs(plan.shape_after):,}"
        assert f"{plan.shape_after.embed_dim} of 96 stay" in shown(phone, "residual")
        found = surrogate.estimate([worth.of(plan)])
        if mapped:
            assert shown(phone, "value") == f"{found.value[0]:.1f} %"
            band = f"80 % band {found.value_low[0]:.1f} – {found.value_high[0]:.1f}"
            assert shown(phone, "value-note") == f"estimated from {len(surrogate.record.cuts)} measured cuts; {band}"
        else:
            assert shown(phone, "value") == "not known yet"
    assert all(url.startswith(("file:", "data:", "blob:")) for url in asked)
    assert phone.evaluate("document.documentElement.scrollWidth") <= 390
    phone.screenshot(path=tmp_path / "phone.png")


@pytest.mark.parametrize("shallow", [False, True])
def test_sliders_start_nearest_to_a_plan_whose_blocks_differ(phone: Page, tmp_path: Path, shallow: bool) -> None:
    scores = ImportanceScores.load(DEMO_FOLDER / "scores.safetensors")
    records = DepthRecords(tmp_path, (DEMO_FOLDER / "blocks.json",))
    plan = WhatIf(50, 50, 3, 40, allocation="global", depth=5 if shallow else None).plan(scores, records)
    (tmp_path / "plan.html").write_text(plan_report(plan, scores), encoding="utf-8")
    phone.goto(f"file://{tmp_path}/plan.html")
    assert "This plan is not one of equal shares" in phone.inner_text("body")
    stay = sum(len(plan.kept(f"ffn.{b}")) for b in range(6))
    assert shown(phone, "ffn").startswith(f"{round(100 * (1 - stay / (6 * 384)))} %")
    assert shown(phone, "heads") == "3"
