"""The lesson on every size: its numbers are those of slices made and counted apart."""

import pytest
from streamlit.testing.v1 import AppTest

import upvit_core
from pages.method import sizes_lesson
from pages.services import evaluation, jobs
from tests.support import ROOT
from tests.support.reading import html_of
from upvit_core.models.images import images_for


def test_the_step_measures_slices_of_one_model(jobs_at_once: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation, "EVALUATION_IMAGES", 100)
    monkeypatch.setattr(sizes_lesson, "IMAGES", 60)
    test = AppTest.from_file(str(ROOT / "pages/method/page.py"), default_timeout=300)
    test.query_params["open"], test.query_params["step"] = "demo", "8 · What we did"
    test.run()
    assert "parameters" in html_of(test)
    test.segmented_control(key="lesson-closing").set_value("Every size").run()
    assert not test.exception
    assert "one model holds every size" in html_of(test)
    found = next(job.result for job in jobs.workers().all() if job.key.startswith("sizes"))
    assert [count for count, _ in found] == sorted((count for count, _ in found), reverse=True)
    model = upvit_core.load_model("demo")
    data = images_for(model, "demo", "val")
    made = upvit_core.make_elastic(model, images_for(model, "demo", "train", labelled=False, apart=True), images=60)
    half = upvit_core.slice_model(made, residual=0.5, attention=0.5, ffn=0.5)
    right = [
        half.model(x).argmax(1).eq(labels).float().mean()
        for x, labels in data.batches(100, indices=evaluation.evaluation_indices(data))
    ]
    assert found[4] == (sum(p.numel() for p in half.model.parameters()), pytest.approx(100 * float(right[0]), abs=1e-4))
