"""A link is a whole what-if: opened in another session it shows the same, or says what that machine lacks."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from pages.services import open_model, scoring, slider_state
from tests.support.reading import session_of, what_if_of
from upvit_core.planning.what_if import ALLOCATIONS, WhatIf, default_what_if, what_if_from_widths
from upvit_core.planning.widths import parse_widths, widths_of, write_widths
from upvit_core.records.scores import ImportanceScores

PAGE = "pages/tradeoff/page.py"
Run = Callable[..., AppTest]


def shown(test: AppTest) -> tuple[WhatIf, str]:
    """The what-if, and the number cards without what is still being measured."""
    assert not test.exception
    html = "\n".join(str(e.proto.body) for e in test.get("html") if 'class="cards"' in str(e.proto.body))
    return what_if_of(test), re.sub(r"being measured[^<]*", "", html)


def shown_scores(test: AppTest) -> ImportanceScores:
    open_now = session_of(test).shown
    assert open_now is not None
    assert open_now[1] is not None
    return open_now[1]


def link_of(test: AppTest) -> dict[str, str]:
    """The link that another browser would get; values that the page wrote come as lists."""
    return {key: v if isinstance(v := test.query_params[key], str) else v[0] for key in test.query_params}


def warnings(test: AppTest) -> list[str]:
    return [w.value for w in test.warning]


def uneven() -> str:
    model = open_model.inspect("demo")
    assert model is not None
    assert model.bundled is not None
    plan = WhatIf(50, 50, 3, 50, allocation="isomorphic").plan(model.bundled)
    return write_widths(widths_of(plan.shape_after))


STATES: dict[str, WhatIf] = {
    "ratios and heads": WhatIf(30, 60, 2, 70),
    "directions, repaired": WhatIf(40, 50, 6, 45, basis="directions", repair=True),
    "by kind, rounded": WhatIf(50, 50, 3, 50, allocation="isomorphic", round_to=8),
    "fewer blocks": WhatIf(25, 25, 6, 25, depth=4),
    "one threshold": WhatIf(20, 50, 3, 50, allocation="global"),
}


def query(state: WhatIf) -> dict[str, str]:
    """The query as the widgets write it."""
    told = {"residual": state.residual, "attention": state.attention, "heads": state.heads, "ffn": state.ffn}
    told["basis"] = slider_state.DIRECTIONS if state.basis == "directions" else slider_state.CHANNELS
    if state.repair:
        told["repair"] = "true"
    if state.allocation != "uniform":
        told["allocation"] = ALLOCATIONS[state.allocation]
    if state.round_to > 1:
        told["round-to"] = state.round_to
    if state.depth:
        told["depth"] = state.depth
    if state.widths:
        told["widths"] = state.widths
    return {key: str(value) for key, value in told.items()}


@pytest.mark.parametrize("name", STATES)
def test_a_link_is_the_whole_what_if(page: Run, name: str) -> None:
    state = STATES[name]
    first = page(PAGE, **query(state), batch="8")
    assert shown(first)[0] == state
    assert not warnings(first)
    again = page(PAGE, **link_of(first))
    assert shown(again) == shown(first)


def test_widths_of_single_blocks_are_in_the_link(page: Run) -> None:
    widths = uneven()
    model = open_model.inspect("demo")
    assert model is not None
    state = what_if_from_widths(parse_widths(widths, model.shape), model.shape, default_what_if(model.shape))
    first = page(PAGE, **query(state))
    assert shown(first)[0].widths == widths
    assert link_of(first)["widths"] == widths


def test_other_scores_are_named_by_the_link(page: Run, tmp_path: Path) -> None:
    from dataclasses import replace

    model = open_model.inspect("demo")
    assert model is not None
    assert model.bundled is not None
    test = page(PAGE, scores="l1-10-0-abcdef")
    assert ["l1-10-0-abcdef" in text for text in warnings(test)] == [True]
    values = {key: value[::-1].copy() for key, value in model.bundled.values.items()}
    replace(model.bundled, values=values, criterion="l1").save(scoring.folder(model) / "l1-10-0-abcdef.safetensors")
    there = page(PAGE, scores="l1-10-0-abcdef")
    assert not warnings(there)
    assert shown_scores(there).criterion == "l1"
    assert link_of(there)["scores"] == "l1-10-0-abcdef"
    plain = page(PAGE)
    assert shown_scores(plain).criterion == "kl"
    assert "scores" not in plain.query_params


def test_other_images_are_named_by_the_link(page: Run, tmp_path: Path) -> None:
    test = page(PAGE, images="/no/such/images")
    assert ["/no/such/images" in text for text in warnings(test)] == [True]
    (tmp_path / "pictures").mkdir()
    there = page(PAGE, images=str(tmp_path / "pictures"))
    assert not warnings(there)
    assert session_of(there).datasets == {"demo": str(tmp_path / "pictures")}
    assert link_of(there)["images"] == str(tmp_path / "pictures")


def test_blocks_that_nobody_scored_here_are_told(page: Run, published: Path) -> None:
    test = page(PAGE, open=f"published:{published}", depth="8", basis=slider_state.DIRECTIONS)
    assert not test.exception
    told = warnings(test)
    assert any("8 blocks" in text for text in told)
    assert any("weights" in text for text in told)
