"""Start on a user's own images: labels by name, what is said of them, and the field that asks for them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from streamlit.testing.v1 import AppTest
from streamlit.testing.v1.element_tree import TextInput

from pages.services import open_model
from pages.start import open_panel
from tests.support.pictures import fashion, fill
from tests.support.reading import html_of
from upvit_core.models.checkpoint import load_model, save_model


@pytest.mark.usefixtures("jobs_at_once")
def test_captions_labels_and_the_field_for_images(page: Callable[..., AppTest], tmp_path: Path) -> None:
    loaded = load_model("demo", img_size=32)
    names, cfg = loaded.class_names, loaded.pretrained_cfg
    assert names is not None
    save_model(loaded.model, tmp_path / "f32", shape=loaded.shape, pretrained_cfg=cfg, name="f32", class_names=names)
    named = fashion(tmp_path / "named", lambda index, name: name.lower().replace("/", " "))
    shuffled = fashion(tmp_path / "shuffled", lambda index, name: f"folder{9 - index}")

    def field(test: AppTest) -> TextInput:
        return next(field for field in test.text_input if field.label == "Images")

    def measure_on(test: AppTest, folder: object) -> AppTest:
        field(test).set_value(str(folder))
        test.button[[button.label for button in test.button].index("Measure on them")].click()
        return test.run()

    test = measure_on(page("pages/start/page.py", open=str(tmp_path / "f32")), "/nowhere/at/all")
    assert "does not exist" in test.error[0].value
    assert field(test).value == "/nowhere/at/all"
    test = measure_on(test, named)
    assert not test.error
    assert any("10 of 10 folders are named as classes of the model" in caption.value for caption in test.caption)
    assert not test.warning
    assert html_of(test).count("✓") > html_of(test).count("✗")
    test = measure_on(test, shuffled)
    assert "labels in another order" in test.warning[0].value
    assert ", is folder" in html_of(test), "the images' labels have the names of their folders"


@pytest.mark.usefixtures("jobs_at_once")
def test_the_heads_that_were_given_are_those_of_the_model(page: Callable[..., AppTest], tmp_path: Path) -> None:
    torch.save(load_model("demo").model.state_dict(), tmp_path / "bare.pth")
    for heads, each, words in ((3, "", "3"), (3, "6, 6, 3, 3, 2, 2", "6, 6, 3, 3, 2, 2")):
        test = page("pages/start/page.py")
        test.number_input(key=open_panel.HEADS).set_value(heads)
        test.text_input(key="unsaid-num_heads").set_value(each)
        test.text_input(key=open_panel.FIELD).set_value(str(tmp_path / "bare.pth"))
        next(button for button in test.button if button.label == "Open").click().run()
        assert not test.error
        assert any(f"heads {words}, as given" in caption.value for caption in test.caption)


def test_a_folder_without_parts_is_scored_whole_and_apart_from_what_is_held_out(tmp_path: Path) -> None:
    fill(tmp_path / "images", {"ant": 20, "bee": 20})
    model = replace(open_model.load("demo"), dataset=str(tmp_path / "images"))
    assert len(model.images("train")) == 40
    assert len(model.images("train", apart=True)) == 36
