"""A picture of one's own: answers are those of the two models; bad files and limits are told in a sentence."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from streamlit.testing.v1 import AppTest

from pages.tradeoff.your_image import PATH, UPLOAD
from tests.support.reading import PAPER, check, html_of, what_if_of
from upvit_core.data.transforms import eval_transform
from upvit_core.models.checkpoint import load_model
from upvit_core.paths import DEMO_FOLDER
from upvit_core.pruning.prune import cut
from upvit_core.records.scores import ImportanceScores

PAGE = "pages/tradeoff/page.py"
Run = Callable[..., AppTest]


def lists(test: AppTest) -> list[list[tuple[str, str]]]:
    """(class, probability) of the original's and of the plan's list."""
    return [
        re.findall(r"<li[^>]*><span>(.*?)</span><b>(.*?) %</b>", part)
        for part in re.findall(r"<ol>.*?</ol>", html_of(test))
    ]


def test_answers_are_those_of_both_models_and_follow_the_sliders(jobs_at_once: None, page: Run, tmp_path: Path) -> None:
    picture = Image.linear_gradient("L").resize((90, 60)).convert("RGB")
    picture.save(tmp_path / "mine.png")
    test = page(PAGE, "Your image", **PAPER)
    test.text_input(key=PATH).set_value(str(tmp_path / "mine.png")).run()
    live = load_model("demo")
    x = eval_transform(live.pretrained_cfg)(picture)[None]
    assert live.class_names is not None
    for percent in (50, 80):
        test.slider(key="ffn").set_value(percent).run()
        check(test)
        thin = cut(live, what_if_of(test).plan(ImportanceScores.load(DEMO_FOLDER / "scores.safetensors")))
        expected = []
        for model in (live.model, thin):
            with torch.no_grad():
                shares = model(x)[0].softmax(-1).tolist()
            best = sorted(range(10), key=lambda label: -shares[label])[:5]
            expected.append([(live.class_names[label], f"{100 * shares[label]:.1f}") for label in best])
        assert lists(test) == expected


@pytest.mark.parametrize("content", [b"root:x:0:0\n", b"<svg onload=alert(1)></svg>", b"%!PS-Adobe-3.0 EPSF-3.0", b""])
def test_what_is_no_picture_is_one_sentence_without_its_content(
    jobs_at_once: None, page: Run, tmp_path: Path, content: bytes
) -> None:
    (tmp_path / "bad.png").write_bytes(content)
    test = page(PAGE, "Your image", **PAPER)
    test.text_input(key=PATH).set_value(str(tmp_path / "bad.png")).run()
    assert not test.exception
    (error,) = [error.value for error in test.error]
    assert "cannot be read as a picture; give a JPEG" in error
    assert "root:" not in error
    test.text_input(key=PATH).set_value(str(tmp_path)).run()
    assert "cannot be read as a picture" in test.error[0].value


def test_limits_hold(page: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert UPLOAD in str(page(PAGE, "Your image").get("file_uploader")[0].proto.id)
    monkeypatch.setenv("UPVIT_UPLOADS", "off")
    monkeypatch.setenv("UPVIT_ROOTS", str(tmp_path / "allowed"))
    monkeypatch.setattr("pages.services.host.is_host", lambda limits: False)
    assert "Your image" not in [tab.label for tab in page(PAGE).tabs]
    monkeypatch.undo()
    monkeypatch.setenv("UPVIT_UPLOADS", "off")
    test = page(PAGE, "Your image")
    assert not test.get("file_uploader")
    assert test.text_input(key=PATH)
