"""Every page with models beyond plain ViTs: what cannot be done for them is left out or said, and nothing fails."""

from collections.abc import Callable
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from tests.support.reading import check
from tests.support.shrunk import shrunk
from tests.support.small_run import CFG
from upvit_core.models.build import build_model, live_tensors, shape_of
from upvit_core.models.checkpoint import save_model

PAGES = ("start", "importance", "tradeoff", "runs", "method", "workshop")


@pytest.fixture(scope="module", params=["eva02_small_patch14_224", "vit_base_patch16_siglip_224"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model of that structure."""
    made = tmp_path_factory.mktemp("structure") / "model"
    stock = shrunk(request.param, img_size=32, num_classes=10)
    shape = shape_of(stock, request.param)
    model = build_model(shape).eval()
    model.load_state_dict(live_tensors(stock))
    save_model(model, made, shape=shape, pretrained_cfg=CFG, name=request.param)
    return made


@pytest.mark.usefixtures("jobs_at_once")
@pytest.mark.parametrize("name", PAGES)
def test_page(page: Callable[..., AppTest], folder: Path, name: str) -> None:
    test = page(f"pages/{name}/page.py", open=str(folder), images="demo")
    check(test)
    assert not test.error
    if name == "tradeoff":
        assert any("cannot be estimated" in text.value for text in test.markdown)
        assert not any("Calibrate" in button.label for button in test.button)
