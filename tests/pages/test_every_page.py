import re
from collections.abc import Callable
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from tests.support.reading import check, html_of

PAGES = ("pages/start/page.py", "pages/importance/page.py", "pages/tradeoff/page.py", "pages/method/page.py")
Run = Callable[..., AppTest]


@pytest.mark.parametrize("path", PAGES)
@pytest.mark.parametrize(
    ("source", "parameters"), [("demo", ("173.48 k", "678.73 k")), ("published", ("22.05 M", "86.57 M"))]
)
def test_page_shows_what_the_sliders_leave(
    path: str, source: str, parameters: tuple[str, str], page: Run, published: Path
) -> None:
    test = page(path, open="demo" if source == "demo" else f"published:{published}")
    check(test)
    text = re.sub(r"<[^>]+>", "", html_of(test))
    assert "{} of {} parameters".format(*parameters) in " ".join(text.split())


@pytest.mark.parametrize("path", PAGES)
def test_a_link_to_no_model_opens_the_demo_and_says_so(path: str, page: Run) -> None:
    test = page(path, open="published:/no/such/folder", basis="directions", residual="50", order="By position")
    check(test)
    why = "There is no folder /no/such/folder; give the folder that holds the published score files."
    assert_dismissed(test, f"The link's model cannot be opened: {why} The demo is open instead.")


def test_link_carries_the_what_if_and_commands_give_its_widths(page: Run, published: Path) -> None:
    test = page(PAGES[2], open=f"published:{published}", residual="75", attention="75", heads="3", ffn="75")
    assert "5.72 M" in html_of(test)
    assert [s.value for s in test.slider if s.label == "Residual removed"] == [75]
    assert test.button(key="preset-DeiT-T").proto.type == "primary"
    told = test.code[0].value
    assert f"import-scores {published} --out scores.safetensors" in told
    assert "plan scores.safetensors --residual 0.75 --attention 0.75 --ffn 0.75 --heads 3 --out plan.json" in told


def test_sliders_change_the_numbers_at_once(page: Run, published: Path) -> None:
    test = page(PAGES[2], open=f"published:{published}")
    assert "22.05 M" in html_of(test)
    test.slider(key="residual").set_value(0).run()
    text = html_of(test)
    assert "22.05 M" not in text
    assert "6 heads" in text


def test_preset_moves_the_sliders(page: Run, published: Path) -> None:
    test = page(PAGES[2], open=f"published:{published}")
    test.button(key="preset-DeiT-T").click().run()
    values = [test.session_state[key] for key in ("residual", "attention", "heads", "ffn")]
    assert values == [75, 75, 3, 75]
    assert "5.72 M" in html_of(test)


def test_nonsense_in_a_link_is_ignored(page: Run, published: Path) -> None:
    test = page(PAGES[2], open=f"published:{published}", residual="abc", attention="400", heads="5", ffn="-3")
    check(test)
    assert "22.05 M" in html_of(test)
    wrong = "residual = abc, attention = 400, heads = 5, ffn = -3"
    assert_dismissed(test, wrong, "residual = 50, attention = 50, heads = 6, ffn = 50")


def test_an_exercise_that_there_is_not_is_told(page: Run) -> None:
    assert_dismissed(page("pages/workshop/page.py", exercise="99"), "exercise = 99", "exercise = 8")


def assert_dismissed(test: AppTest, *words: str) -> None:
    """Assert that the page's one note has these words and goes once it is dismissed."""
    assert len(test.warning) == 1
    assert all(word in test.warning[0].value.replace("\\", "") for word in words), test.warning[0].value
    next(button for button in test.button if button.label == "Dismiss").click().run()
    assert not test.warning
