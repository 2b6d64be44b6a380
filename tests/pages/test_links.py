"""Links that ask for what there is not: every page still draws, or says one sentence and offers a way back."""

from collections.abc import Callable

import pytest
from streamlit.testing.v1 import AppTest

PAGES = ("model", "importance", "tradeoff", "runs", "method", "workshop")
HOSTILE = {
    "depth": ("inf", "-inf", "1e400", "9" * 400, "²", ""), "residual": ("nan", "-3", "x" * 5000), "heads": ("²", "0"),
    "cost": ("", "Nothing"), "loss": ("", "x"), "step": ("", "99"), "round-to": ("inf", "-8"),
    "batch": ("inf", "0", "²"),
    "widths": ("::", "9" * 5000), "images": ("~nobody/x", "x" * 300), "scores": ("../x", ""), "exercise": ("²", "-1"),
    "open": ("~nobody/x", "x" * 300, "x" * 5000, "demo#heads=²", "demo#heads=" + "9" * 5000, "published:",
             "no-weights:"),
}  # fmt: skip


@pytest.mark.parametrize("page_name", PAGES)
@pytest.mark.parametrize("key", HOSTILE)
def test_no_link_breaks_a_page(key: str, page_name: str, page: Callable[..., AppTest]) -> None:
    for value in HOSTILE[key]:
        test = page(f"pages/{page_name}/page.py", **{key: value})
        assert not test.exception, (key, value[:40])
        assert not any("Something unexpected" in error.value for error in test.error), (key, value[:40])
