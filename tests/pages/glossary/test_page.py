import html
import re
from collections.abc import Callable

import pytest
from streamlit.testing.v1 import AppTest

from pages.widgets.terms import BY_KEY, TERMS, linked
from tests.support import ROOT

PAGES = {"Importance": "pages/importance/page.py", "Trade-off": "pages/tradeoff/page.py"}


def test_every_term_is_defined_once_and_a_search_leaves_those_that_have_its_words(page: Callable[..., AppTest]) -> None:
    assert len(BY_KEY) == len(TERMS)
    assert all((ROOT / term.page).is_file() for term in TERMS)
    test = page("pages/glossary/page.py")
    assert not test.exception
    assert sorted(names_in(test)) == sorted(term.name for term in TERMS)
    test.text_input(key="glossary-search").set_value("kl TEACHER").run()
    assert names_in(test) == ["Distillation"]
    test.text_input(key="glossary-search").set_value("**x**").run()
    assert names_in(test) == []
    assert test.info[0].value == r"No term has \*\*x\*\* in it; try a shorter word."


def names_in(test: AppTest) -> list[str]:
    return [name for e in test.get("html") for name in re.findall(r"<dt>(.*?)</dt>", str(e.proto.body))]


def test_presenting_makes_type_larger_until_it_is_switched_off(page: Callable[..., AppTest]) -> None:
    plain, large = page("pages/tradeoff/page.py"), page("pages/tradeoff/page.py", presenter="on")
    assert not large.exception

    def styles(test: AppTest) -> str:
        return "".join(str(e.proto.body) for e in test.get("html"))

    def sizes(test: AppTest) -> list[int]:
        return [int(n) for n in re.findall(r'"size":\s*(\d+)', test.get("plotly_chart")[0].proto.spec)]

    assert "21px" in styles(large)
    assert "21px" not in styles(plain)
    assert max(sizes(large)) > max(sizes(plain))
    large.toggle(key="presenter-switch").set_value(False).run()
    assert "21px" not in styles(large)


@pytest.mark.parametrize(
    ("text", "key", "shown"),
    [
        ("Parameters", "parameters", "Parameters"),
        ("MACs, one image", "macs", "MACs"),
        ("KL after the cut", "kl", "KL"),
        ("Top-1 now", "top1", "Top-1"),
        ("Residual: 48 of 96 kept", "residual", "Residual"),
    ],
)
def test_a_term_is_linked_where_it_stands(text: str, key: str, shown: str) -> None:
    button, _, definition = linked(text).partition("</button>")
    place = re.search(r'popovertarget="([^"]+)"', button)
    assert place
    assert button.endswith(f">{shown}")
    assert f'id="{place[1]}"' in definition
    assert html.escape(BY_KEY[key].exact) in re.sub("<sub>(.)</sub>", r"_\1", definition)
    assert definition.endswith("</i></span>" + text.removeprefix(shown))


def test_only_whole_words_are_terms() -> None:
    assert linked("Scored <b>") == "Scored &lt;b&gt;"
    assert linked("Time, batch 8") == "Time, batch 8"


@pytest.mark.parametrize("title", PAGES)
def test_help_tips_define_the_terms_they_stand_on(page: Callable[..., AppTest], title: str) -> None:
    test = page(PAGES[title])
    tips = "".join(slider.help for slider in (*test.slider, *test.select_slider))
    for key in ("residual", "attention", "ffn", "merging", "ratio"):
        assert f"**{BY_KEY[key].name}**: {BY_KEY[key].plain}" in tips
    assert "](" not in tips
