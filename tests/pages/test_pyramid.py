"""The pages with a PVTv2 open: its own components as sliders and pictures, and nothing that is not defined for it."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from streamlit.testing.v1 import AppTest

from pages.services import device, imports
from pages.services.session import KEY, Session
from tests.support import ROOT
from tests.support.latency import pyramid_device
from tests.support.reading import check, html_of, what_if_of
from tests.support.tiny_pvt import tiny_pvt
from upvit_core.profiling.calibration import HeldOutError, default_path, processor_name
from upvit_core.profiling.latency import estimate_latency, estimate_speed_up
from upvit_core.records.known_shapes import pvt_shape
from upvit_core.records.scores import ImportanceScores, expected_widths

Run = Callable[..., AppTest]
MODEL, IMPORTANCE, TRADEOFF, METHOD = (
    "pages/start/page.py", "pages/importance/page.py", "pages/tradeoff/page.py", "pages/method/page.py",
)  # fmt: skip


@pytest.fixture(scope="module")
def pyramid(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A record of made-up scores of PVTv2-B1's shape."""
    shape, rng = pvt_shape("b1"), np.random.default_rng(0)
    values = {key: rng.lognormal(-2, 1.5, width) for key, width in expected_widths(shape).items()}
    path = tmp_path_factory.mktemp("pyramid") / "scores.safetensors"
    ImportanceScores(
        values=values, criterion="fisher", unit="nats, summed over images", shape=shape, images=100, model="PVTv2-B1"
    ).save(path)
    return str(path)


@pytest.mark.parametrize("path", [MODEL, IMPORTANCE, TRADEOFF, METHOD])
def test_page_shows_no_error(path: str, page: Run, pyramid: str) -> None:
    test = page(path, open=pyramid)
    check(test)


def test_sliders_are_those_of_its_components(page: Run, pyramid: str) -> None:
    test = page(TRADEOFF, "Details", open=pyramid)
    labels = [slider.label for slider in test.slider]
    assert {"Residual removed", "Attention removed", "FFN removed", "Reduction removed"} <= set(labels)
    assert test.button(key="preset-PVTv2-B0").proto.type == "primary"
    assert "3.67 M" in html_of(test)
    assert "✓" in html_of(test)
    assert "not calibrated" in html_of(test)
    assert [t for t in test.toggle if t.label == "Repair"]
    assert "basis" not in [control.key for control in test.segmented_control]
    test.slider(key="reduction").set_value(75).run()
    assert "✓" not in html_of(test)
    assert not test.error


def test_the_command_says_the_same(page: Run, pyramid: str) -> None:
    told = page(TRADEOFF, open=pyramid, reduction="25").code[0].value
    assert "--residual 0.5 --attention 0.5 --ffn 0.5 --reduction 0.25 --snap" in told


def test_importance_draws_every_component(page: Run, pyramid: str) -> None:
    test = page(IMPORTANCE, open=pyramid)
    text = html_of(test)
    for words in ("Residual: 50% kept in every stage", "Attention: 50% kept", "FFN: 50%", "Reduction: 50%"):
        assert words in text
    test.selectbox(key="glass-component").set_value("reduction").run()
    assert not test.exception
    test.number_input(key="glass-block").set_value(5).run()
    assert not test.exception
    assert "Channel (0 to 319)" in [field.label for field in test.number_input]


@pytest.mark.parametrize(
    ("step", "key", "said"),
    [
        ("1 · One block", "component", "makes a smaller map of the patches"),
        ("2 · One channel less", "remove", "Reduction channel"),
        ("3 · Ranking and the cut", "rank", "block 3 is shown"),
    ],
)
def test_method_walks_through_every_component(step: str, key: str, said: str, page: Run, pyramid: str) -> None:
    test = page(METHOD, open=pyramid, step=step)
    assert (
        "of stage 0" in html_of(test) or "64, 128, 320, 512 channels" in html_of(test) or "stage 0 is" in html_of(test)
    )
    test.segmented_control(key=f"lesson-{key}").set_value("reduction").run()
    check(test)
    assert said in html_of(test)


