"""Links that ask for what there is not: every page still draws, or says one sentence and offers a way back."""

from collections.abc import Callable

import pytest
from streamlit.testing.v1 import AppTest

PAGES = ("start", "importance", "tradeoff", "runs", "method", "workshop")
HOSTILE = {
    "depth": ("inf", "1e400", "9" * 400, "²", ""), "residual": ("nan", "-3", "x" * 5000), "heads": ("²", "0"),
    "cost": ("", "Nothing"), "loss": ("x", ""), "step": ("99", ""), "round-to": ("inf", "-8"), "batch": ("inf", "²"),
    "widths": ("::", "9" * 5000), "images": ("~nobody/x", "x" * 300), "scores": ("../x", ""), "exercise": ("²", "-1"),
}  # fmt: skip
NOT_THERE = ("~nobody/x", "x" * 300, "demo#heads=²", "demo#heads=" + "9" * 5000, "published:", "no-weights:")
ROUNDS = [{key: values[number % len(values)] for key, values in HOSTILE.items()} for number in range(5)]


@pytest.mark.parametrize("page_name", PAGES)
def test_no_link_breaks_a_page(page_name: str, page: Callable[..., AppTest]) -> None:
    for asked in [*ROUNDS, *({"open": value} for value in NOT_THERE)]:
        test = page(f"pages/{page_name}/page.py", **asked)
        shown = {key: value[:40] for key, value in asked.items()}
        assert not test.exception, shown
        assert not any("Something unexpected" in error.value for error in test.error), shown
