"""The spread of a plan over blocks: in the link, in the table, and over the sliders."""

from collections.abc import Callable

from streamlit.testing.v1 import AppTest

from pages.services import slider_state
from pages.tradeoff import blocks
from tests.support.reading import check, what_if_of
from upvit_core.paths import DEMO_FOLDER
from upvit_core.planning.curves import Widths
from upvit_core.planning.what_if import WhatIf, default_what_if, what_if_from_widths
from upvit_core.planning.widths import parse_widths, widths_of
from upvit_core.records.scores import ImportanceScores

PAGE = "pages/tradeoff/page.py"
UNEVEN = "40:3x48x381,6x36x314,3x69x184*4"
Run = Callable[..., AppTest]


def now(test: AppTest) -> WhatIf:
    return what_if_of(test)


def demo() -> ImportanceScores:
    return ImportanceScores.load(DEMO_FOLDER / "scores.safetensors")


def test_a_link_carries_widths_block_by_block(page: Run) -> None:
    shape = demo().shape
    what_if = what_if_from_widths(parse_widths(UNEVEN, shape), shape, default_what_if(shape))
    percents = {key: str(value) for key, value in zip(slider_state.keys_of(shape), what_if.slider_values, strict=True)}
    test = page(PAGE, **percents, basis=slider_state.CHANNELS, allocation="Block by block", widths=UNEVEN)
    check(test)
    assert now(test) == what_if
    assert widths_of(now(test).plan(demo()).shape_after) == parse_widths(UNEVEN, shape)


def test_nonsense_widths_in_a_link_are_ignored(page: Run) -> None:
    test = page(PAGE, allocation="Block by block", widths="40:3x48x381", **{"round-to": "7"})
    check(test)
    assert (now(test).widths, now(test).round_to) == ("", 1)


def test_a_way_to_spread_keeps_the_ratios_and_a_slider_sets_all_blocks(page: Run) -> None:
    test = page(PAGE)
    test.selectbox(key="allocation").set_value("By kind").run()
    scores = demo()
    plan = now(test).plan(scores)
    assert sum(len(b.ffn.keep) for b in plan.blocks) == 6 * 192
    assert len({len(b.ffn.keep) for b in plan.blocks}) > 1
    test.selectbox(key="allocation").set_value("Block by block").run()
    assert now(test).plan(scores).digest == plan.digest
    test.selectbox(key="round-to").set_value(8).run()
    assert all(len(b.ffn.keep) % 8 == 0 for b in now(test).plan(scores).blocks)
    test.slider(key="ffn").set_value(75).run()
    assert not test.exception
    assert not now(test).widths
    assert {len(b.ffn.keep) for b in now(test).plan(scores).blocks} == {96}


def test_an_edit_changes_its_block_alone_and_stays_legal() -> None:
    shape = demo().shape
    before = widths_of(shape)
    after = blocks.edited_widths(before, shape, {2: {"Heads": 3, "FFN removed": 50.0}}, 1)
    assert after.blocks[2] == (3, 96, 192)
    assert [b for n, b in enumerate(after.blocks) if n != 2] == [b for n, b in enumerate(before.blocks) if n != 2]
    assert blocks.edited_widths(before, shape, {0: {"Attention removed": 99.9}}, 1).blocks[0][1] == 6
    assert blocks.edited_widths(before, shape, {0: {"FFN removed": 47.0}}, 16).blocks[0][2] == 208
    what_if = what_if_from_widths(after, shape, default_what_if(shape))
    assert what_if.words == "0/0/8 %, 3 heads, block by block"


def test_the_table_says_what_the_plan_is() -> None:
    shape = demo().shape
    rows = blocks.table_rows(Widths(48, ((3, 48, 96),) * 6), shape)
    assert rows["Attention removed"].tolist() == [50.0] * 6
    assert rows["FFN kept"].tolist() == [96] * 6
