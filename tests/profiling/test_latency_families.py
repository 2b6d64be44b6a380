"""Estimates of time for PVTv2 and GPT-2, against devices that are known exactly."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from tests.support.latency import TEXT, language_device, pyramid_device
from tests.support.tiny_pvt import tiny_pvt
from upvit_core.errors import CalibrationError
from upvit_core.profiling import bench
from upvit_core.profiling.bench_language import LanguageBench
from upvit_core.profiling.bench_pyramid import PyramidBench
from upvit_core.profiling.calibrate import calibrate, fitted
from upvit_core.profiling.calibration import Calibration, default_path, newest, scope
from upvit_core.profiling.held_out import held_out, random_shape
from upvit_core.profiling.latency import Latency, estimate_latency, latency_of
from upvit_core.profiling.throughput import CLOCKS
from upvit_core.records.known_shapes import pvt_shape
from upvit_core.records.shape import ModelShape


@pytest.mark.parametrize("batch", [1, 7])
def test_the_parts_of_a_language_model_add_up(batch: int) -> None:
    D, T = 24, 12
    R = batch * T
    seconds = 7e-6 * batch**0.5 * D**0.25 + 4e-8 * R**0.9 * D**0.5
    for heads, A, H in ((4, 24, 96), (2, 10, 31)):
        for inputs, outputs in ((D, 3 * A), (A, D), (D, H), (H, D)):
            seconds += 1.1 * 3e-9 * R**0.9 * inputs**0.8 * outputs**0.7
        seconds += 0.9 * 2e-9 * batch * heads * T**1.9 * (A / heads) ** 0.6
        seconds += 2 * (0.5 * 1e-9 + 1.2 * 5e-10) * R * D + 0.8 * 9e-9 * R * H + 1e-5
    assert estimate_latency(TEXT, batch, language_device()) == pytest.approx(1e3 * seconds, rel=1e-9)


@pytest.mark.parametrize("batch", [1, 5])
def test_the_parts_of_a_pyramid_add_up(batch: int) -> None:
    shape = random_shape(tiny_pvt()[1], np.random.default_rng(3), most=0.4)
    sides, dims, depths = (16, 8, 4, 2), shape.embed_dims, (1, 2, 1, 1)
    seconds = 3e-9 * batch**0.9 * dims[-1] ** 0.8 * 5**0.7
    before, b = 3, 0
    for stage, ratio in enumerate((8, 4, 2, 1)):
        D, by = dims[stage], 1 + stage
        seconds += 2e-6 * by * batch**0.9 * before**0.5 * D**0.4
        before, rows, keys = D, batch * sides[stage] ** 2, batch * (sides[stage] // ratio) ** 2
        for _ in range(depths[stage]):
            heads, A, H, R = (getattr(shape.blocks[b], n) for n in ("num_heads", "attention", "ffn", "reduction"))
            b += 1
            for n, inputs, outputs in ((rows, D, A), (keys, R or D, 2 * A), (rows, A, D), (rows, D, H), (rows, H, D)):
                seconds += 1.1 * 3e-9 * n**0.9 * inputs**0.8 * outputs**0.7
            seconds += 0.9 * 6e-7 * by * batch * heads * (A / heads) ** 0.6 + 0.7 * 8e-8 * by * batch**0.9 * H**0.95
            if ratio > 1:
                seconds += 1.3 * 5e-8 * by * batch**0.9 * D**0.8 * R**0.7
            seconds += 2 * (0.5 * 1e-9 * rows * D**0.9 + 1.2 * 5e-10 * rows * D) + 1e-5
    assert estimate_latency(shape, batch, pyramid_device(shape)) == pytest.approx(1e3 * seconds, rel=1e-9)


def test_a_calibration_is_for_its_own_models(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    pyramid = tiny_pvt()[1]
    for shape, other in ((TEXT, pyramid), (pyramid, pvt_shape("b0")), (bench.DEMO, TEXT)):
        known = language_device() if other is TEXT else pyramid_device(other)
        with pytest.raises(CalibrationError, match="none of these"):
            latency_of(shape, 1, known)
    assert scope(pvt_shape("b0")) == scope(pvt_shape("b2")) != scope(pvt_shape("b0", img_size=(64, 64)))
    assert scope(replace(TEXT, num_classes=41)) != scope(TEXT)
    monkeypatch.setenv("UPVIT_HOME", str(tmp_path))
    for shape in (bench.DEMO, TEXT, pyramid):
        assert newest("made up", "float32", shape) is None
        path = default_path("made up", "float32", 2, shape)
        (pyramid_device(shape) if shape.stages else language_device(scope=scope(shape))).save(path)
        assert newest("made up", "float32", shape) == path
        for device, dtype in (("made up", "bfloat16"), ("made", "float32"), ("made up too", "float32")):
            assert newest(device, dtype, shape) is None
        known = Calibration.load(path)
        assert estimate_latency(shape, 3, known) > 0
        assert known.is_current
        assert not replace(known, versions={"torch": "1.0+cpu"}).is_current
        assert replace(known, versions={"torch": torch.__version__}).is_current


def test_a_torn_record_of_a_pyramid_is_refused(tmp_path) -> None:
    known = pyramid_device(tiny_pvt()[1])
    for name in ("depthwise", "reduction"):
        grids = {key: value for key, value in known.grids.items() if not key.startswith(name)}
        replace(known, grids=grids).save(tmp_path / "c.json")
        with pytest.raises(CalibrationError, match="an operation is missing"):
            Calibration.load(tmp_path / "c.json")


def test_points_too_large_to_be_timed_follow_their_neighbours() -> None:
    taken = {("linear", r, i, o): 2.0 * r * i**2 * o for r in (1, 10, 100) for i in (1, 3) for o in (1, 5)}
    whole = bench.grid(taken, "linear", (1, 10, 100), (1, 3), (1, 5))
    for missing in ((100, 3, 5), (100, 3, 1), (100, 1, 5)):
        del taken["linear", *missing]
    assert bench.grid(taken, "linear", (1, 10, 100), (1, 3), (1, 5)).seconds == pytest.approx(whole.seconds)


TRUTH: Mapping[str, Mapping[str, float]] = {
    "gpt2": {"linear": 1.3, "attention": 0.8, "norm": 0.9, "gelu": 1.2, "add": 1.1, "block": 4e-6},
    "pvt_v2": {"linear": 1.3, "attention": 0.8, "norm": 0.9, "add": 1.1, "depthwise": 1.2, "reduction": 0.7,
               "block": 4e-6},
}  # fmt: skip


@pytest.mark.parametrize("family", ["gpt2", "pvt_v2"])
def test_weights_are_found_again_on_blocks_that_run(family: str) -> None:
    shape = TEXT if family == "gpt2" else tiny_pvt()[1]
    made = (LanguageBench if family == "gpt2" else PyramidBench)(torch.device("cpu"), "float32", CLOCKS["cpu"], shape)
    blocks = list(made.blocks())
    with made.running():
        for block in blocks[:: max(1, len(blocks) // 6)]:
            block.run()
    known = language_device() if family == "gpt2" else pyramid_device(shape)
    raw = replace(known, weights=dict.fromkeys(TRUTH[family], 1.0) | {"block": 0.0})
    real = replace(raw, weights=TRUTH[family])
    measured = [latency_of(b.shape, b.batch, real).of_block(b.shape, b.number) / 1e3 for b in blocks]
    again = replace(raw, weights=fitted(raw, blocks, np.array(measured)))
    for batch in (1, 4):
        assert estimate_latency(shape, batch, again) == pytest.approx(estimate_latency(shape, batch, real), rel=0.05)


@pytest.mark.parametrize("shape", [TEXT, tiny_pvt()[1]], ids=["gpt2", "pvt_v2"])
def test_every_operation_runs_once_and_makes_whole_grids(shape: ModelShape, monkeypatch: pytest.MonkeyPatch) -> None:
    """Time stands still: every point takes as long as it is large, so that only the wiring is tested."""

    def at_once(self: bench.Bench, points: Mapping[Any, Any], seconds: float, progress: Any) -> dict[Any, float]:
        for run in list(points.values())[:: len(points) // 60]:
            run()
        return {name: 1e-9 * float(np.prod([1 + v for v in name if isinstance(v, int)])) for name in points}

    monkeypatch.setattr(bench.Bench, "take_turns", at_once)
    known = calibrate(shape=shape, seconds=0)
    assert known.scope == scope(shape)
    assert all((grid.seconds > 0).all() for grid in known.grids.values())
    assert estimate_latency(shape, 2, known) > estimate_latency(shape, 1, known) > 0


@pytest.mark.parametrize("shape", [TEXT, tiny_pvt()[1]], ids=["gpt2", "pvt_v2"])
def test_held_out_plans_are_measured(shape: ModelShape) -> None:
    known = language_device() if shape is TEXT else pyramid_device(shape)
    cases, error = held_out(known, [(shape, (1, 2), 2)], rounds=2)
    assert error.plans == len(cases) == 4
    assert all(case.measured_ms > 0 for case in cases)


def test_random_pyramids_are_legal() -> None:
    rng, full = np.random.default_rng(0), pvt_shape("b0")
    for _ in range(40):
        thin = random_shape(full, rng)
        for b, (block, own) in enumerate(zip(thin.blocks, full.blocks, strict=True)):
            assert block.attention % block.num_heads == 0
            assert own.num_heads % block.num_heads == 0
            assert block.num_heads == thin.blocks[thin.first_block(thin.stage_of(b))].num_heads
            assert (block.reduction > 0) == (own.reduction > 0)
            assert 0 < block.ffn <= own.ffn
        assert thin.embed_dim == thin.stages[-1].embed_dim <= full.embed_dim


def test_time_of_a_block_of_text_is_that_of_the_same_parts() -> None:
    parts = latency_of(TEXT, 3, language_device())
    assert isinstance(parts, Latency)
    ends = parts.of_ends(TEXT)
    assert parts.of(TEXT) == pytest.approx(ends + parts.of_block(TEXT, 0) + parts.of_block(TEXT, 1))
    shallow = replace(TEXT, blocks=TEXT.blocks[:1])
    assert parts.of(shallow) == pytest.approx(ends + parts.of_block(TEXT, 0))
