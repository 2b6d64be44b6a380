import re
from collections.abc import Callable

import pytest
from streamlit.testing.v1 import AppTest

from pages.widgets.terms import BY_KEY, OF_PAGE, TERMS, glossary_line, linked
from tests.support import ROOT
from upvit_core.records.task import TEXT

PAGES = {
    "Model": "pages/model/page.py",
    "Importance": "pages/importance/page.py",
    "Trade-off": "pages/tradeoff/page.py",
    "Runs": "pages/runs/page.py",
    "Method": "pages/method/page.py",
    "Workshop": "pages/workshop/page.py",
}


def words_of(test: AppTest) -> str:
    """All that a page says, without its own line of links."""
    parts = [str(e.proto.body) for e in test.get("html") if "In the glossary" not in str(e.proto.body)]
    for kind in ("markdown", "caption", "subheader", "header", "button", "slider", "selectbox", "toggle"):
        for element in getattr(test, kind):
            parts += [str(getattr(element, "value", "")), str(getattr(element, "label", ""))]
    return re.sub(r"<style>.*?</style>|<[^>]+>", " ", " ".join(parts), flags=re.DOTALL)


@pytest.mark.parametrize("title", PAGES)
def test_terms_of_a_page_are_linked_on_it(page: Callable[..., AppTest], title: str) -> None:
    test = page(PAGES[title])
    assert not test.exception
    assert any(glossary_line(OF_PAGE[title]) in str(e.proto.body) for e in test.get("html"))
    said = words_of(test)
    used = {t.key for t in TERMS for name in (t.name, *t.also) if re.search(rf"\b{re.escape(name)}\b", said)}
    everyday = {"block", "score", "channel", "plan", "cut", "head"}
    assert not used - set(OF_PAGE[title]) - everyday


def test_every_term_is_defined_once_and_seen_somewhere(page: Callable[..., AppTest]) -> None:
    assert len(BY_KEY) == len(TERMS)
    test = page("pages/glossary/page.py")
    assert not test.exception
    told = next(str(e.proto.body) for e in test.get("html") if "<dl" in str(e.proto.body))
    assert set(re.findall(r'id="term-([a-z0-9]+)"', told)) == set(BY_KEY)
    assert {key for keys in OF_PAGE.values() for key in keys} | {TEXT.key, TEXT.unit} == set(BY_KEY)
    root = ROOT
    assert all((root / term.page).is_file() for term in TERMS)


def test_presenting_makes_type_larger_until_it_is_switched_off(page: Callable[..., AppTest]) -> None:
    plain, large = page("pages/tradeoff/page.py"), page("pages/tradeoff/page.py", presenter="on")
    assert not large.exception

    def styles(test: AppTest) -> str:
        return "".join(str(e.proto.body) for e in test.get("html"))

    def sizes(test: AppTest) -> list[int]:
        return [int(n) for n in re.findall(r'"size":\s*(\d+)', test.get("plotly_chart")[0].proto.spec)]

    assert "20px" in styles(large)
    assert "20px" not in styles(plain)
    assert max(sizes(large)) > max(sizes(plain))
    large.toggle(key="presenter-switch").set_value(False).run()
    assert "20px" not in styles(large)


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
    link = f'<a class="term" href="glossary#term-{key}" target="_blank">{shown}</a>'
    assert linked(text) == link + text.removeprefix(shown)


def test_only_whole_words_are_terms() -> None:
    assert linked("Scored <b>") == "Scored &lt;b&gt;"
    assert linked("Time, batch 8") == "Time, batch 8"


@pytest.mark.parametrize("title", ["Importance", "Trade-off"])
def test_help_tips_lead_to_the_glossary(page: Callable[..., AppTest], title: str) -> None:
    test = page(PAGES[title])
    found = {key for slider in (*test.slider, *test.select_slider) for key in re.findall(r"#term-(\w+)", slider.help)}
    assert {"residual", "attention", "ffn", "merging", "ratio"} <= found
    assert found <= set(BY_KEY)
