"""Fewer blocks on Trade-off: the demo's record, the slider that replays it, the same plan everywhere."""

from collections.abc import Callable
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from tests.support import ROOT
from tests.support.reading import PAPER, check, html_of
from upvit_core.planning.depth_records import DepthRecords
from upvit_core.records.block_removals import BlockRemovals

Run = Callable[..., AppTest]
TRADEOFF = "pages/tradeoff/page.py"
BUNDLED = ROOT / "assets" / "demo" / "blocks.json"


def command_of(test: AppTest) -> str:
    """The command lines that make the plan."""
    return next(code.value for code in test.code if "upvit_core plan" in code.value)


def test_the_record_is_the_demos() -> None:
    import json

    from safetensors import safe_open

    with safe_open(str(BUNDLED.with_name("scores.safetensors")), "numpy") as file:
        digest = json.loads(file.metadata()["upvit_scores"])["model_digest"]
    record = BlockRemovals.load(BUNDLED)
    assert (record.model_digest, record.least_depth, record.images) == (digest, 1, 2000)


def test_the_slider_replays_the_removals(page: Run) -> None:
    test = page(TRADEOFF, "Details", residual="0", attention="0", heads="6", ffn="0")
    assert not test.error
    slider = test.slider(key="depth")
    assert (slider.min, slider.max, slider.value) == (1, 6, 6)
    assert "678.73 k" in html_of(test)
    slider.set_value(4).run()
    check(test)
    text = html_of(test)
    assert "4 blocks" in text
    assert "455.05 k" in text  # two of six blocks of 111,840 parameters less
    assert "not known yet: measure the plan" in text


def test_a_link_carries_the_depth_and_the_command_says_it(page: Run) -> None:
    test = page(TRADEOFF, depth="3", **PAPER)
    told = command_of(test)
    assert "score-blocks demo --data demo --depth 3 --images 2000 --out blocks.json" in told
    assert "--residual 0.5 --attention 0.5 --ffn 0.5 --heads 3 --depth 3 --depth-scores blocks.json" in told


@pytest.mark.parametrize("nonsense", ["0", "6", "99", "abc"])
def test_a_depth_that_is_none_is_ignored(page: Run, nonsense: str) -> None:
    test = page(TRADEOFF, depth=nonsense)
    assert not test.error
    assert "score-blocks" not in command_of(test)


@pytest.mark.parametrize("order", ["depth first", "width first"])
def test_the_order_of_the_cuts_is_a_setting(
    page: Run, order: str, jobs_at_once: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scored on request, then used by the plan, its command and its file alike."""
    few = BlockRemovals.load(BUNDLED).model_copy(update={"images": 8})
    monkeypatch.setattr(DepthRecords, "of_model", lambda self, digest: few)
    test = page(TRADEOFF, "Fewer blocks", depth="4", **PAPER, **{"order-of-cuts": order})
    assert not test.error
    assert any("not scored yet" in caption.value for caption in test.caption)
    assert "--after" not in command_of(test)
    test.button(key="score-order").click().run()
    check(test)
    assert any(f"{order.capitalize()}:" in c.value and "on 8 images" in c.value for c in test.caption)
    told = command_of(test)
    assert ("--after widths.json" in told) == (order == "width first")
    assert ("score demo --data demo --depth 4 --depth-scores blocks.json" in told) == (order == "depth first")
    assert f"4 blocks, {order}" in html_of(test)


def test_without_a_record_it_can_be_made(page: Run, published: Path) -> None:
    test = page(TRADEOFF, "Fewer blocks", open=f"published:{published}")
    assert any("Scoring half-blocks needs a model with weights" in c.value for c in test.caption)
