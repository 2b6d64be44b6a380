import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from streamlit.testing.v1 import AppTest

pytest.importorskip("transformers")

from tests.support.reading import check, html_of
from tests.support.tiny_text import LETTERS, write_letters_model
from upvit_core.data import open_images
from upvit_core.evaluation import evaluate
from upvit_core.models.checkpoint import load_model

Page = Callable[..., AppTest]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_letters_model(tmp_path_factory.mktemp("lm"))


@pytest.mark.usefixtures("jobs_at_once")
def test_model_tells_perplexity_in_place_of_top_1(page: Page, folder: Path) -> None:
    test = page("pages/start/page.py", open=str(folder))
    check(test)
    loaded = load_model(folder)
    text = open_images(str(folder / "text.txt"), "val", pretrained_cfg=loaded.pretrained_cfg)
    expected = evaluate(loaded.model, text.batches(8)).perplexity
    assert "Perplexity" in html_of(test)
    assert f"{expected:.2f}" in html_of(test)
    assert not re.search(r"Top-1|eight test images", html_of(test))


@pytest.mark.usefixtures("jobs_at_once")
def test_model_shows_what_it_says_comes_next(page: Page, folder: Path) -> None:
    test = page("pages/start/page.py", open=str(folder))
    table = next(str(e.proto.body) for e in test.get("html") if "answer" in str(e.proto.body))
    rows = [re.findall("<td>(.*?)</td>", row) for row in table.split("<tr>")[2:]]
    assert len(rows) == 8
    loaded = load_model(folder)
    text: Any = open_images(str(folder / "text.txt"), "val", pretrained_cfg=loaded.pretrained_cfg)
    said = {}
    for number in range(len(text)):
        block = text.block(number)
        with torch.no_grad():
            chances = loaded.model(torch.tensor(block[None, :-1].astype(int)))[0, -1].softmax(-1)
        best = int(chances.argmax())
        mark = "✓" if best == block[-1] else "✗"
        before = "… " + " ".join(LETTERS[i] for i in block[:-1])
        said[before, text.token(block[-1])] = f"{mark} {text.token(best)} {100 * chances[best]:.0f} %"
    assert all(said[before, comes] == says for before, comes, says in rows)


@pytest.mark.parametrize("path", ["importance", "tradeoff"])
def test_the_other_pages_open_it(path: str, page: Page, folder: Path) -> None:
    test = page(f"pages/{path}/page.py", open=str(folder))
    check(test)
    if path == "tradeoff":
        told = re.sub("<[^>]+>", "", html_of(test))
        assert "Perplexity" in told
        assert "Top-1" not in told
