"""A person's whole way, in a real browser: look, choose, press, watch it learn, take the folder home."""

import re
import time
import zipfile
from pathlib import Path

import pytest
import timm
import torch
from playwright.sync_api import Page

from upvit_core.data import open_images
from upvit_core.models.checkpoint import load_model
from upvit_core.runs.store import RunStore

pytestmark = pytest.mark.timeout(900)


def go_to(page: Page, title: str) -> None:
    page.get_by_role("link", name=title, exact=True).first.click()
    page.get_by_role("heading", name=title, level=1).wait_for()


def test_from_model_to_a_distilled_folder_in_timm(visit, home: Path, tmp_path: Path) -> None:
    page = visit("model")
    page.get_by_text("Parameters").first.wait_for()
    go_to(page, "Importance")
    page.locator(".js-plotly-plot").first.wait_for()
    go_to(page, "Trade-off")
    page.get_by_role("radio", name="Cut as in the paper").click()  # repaired, there would be little to learn
    page.wait_for_url("**basis=**")
    page.locator(".js-plotly-plot").first.wait_for()
    page.get_by_role("button", name="Distil…").click()
    page.get_by_label("Epochs").fill("1")
    page.get_by_label("Epochs").press("Enter")
    page.get_by_role("button", name="Start", exact=False).last.click()
    page.get_by_role("heading", name="Runs", level=1).wait_for()

    store, evaluated, live = RunStore(home / "runs"), [], 0
    run = store.list()[0]
    deadline = time.monotonic() + 600
    while time.monotonic() < deadline:
        state = store.state(run.id)
        rows, _ = store.read_metrics(run.id, 0)
        evaluated = [row for row in rows if row["phase"] in ("surgery", "eval", "final")]
        if len(evaluated) >= 3 and state.is_active:
            live = max(live, page.evaluate("window.upvitRuns?.live?.plots.speed.chart?.points.length ?? 0"))
        if not state.is_active:
            break
        page.wait_for_timeout(500)
    assert state.state == "done", (state, store.tail_log(run.id))
    assert len(evaluated) >= 3
    assert live >= 3, f"{live} points were on the page while the run went on"
    assert evaluated[-1]["top1"] > evaluated[0]["top1"] + 10

    page.get_by_text(re.compile(r"\bdone\b")).first.wait_for()
    shown = page.get_by_text(re.compile(rf"{evaluated[-1]['top1']:.1f}\s*%"))
    shown.first.wait_for(state="attached")
    with page.expect_download() as download:
        page.get_by_role("button", name=re.compile("Download the folder")).first.click()
    download.value.save_as(tmp_path / "model.zip")
    with zipfile.ZipFile(tmp_path / "model.zip") as archive:
        archive.extractall(tmp_path / "model")
    folder = next((tmp_path / "model").rglob("config.json")).parent
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    images = open_images("demo", "val", pretrained_cfg=load_model(folder).pretrained_cfg, num_classes=10)
    with torch.no_grad():
        right = sum(int((model(x).argmax(1) == y).sum()) for x, y in images.batches(500))
    assert 100 * right / len(images) == pytest.approx(evaluated[-1]["top1"], abs=0.05)