def test_a_sweep_moves_every_share() -> None:
    from pages.services.launch import ratio_sweep
    from upvit_core.planning.what_if import WhatIf

    assert [plan.words for plan in ratio_sweep(WhatIf(50, 40, None, 80, reduction=20))] == [
        "30/24/48/12 %", "50/40/80/20 %", "70/56/95/28 %",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def with_weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of a small PVTv2 for grey images, its weights drawn at random."""
    from upvit_core.models.checkpoint import build_model, save_model

    shape = pvt_shape("b0", img_size=(32, 32), num_classes=10, in_chans=1)
    widths = {g.key: 8 * (1, 2, 5, 8)[shape.stage_of(g.place)] for g in shape.groups}
    shape = shape.with_widths(widths | {f"residual.{s}": 8 * heads for s, heads in enumerate((1, 2, 5, 8))})
    folder = tmp_path_factory.mktemp("small") / "pvt"
    save_model(
        build_model(shape), folder, shape=shape, pretrained_cfg={"mean": (0.5,), "std": (0.5,)}, name="small PVT"
    )
    return str(folder)


def test_the_whole_way_with_weights(page: Run, with_weights: str, jobs_at_once: None) -> None:
    """Looked at, scored, one channel removed, cut and measured, on the demo's images."""
    from pages.services import open_model, scoring
    from upvit_core.records.criteria import CriterionName

    test = AppTest.from_file(str(ROOT / MODEL), default_timeout=120)
    test.query_params["open"] = with_weights
    test.session_state[KEY] = Session(datasets={with_weights: "demo"})
    test.run()
    check(test)
    assert "95 % interval" in html_of(test)
    model = replace(open_model.load(with_weights), dataset="demo")
    job = scoring.start_scoring(model, scoring.Request(CriterionName.FISHER, 16))
    assert job.state == "done", job.error
    assert job.result is not None
    assert isinstance(scoring.records(model)[job.result], ImportanceScores)
    for path, words in ((IMPORTANCE, "Reduction: 50% kept"), (TRADEOFF, "Right answers")):
        test = AppTest.from_file(str(ROOT / path), default_timeout=120)
        test.query_params["open"] = with_weights
        test.session_state[KEY] = Session(datasets={with_weights: "demo"})
        test.session_state["save-box"] = True
        test.run()
        check(test)
        assert words in html_of(test)
        if path == IMPORTANCE:
            test.selectbox(key="glass-component").set_value("reduction").run()
            next(b for b in test.button if b.label == "Remove only this channel").click().run()
            assert not test.exception
            assert "Norm of its weights: stages.0.blocks.0.attn.sr" in html_of(test)
        else:
            test.button(key="prune").click().run()
            assert not test.error, [e.value for e in test.error]


def test_a_budget_moves_the_sliders_to_the_best_shares(page: Run, pyramid: str) -> None:
    from upvit_core.planning.budget_stages import best_shares, percents_of
    from upvit_core.records.scores import ImportanceScores

    test = page(TRADEOFF, open=pyramid)
    test.number_input(key=f"limit-params-{pyramid}-value").set_value(5.0).run()
    test.button(key="find-best").click().run()
    check(test)
    found = best_shares(ImportanceScores.load(pyramid), {"params": 5e6 + 50})
    percents = {key: test.slider(key=key).value for key in ("residual", "attention", "ffn", "reduction")}
    assert percents == percents_of(found.plan)
    assert "equal shares in all blocks" in test.success[0].value


def test_a_calibrated_device_tells_its_time_and_limits_it(
    page: Run, pyramid: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(imports, "loaded", lambda: False)
    shape, error = pvt_shape("b1"), HeldOutError(0.087, 0.28, 0.97, 24, ("pvt_v2_b1",), (1, 8), "2026-11-28")
    known = pyramid_device(shape).with_error(error)
    monkeypatch.setattr(device, "GPUS", Path("/nowhere"))
    known.save(default_path(processor_name(), "float32", 1, shape))
    test = page(TRADEOFF, "Details", open=pyramid)
    assert f"{estimate_speed_up(shape, pvt_shape('b0'), 8, known):.2f}×" in html_of(test)
    assert "± 8.7 %" in html_of(test)
    half = 0.5 * estimate_latency(shape, 8, known)
    key = next(box.key for box in test.checkbox if box.key.startswith("limit-ms-"))
    test.checkbox(key=f"limit-params-{pyramid}").uncheck()
    test.checkbox(key=key).check().run()
    test.number_input(key=f"{key}-value").set_value(half).run()
    test.button(key="find-best").click().run()
    assert not test.error, [e.value for e in test.error]
    after = what_if_of(test).plan(ImportanceScores.load(pyramid)).shape_after
    assert 0.9 * half < estimate_latency(after, 8, known) <= half
    assert f"{estimate_latency(after, 8, known):.3g} ms" in html_of(test)


def test_a_model_without_images_asks_for_them(page: Run, tmp_path: Path) -> None:
    """On each visit: what the session remembers of images must not be in the form's way."""
    from upvit_core.models.checkpoint import save_model

    model, shape = tiny_pvt()
    save_model(model, tmp_path / "pvt", shape=shape, pretrained_cfg={"input_size": (3, 64, 64)}, name="pvt")
    test = page(MODEL, open=str(tmp_path / "pvt"))
    for _ in range(2):
        check(test)
        assert "Images" in [field.label for field in test.text_input]
        test.run()
