"""Budgets, the front and calibration on the command line."""

from pathlib import Path

import numpy as np
import pytest

from tests.profiling.test_latency_families import pyramid_device
from tests.support.latency import TEXT, device, language_device
from tests.support.verbs import call
from upvit_core.errors import CalibrationError, PlanError
from upvit_core.planning.budget import Budget, best_plan
from upvit_core.planning.curves import share_removed
from upvit_core.profiling.bench import DEMO
from upvit_core.profiling.latency import Latency, estimate_latency
from upvit_core.profiling.macs import count_macs
from upvit_core.records.known_shapes import pvt_shape
from upvit_core.records.plan import PruningPlan
from upvit_core.records.scores import ImportanceScores, expected_widths


@pytest.fixture
def scored(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    values = {key: rng.exponential(size=width) for key, width in expected_widths(DEMO).items()}
    out = tmp_path / "scores.safetensors"
    ImportanceScores(values=values, criterion="kl", unit="nats, summed over images", shape=DEMO, images=10).save(out)
    return out


def test_a_budget(scored: Path, tmp_path: Path) -> None:
    record, limit = ImportanceScores.load(scored), 0.4 * count_macs(DEMO)
    said = call("plan", scored, "--budget", f"macs={limit}", "--round-to", 8, "--out", tmp_path / "p.json")
    expected = best_plan(record, Budget(macs=limit), round_to=8)
    assert PruningPlan.load(tmp_path / "p.json").digest == expected.plan.digest == said["digest"]
    assert said["macs"] <= limit
    rows = call("front", scored)["front"]
    assert not [key for shown in (said, *rows) for key in shown if "kl" in key], "a sum of scores is no KL"
    assert said["score_removed_percent"] == pytest.approx(100 * share_removed(record, expected.plan))
    assert said["score_removed_percent_stock_timm"] >= said["score_removed_percent"]
    stock = call("plan", scored, "--budget", f"macs={limit}", "--allocation", "stock", "--out", tmp_path / "s.json")
    assert stock["stock_timm"]


def test_a_latency_budget(scored: Path, tmp_path: Path) -> None:
    device().save(tmp_path / "c.json")
    limit = 0.5 * estimate_latency(DEMO, 4, device())
    arguments = ("--budget", f"latency_ms={limit}", "--calibration", tmp_path / "c.json", "--batch-size", 4)
    said = call("plan", scored, *arguments, "--out", tmp_path / "p.json")
    after = PruningPlan.load(tmp_path / "p.json").shape_after
    assert said["latency_ms_estimated"] == pytest.approx(estimate_latency(after, 4, device()))
    assert said["latency_ms_estimated"] <= limit


@pytest.mark.parametrize("kind", ["gpt2", "pvt_v2"])
def test_a_latency_budget_of_other_families(kind: str, tmp_path: Path) -> None:
    shape = TEXT if kind == "gpt2" else pvt_shape("b0", img_size=(64, 64))
    known, rng = language_device() if kind == "gpt2" else pyramid_device(shape), np.random.default_rng(0)
    values = {group.key: rng.lognormal(0, 1, group.width) for group in shape.groups}
    ImportanceScores(values, "kl", "nats, summed over images", shape, images=10).save(tmp_path / "s.safetensors")
    known.save(tmp_path / "c.json")
    limit = 0.6 * estimate_latency(shape, 4, known)
    more = ("--calibration", tmp_path / "c.json", "--batch-size", 4)
    said = call("plan", tmp_path / "s.safetensors", "--budget", f"latency_ms={limit}", *more, "--out", tmp_path / "p")
    after = PruningPlan.load(tmp_path / "p").shape_after
    assert said["latency_ms_estimated"] == pytest.approx(estimate_latency(after, 4, known))
    assert 0.8 * limit < said["latency_ms_estimated"] <= limit
    rows = call("front", tmp_path / "s.safetensors", *more, "--over", "latency_ms", "--out", tmp_path)["front"]
    first = PruningPlan.load(rows[0]["file"]).shape_after
    assert rows[0]["latency_ms_estimated"] == pytest.approx(estimate_latency(first, 4, known))
    other = device() if kind == "gpt2" else language_device()
    other.save(tmp_path / "c.json")
    with pytest.raises(CalibrationError, match="run `calibrate --model` with it"):
        call("plan", tmp_path / "s.safetensors", "--budget", "latency_ms=1", *more, "--out", tmp_path / "p")


def test_allocations_of_ratios(scored: Path, tmp_path: Path) -> None:
    said = call("plan", scored, "--ffn", 0.5, "--allocation", "isomorphic", "--out", tmp_path / "p.json")
    widths = [block.ffn for block in PruningPlan.load(tmp_path / "p.json").shape_after.blocks]
    assert sum(widths) == 6 * 192
    assert len(set(widths)) > 1
    assert not said["stock_timm"]


def test_the_front(scored: Path, tmp_path: Path) -> None:
    device().save(tmp_path / "c.json")
    over = ("--calibration", tmp_path / "c.json", "--over", "latency_ms")
    rows = call("front", scored, *over, "--out", tmp_path)["front"]
    shown = call("front", scored, "--hide-dominated")["front"]
    assert len(rows) > len(shown) > 5
    first = PruningPlan.load(rows[0]["file"])
    assert rows[0]["macs"] == count_macs(first.shape_after)
    parts = Latency(DEMO, 1, device())
    assert rows[0]["latency_ms_estimated"] > float(parts.fixed(np.array([first.shape_after.embed_dim]))[0])


def test_clear_errors(scored: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for arguments, kind, message in (
        (["--budget", "macs=1G", "--ffn", "0.5"], PlanError, "chooses the ratios itself"),
        (["--budget", "lines=3"], PlanError, "is no budget"),
        (["--budget", "latency_ms=3"], CalibrationError, "run `calibrate` first"),
    ):
        with pytest.raises(kind, match=message):
            call("plan", scored, *arguments, "--out", tmp_path / "p.json")


@pytest.mark.slow
def test_calibrate(tmp_path: Path) -> None:
    said = call("calibrate", "--seconds", 5, "--threads", 1, "--out", tmp_path / "c.json")
    assert said["plans"] == 24
    assert 0 < said["median_error"] < 1


def test_widths_by_block(scored: Path, tmp_path: Path) -> None:
    text = "40:3x48x381,6x36x314,3x69x184*4"
    said = call("plan", scored, "--widths", text, "--out", tmp_path / "p.json")
    plan = PruningPlan.load(tmp_path / "p.json")
    kept = [(b.attention.heads, len(b.attention.keep), len(b.ffn.keep)) for b in plan.blocks]
    assert kept == [(3, 48, 381), (6, 36, 314), *[(3, 69, 184)] * 4]
    assert said["stock_timm"] is False
    with pytest.raises(PlanError, match="leave ratios"):
        call("plan", scored, "--widths", text, "--ffn", 0.5, "--out", tmp_path / "p.json")
