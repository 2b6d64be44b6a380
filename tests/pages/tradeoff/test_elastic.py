"""Trade-off with an elastic student open: every setting is a slice, measured and downloaded as one."""

import re
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from streamlit.testing.v1 import AppTest

from pages.services import evaluation, open_model
from pages.tradeoff import prune
from tests.support.elastic import demo_folder
from tests.support.reading import check, html_of, what_if_of
from upvit_core.api import slice_model
from upvit_core.evaluation import evaluate
from upvit_core.planning.what_if import WhatIf
from upvit_core.records.basis import Basis

PAGE = "pages/tradeoff/page.py"


@pytest.mark.usefixtures("jobs_at_once")
def test_accuracy_under_the_sliders_and_take_this_size_are_the_slice(
    page: Callable[..., AppTest], tmp_path: Path
) -> None:
    folder = demo_folder(tmp_path / "elastic")
    # A link made for the demo asks for directions, repair, fewer heads: none of them is a slice.
    asked = {"basis": "directions", "repair": "true", "heads": "3"}
    test = page(PAGE, open=str(folder), residual="50", attention="50", ffn="25", **asked)
    check(test)
    now = what_if_of(test)
    assert now == WhatIf(50, 50, 6, 25, basis=Basis.CHANNELS, repair=False)
    assert not any(control.label == "How to cut" for control in test.get("button_group"))
    assert next(button.label for button in test.get("download_button")) == "Take this size"
    model = open_model.with_dataset(open_model.inspect(str(folder)))
    plan = now.plan(model.bundled)
    archive = prune.packed(model, plan, now)
    zipfile.ZipFile(archive).extractall(tmp_path)
    stock = timm.create_model(f"local-dir:{tmp_path / archive.stem}", pretrained=True).eval()
    pixels = torch.randn(3, 1, 28, 28)
    with torch.no_grad():
        expected = slice_model(folder, residual=0.5, attention=0.5, ffn=0.25).model(pixels)
        assert torch.equal(stock(pixels), expected)
    data = model.images("val")
    result = evaluate(stock, data.batches(250, indices=evaluation.evaluation_indices(data)))
    text = re.sub(r"<[^>]+>", " ", html_of(test))
    assert f"{result.top1:.1f} %" in text
    assert test.code[0].value == (
        f"python -m upvit_core slice {folder} --residual 0.5 --attention 0.5 --ffn 0.25 --out student"
    )
