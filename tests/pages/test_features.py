"""Every page with a model that has no classifier."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from streamlit.testing.v1 import AppTest

from tests.support.reading import check, html_of
from upvit_core.models.checkpoint import load_model, save_model

Run = Callable[..., AppTest]


@pytest.fixture(scope="module")
def tower(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo without its classifier."""
    folder = tmp_path_factory.mktemp("tower")
    demo = load_model("demo")
    bare = {name: tensor for name, tensor in demo.model.state_dict().items() if not name.startswith("head")}
    torch.save(bare, folder / "bare.pth")
    opened = load_model(folder / "bare.pth", num_heads=6)
    save_model(opened.model, folder, shape=opened.shape, pretrained_cfg=demo.pretrained_cfg, name="tower")
    (folder / "bare.pth").unlink()
    return folder


@pytest.mark.parametrize("path", ["start", "importance", "tradeoff", "method", "runs", "workshop"])
def test_a_page_takes_a_model_without_a_classifier(path: str, jobs_at_once: None, page: Run, tower: Path) -> None:
    test = page(f"pages/{path}/page.py", open=str(tower))
    assert not test.exception
    assert not test.error


def test_the_model_page_says_how_it_is_judged(jobs_at_once: None, page: Run, tower: Path) -> None:
    test = page("pages/start/page.py", open=str(tower))
    check(test)
    assert any("k = 20" in caption.value for caption in test.caption)
    shown = re.search(r"k-NN top-1.*?(\d\d\.\d) %", " ".join(re.sub(r"<[^>]+>", "", html_of(test)).split()))
    assert shown is not None
    assert float(shown[1]) > 85
