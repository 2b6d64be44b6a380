"""The estimate, against a device that is known exactly."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.support.latency import SHAPE, device
from upvit_core.errors import CalibrationError
from upvit_core.profiling import bench
from upvit_core.profiling.calibrate import calibrate, fitted
from upvit_core.profiling.calibration import FAR, NEAR, Calibration, Grid, HeldOutError, Ladder
from upvit_core.profiling.held_out import held_out, random_shape
from upvit_core.profiling.latency import Latency, estimate_latency, estimate_speed_up
from upvit_core.profiling.throughput import CLOCKS
from upvit_core.records.known_shapes import deit_shape
from upvit_core.records.structure import Structure


def by_hand(batch: int) -> float:
    D, N, seconds = 96, 50, 0.0
    R = batch * N
    seconds += 7e-6 * batch**0.5 * D**0.25 + 1e-9 * R * D**0.9 + 3e-9 * batch**0.9 * D**0.8 * 10**0.7
    for block in SHAPE.blocks:
        A, H, d = block.attention, block.ffn, block.attention / block.num_heads
        for inputs, outputs in ((D, 3 * A), (A, D), (D, H), (H, D)):
            seconds += 1.1 * 3e-9 * R**0.9 * inputs**0.8 * outputs**0.7
        seconds += 0.9 * 2e-9 * batch * block.num_heads * N**1.9 * d**0.6
        seconds += 2 * (0.5 * 1e-9 * R * D**0.9 + 1.2 * 5e-10 * R * D) + 0.8 * 4e-9 * R * H + 1e-5
    return 1e3 * seconds


@pytest.mark.parametrize("batch", [1, 7, 64])
def test_the_parts_add_up(batch: int) -> None:
    assert estimate_latency(SHAPE, batch, device()) == pytest.approx(by_hand(batch), rel=1e-9)
    parts = Latency(SHAPE, batch, device())
    halves = [
        parts.attention(np.array([96]), block.num_heads, np.array([block.attention]))[0, 0]
        + parts.ffn(np.array([96]), np.array([block.ffn]))[0, 0]
        for block in SHAPE.blocks
    ]
    assert parts.fixed(np.array([96]))[0] + sum(halves) == pytest.approx(by_hand(batch), rel=1e-9)
    half = replace(SHAPE, blocks=SHAPE.blocks[:1])
    ratio = estimate_latency(SHAPE, batch, device()) / estimate_latency(half, batch, device())
    assert estimate_speed_up(SHAPE, half, batch, device()) == pytest.approx(ratio)


def test_parts_are_vectors_of_widths() -> None:
    parts = Latency(SHAPE, 8, device())
    D, A = np.array([24, 96]), np.array([6, 12, 96])
    table = parts.attention(D, 6, A)
    assert table.shape == (2, 3)
    assert table[1, 2] == pytest.approx(parts.attention(D[1:], 6, A[2:])[0, 0])
    assert parts.ffn(D, A)[0, 1] == pytest.approx(parts.ffn(D[:1], A[1:2])[0, 0])


def test_interpolation_meets_the_grid_and_goes_on_beyond_it() -> None:
    axes = ((1.0, 4.0, 9.0), (2.0, 5.0))
    grid = Grid(axes, np.array([[1.0, 2.0], [3.0, 5.0], [4.0, 9.0]]))
    for i, a in enumerate(axes[0]):
        for j, b in enumerate(axes[1]):
            assert grid.at(a, b) == pytest.approx(grid.seconds[i, j])
    assert 3 < grid.at(5.0, 2.0) < 4
    assert grid.at(20.0, 2.0) > 4
    assert grid.at(2.0, 2.0) == pytest.approx(3**0.5)


def test_a_ladder_knows_odd_widths() -> None:
    factors = np.ones(32)
    factors[[18, 30]] = 1.5, 2.0  # widths 19 and 31
    ladder = Ladder(factors)
    assert ladder.at(np.array([16, 19, 31, 32])).tolist() == [1, 1.5, 2, 1]
    assert ladder.at(16 * 20 + 15) == pytest.approx(1 + 32 / 335), "as 31, its excess thinned"
    assert ladder.at(16 * 20 + 3) == pytest.approx(1 + 0.5 * 32 / 323)
    assert ladder.at(640) == 1
    far = np.ones(16)
    far[[1, 15]] = 1.4, 1.6
    apart = Ladder(factors, far)
    assert apart.at(np.array([31, 640, 641]), 1e6).tolist() == ladder.at(np.array([31, 640, 641])).tolist()
    assert apart.at(np.array([31, 640, 641, 1007]), 1e10).tolist() == [1.6, 1, 1.4, 1.6]
    assert apart.at(641, (NEAR * FAR) ** 0.5) == pytest.approx(1.4**0.5 * ladder.at(641) ** 0.5), "half the way"
    odd = device(ladders=device().ladders | {"outputs": ladder})
    assert odd.linear(50, 96, 31) == pytest.approx(2 * device().linear(50, 96, 31))


def test_round_trip(tmp_path) -> None:
    error = HeldOutError(0.05, 0.2, 0.99, 20, ("demo",), (1, 8), "2026-01-01")
    ladders = dict.fromkeys(("inputs", "outputs", "head_dim"), Ladder(np.ones(32), 1 + np.arange(16) / 9))
    known = device(ladders=ladders).with_error(error)
    known.save(tmp_path / "c.json")
    again = Calibration.load(tmp_path / "c.json")
    assert again.error == error
    assert (again.device, again.threads, again.weights) == ("made up", 1, known.weights)
    assert estimate_latency(SHAPE, 3, again) == pytest.approx(estimate_latency(SHAPE, 3, known), rel=1e-12)


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"version": 99}', '{"version": 2, "grids": {}, "embeddings": {}, "ladders": {}, "error": null}'],
)
def test_torn_records_are_refused(tmp_path, text: str) -> None:
    path = tmp_path / "c.json"
    path.write_text(text)
    with pytest.raises(CalibrationError, match="again"):
        Calibration.load(path)
    with pytest.raises(CalibrationError, match="run `calibrate` first"):
        Calibration.load(tmp_path / "none.json")


def test_unknown_types_and_clocks() -> None:
    with pytest.raises(CalibrationError, match="not 'int8'"):
        calibrate(dtype="int8")
    with pytest.raises(CalibrationError, match="not 'sundial'"):
        calibrate(clock="sundial")
    with pytest.raises(CalibrationError, match="profile MODEL --measure"):
        calibrate(shape=replace(SHAPE, structure=Structure(gate="packed")), progress=lambda *_: pytest.fail("it timed"))
    with pytest.raises(CalibrationError, match="at least one image"):
        Latency(SHAPE, 0, device())


def test_weights_are_found_again() -> None:
    blocks = list(bench.Bench(torch.device("cpu"), "float32", CLOCKS["cpu"]).blocks())
    truth = {"linear": 1.3, "attention": 0.8, "norm": 0.9, "gelu": 1.2, "add": 1.1, "block": 4e-4}
    raw = device(weights=dict.fromkeys(truth, 1.0) | {"block": 0.0})
    real = replace(raw, weights=truth)
    measured = [Latency(block.shape, block.batch, real).of_block(block.shape, 0) / 1e3 for block in blocks]
    again = replace(raw, weights=fitted(raw, blocks, np.array(measured)))
    for batch, size in ((4, SHAPE), (8, deit_shape("small"))):
        exact = estimate_latency(size, batch, real)
        assert estimate_latency(size, batch, again) == pytest.approx(exact, rel=0.05)


def test_random_shapes_are_legal() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        thin = random_shape(deit_shape("tiny"), rng)
        assert all(b.attention % b.num_heads == 0 and 3 % b.num_heads == 0 for b in thin.blocks)
        assert all(0 < b.attention <= 192 and 0 < b.ffn <= 768 for b in thin.blocks)
        assert 0 < thin.embed_dim <= 192


def test_held_out_measures_what_it_says() -> None:
    cases, error = held_out(device(), [(SHAPE, (1, 2), 3)], rounds=2)
    assert error.plans == len(cases) == 6
    assert error.batch_sizes == (1, 2)
    assert error.median_error == pytest.approx(np.median([case.error for case in cases]))
    for case in cases:
        assert case.measured_ms > 0
        assert case.estimated_speed_up == pytest.approx(estimate_speed_up(SHAPE, case.shape, case.batch, device()))


@pytest.mark.slow
def test_a_real_calibration() -> None:
    torch.set_num_threads(1)
    seen = []
    known = calibrate(seconds=5, clock="cpu", progress=lambda done, total: seen.append(done / total))
    assert seen[-1] == 1
    assert all(0.1 < weight < 5 for name, weight in known.weights.items() if name != "block")
    large, small = deit_shape("base"), deit_shape("small")
    assert 2 < estimate_speed_up(large, small, 4, known) < 5
