"""The lesson on the basis: its words before anything is measured, and its numbers against slower ways."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from streamlit.testing.v1 import AppTest

from tests.support import ROOT
from tests.support.reading import check, html_of

METHOD, STEP = "pages/method/page.py", "6 · The right basis"
Run = Callable[..., AppTest]


def test_the_step_says_what_it_needs(page: Run, published: Path) -> None:
    test = page(METHOD, open=f"published:{published}", step=STEP)
    assert not test.exception
    assert "needs a plain ViT with weights, and images" in test.info[0].value


def test_the_step_measures_rotation_and_cuts_on_the_demo(jobs_at_once: None, monkeypatch: pytest.MonkeyPatch) -> None:
    from pages.services import evaluation, jobs

    monkeypatch.setattr(evaluation, "CALIBRATION_IMAGES", 60)
    monkeypatch.setattr(evaluation, "EVALUATION_IMAGES", 100)
    test = AppTest.from_file(str(ROOT / METHOD), default_timeout=300)
    test.query_params["open"], test.query_params["step"] = "demo", STEP
    test.run()
    assert not test.exception
    found = next(job.result for job in jobs.workers().all() if job.key.startswith("rotation"))
    assert found.largest < 1e-4
    assert np.abs(found.effect.before - found.effect.after).max() < 1e-5
    for shares in (found.channels, found.directions):
        assert shares.sum() == pytest.approx(1)
        assert (np.diff(shares) <= 1e-15).all()
    assert (np.cumsum(found.directions) >= np.cumsum(found.channels) - 1e-12).all()
    assert f"carry {100 * found.channels[:48].sum():.0f} % of the stream" in html_of(test)

    test.segmented_control(key="lesson-rotation").set_value("Rotated").run()
    assert not test.exception
    assert "So nothing changes" in html_of(test)
    test.segmented_control(key="lesson-rotation").set_value("Cut").run()
    assert not test.exception
    previews = [job.result for job in jobs.workers().all() if job.key.startswith("preview")]
    assert len(previews) == 3
    channels, directions, repaired = previews
    assert channels.kl > directions.kl > repaired.kl
    assert f"{repaired.top1:.1f} %" in html_of(test)


def test_spectrum_is_that_of_the_normalised_stream() -> None:
    from tests.support.tiny import TensorProxy, images, tiny
    from upvit_core.models.build import adapt
    from upvit_core.pruning.basis import collect_statistics, fold
    from upvit_core.pruning.basis.spectrum import spectrum

    model, shape = tiny()
    x = images(6)
    channels, directions = spectrum(collect_statistics(adapt(model, shape), TensorProxy(x)))
    folded = fold(model, shape)
    seen: dict[str, torch.Tensor] = {}
    norms = [n for block in folded.blocks for n in (block.norm1, block.norm2)] + [folded.norm]
    for number, norm in enumerate(norms):
        norm.register_forward_hook(lambda _, __, out, n=number: seen.update({str(n): out.detach()}))
    with torch.no_grad():
        folded(x)
    total = np.zeros((shape.embed_dim, shape.embed_dim))
    for number in range(len(norms)):
        rows = seen[str(number)]
        if number >= len(norms) - 2:  # the last block's FFN and the head read the class token alone
            rows = rows[:, :1]
        flat = rows.reshape(-1, shape.embed_dim).numpy()
        gram = sum(np.outer(row, row) for row in flat)
        total += gram / np.trace(gram)
    total /= len(norms)
    assert np.allclose(channels.numpy(), np.sort(np.diag(total))[::-1], atol=1e-9)
    assert np.allclose(directions.numpy(), np.sort(np.linalg.eigvalsh(total))[::-1], atol=1e-9)


def test_importance_shows_directions_and_removes_one(jobs_at_once: None, monkeypatch: pytest.MonkeyPatch) -> None:
    from pages.services import evaluation, jobs, removal

    monkeypatch.setattr(evaluation, "CALIBRATION_IMAGES", 60)
    monkeypatch.setattr(removal, "IMAGES", 40)
    test = AppTest.from_file(str(ROOT / "pages/importance/page.py"), default_timeout=300)
    test.query_params["basis"] = "Cut as in the paper"
    test.run()
    assert "Channels of the stream" in html_of(test)
    test.segmented_control(key="basis").set_value("Rotate, cut, repair").run()
    check(test)
    assert "Directions of the stream" in html_of(test)
    record = next(job.result for job in jobs.workers().all() if job.title == "Finding directions")
    assert record.basis == "directions"

    assert "This is the constant" in [i.value for i in test.info][-1]
    effects = []
    for number in (1, 95):
        test.number_input(key="glass-channel").set_value(number).run()
        next(b for b in test.button if b.label == "Remove only this direction").click().run()
        assert not test.exception
        effects.append(next(j.result for j in jobs.workers().all() if j.key.endswith(f"residual {number}")))
    assert effects[0].kl.sum() > 10 * effects[1].kl.sum() > 0


def test_both_ways_start_from_the_same_widths() -> None:
    from pages.services.launch import both_bases
    from upvit_core.planning.what_if import WhatIf
    from upvit_core.records.scores import ImportanceScores

    scores = ImportanceScores.load(ROOT / "assets/demo/scores.safetensors")
    letter, ours = (way.plan(scores) for way in both_bases(WhatIf(50, 50, 3, 75, "directions", True)))
    assert (letter.basis, ours.basis) == ("channels", "directions")
    assert letter.shape_after == ours.shape_after


def test_the_form_the_run_and_the_command_line_take_one_recipe(
    jobs_at_once: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pages.services import evaluation, jobs, launch
    from pages.widgets import frame
    from upvit_core.planning.ratios import Ratios, plan_uniform
    from upvit_core.records.plan import PruningPlan
    from upvit_core.records.scores import ImportanceScores
    from upvit_core.runs.spec import RunSpec
    from upvit_core.training.settings import PRESETS

    monkeypatch.setattr(evaluation, "CALIBRATION_IMAGES", 60)
    monkeypatch.setattr(evaluation, "EVALUATION_IMAGES", 60)
    ordered: list[RunSpec] = []

    class Kept:
        def __init__(self, store: object, spec: RunSpec) -> None:
            ordered.append(spec)

        def submit(self, run: object) -> None:
            pass

    monkeypatch.setattr(launch, "executor_for", Kept)
    monkeypatch.setattr(frame, "go_to", lambda: None)

    def started(**query: str) -> tuple[list[RunSpec], str]:
        test = AppTest.from_file(str(ROOT / "pages/tradeoff/page.py"), default_timeout=300)
        for key, value in {"open": "demo", "heads": "6", **query}.items():
            test.query_params[key] = value
        test.session_state["save-box"] = True  # drawn only while open
        test.run()
        test.button(key="distil-box").click().run()
        check(test)
        if "what" in query:
            test.segmented_control(key="distil-what").set_value(query["what"]).run()
        if "workers" in query:
            test.number_input(key="distil-workers").set_value(0).run()
            test.checkbox(key="distil-compile").check().run()
        if "once" in query:
            test.toggle(key="distil-answers").set_value(True).run()
        said = next(c.value for c in test.code if "upvit_core plan" in c.value)
        ordered.clear()
        test.button(key="distil-start").click().run()
        assert not test.exception
        return list(ordered), said

    (plain,), said = started(basis="Cut as in the paper")
    assert plain.settings == PRESETS["demo"]
    assert "--epochs 4 --preset demo" in said
    (alone,), said = started(basis="Cut as in the paper", workers="none")
    assert alone.settings == PRESETS["demo"].model_copy(update={"workers": 0, "compile": True})
    assert "--preset demo --workers 0 --compile --out" in said
    (every,), _ = started(what="Every size")
    assert (every.kind, every.plan, every.student, every.settings) == ("elastic", None, None, PRESETS["repaired"])
    (ours,), said = started()
    assert (ours.repair, ours.settings) == (True, PRESETS["repaired"])
    # The FFN channels that stay are those of the record of directions, as on the command line, not of the scores.
    record = ImportanceScores.load(ROOT / "assets/demo/directions.safetensors")
    scores = ImportanceScores.load(ROOT / "assets/demo/scores.safetensors")
    by_record, by_scores = (
        plan_uniform(found, Ratios.equal(0.5), heads=6, snap=True, basis="directions") for found in (record, scores)
    )
    assert PruningPlan.from_json(json.dumps(ours.plan)).digest == by_record.digest != by_scores.digest
    assert any(by_record.digest in key and "repaired" in key for key in [job.key for job in jobs.workers().all()])
    assert "score demo --data demo --basis directions --images 500 --seed 0" in said
    assert "--epochs 4 --preset repaired" in said
    (letter, other), _ = started(what="Both ways")
    assert (letter.settings, other.settings) == (PRESETS["demo"], PRESETS["repaired"])
    swept, _ = started(what="A sweep of 3", once="yes", basis="Cut as in the paper")
    assert [spec.settings for spec in swept] == [PRESETS["demo"].model_copy(update={"teacher_top_k": 10})] * 3
    assert other.plan["blocks"] == ours.plan["blocks"]  # type: ignore[index]
    assert letter.plan["blocks"] != ours.plan["blocks"]  # type: ignore[index]
