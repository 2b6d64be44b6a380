"""Estimates with and without a calibration, and the solver behind "Best under…"."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

import upvit_core
from pages.services import block_removals, imports
from pages.services import device as this_device
from pages.tradeoff import estimates
from tests.support.latency import device
from tests.support.reading import PAPER, html_of, what_if_of
from upvit_core import units
from upvit_core.paths import DEMO_FOLDER
from upvit_core.planning.budget import Budget, best_plan
from upvit_core.planning.budget_depth import best_over_depth
from upvit_core.planning.curves import predicted_loss, share_removed, total_score
from upvit_core.planning.what_if import WhatIf
from upvit_core.planning.widths import widths_of
from upvit_core.profiling.calibration import HeldOutError, default_path, processor_name
from upvit_core.profiling.latency import estimate_latency, estimate_speed_up
from upvit_core.profiling.macs import count_parameters
from upvit_core.profiling.memory import estimate_memory
from upvit_core.records.block_removals import BlockRemovals
from upvit_core.records.plan import PruningPlan
from upvit_core.records.scores import ImportanceScores

PAGE = "pages/tradeoff/page.py"
NAMES = ("Images/s", "Time, batch", "Memory", "Loads in plain timm", "KL after", "Parameters")
Run = Callable[..., AppTest]


@pytest.fixture
def calibrated(monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(imports, "loaded", lambda: False)
    monkeypatch.setattr(this_device, "GPUS", Path("/nowhere"))
    path = default_path(processor_name(), "float32", 1)
    device().with_error(HeldOutError(0.057, 0.35, 0.99, 24, ("demo",), (8, 32), "2026-11-25")).save(path)
    return path


def demo() -> ImportanceScores:
    return ImportanceScores.load(DEMO_FOLDER / "scores.safetensors")


def plan_of(test: AppTest) -> PruningPlan:
    return what_if_of(test).plan(demo(), block_removals.records())


def cards(test: AppTest) -> dict[str, str]:
    """Card's text by its name."""
    found = {}
    for card in re.findall(r'<div class="card.*?</div></div>', html_of(test), re.S):
        text = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", card)).strip()
        name = next((name for name in NAMES if name in text), text)
        found[name] = text
    return found


def test_without_calibration_nothing_is_said_of_time(page: Run) -> None:
    test = page(PAGE, "Details")
    assert not test.exception
    found = cards(test)
    assert "being timed" in found["Images/s"]
    assert "×" not in found["Images/s"]
    assert "not calibrated" in found["Time, batch"]
    assert "ms" not in found["Time, batch"]
    assert any(b.label == "Calibrate this device" for b in test.button)


def test_with_calibration_estimates_come_with_their_error(page: Run, calibrated: Path) -> None:
    test = page(PAGE, "Details")
    found, plan = cards(test), plan_of(test)
    ratio = estimate_speed_up(plan.shape_before, plan.shape_after, 32, device())
    assert f"{ratio:.2f}×" in found["Images/s"]
    assert "± 5.7 %" in found["Images/s"]
    assert "estimated" in found["Images/s"]
    assert f"{estimate_latency(plan.shape_after, 32, device()):.3g} ms" in found["Time, batch"]
    memory = estimate_memory(plan.shape_after, 32)
    assert estimates.format_bytes(memory.total) in found["Memory"]
    assert estimates.format_bytes(memory.weights) in found["Memory"]


def test_a_calibration_of_another_device_or_torch_tells_nothing(
    page: Run, calibrated: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = calibrated.read_text()
    for name, text, gpus in (
        ("another device-float32-1.json", own, Path("/nowhere")),
        (calibrated.name, own.replace('"versions": {}', '"versions": {"torch": "1.0"}'), Path("/nowhere")),
        (calibrated.name, own, Path("/")),
    ):
        calibrated.unlink(missing_ok=True)
        (calibrated.parent / name).write_text(text)
        monkeypatch.setattr(this_device, "GPUS", gpus)
        assert "not calibrated" in cards(page(PAGE, "Details"))["Time, batch"]


def test_the_batch_size_is_part_of_the_link(page: Run, calibrated: Path) -> None:
    test = page(PAGE, "Details", batch="8")
    assert f"{estimate_latency(plan_of(test).shape_after, 8, device()):.3g} ms" in cards(test)["Time, batch"]
    assert "batch 8" in cards(page(PAGE, "Details", batch="8"))["Memory"]


def test_uneven_blocks_do_not_load_in_the_stock_library(page: Run) -> None:
    assert "✓" in cards(page(PAGE, "Details", **PAPER))["Loads in plain timm"]
    assert "no" in cards(page(PAGE, "Details", **PAPER, allocation="By kind"))["Loads in plain timm"]


def test_the_solver_sets_the_plan_and_says_how_good_it_is(page: Run, calibrated: Path) -> None:
    test = page(PAGE, "Details", **PAPER)
    limit = count_parameters(plan_of(test).shape_after)
    test.button(key="find-best").click().run()
    assert not test.exception
    plan = plan_of(test)
    expected = best_plan(demo(), Budget(params=limit + 50), heads=3)
    assert widths_of(plan.shape_after) == widths_of(expected.plan.shape_after)
    assert count_parameters(plan.shape_after) <= limit + 100
    assert (
        f"removes {units.share(expected.predicted / total_score(demo()))} of the score, the least possible"
        in test.success[0].value
    )
    table = test.dataframe[0].value.set_index("Among")
    assert table["Score removed, %"].idxmin() == "every block its own widths"
    assert table.loc["a shape of stock timm", "Stock timm"]
    test.slider(key="ffn").set_value(10).run()
    assert not test.success


def test_two_limits_at_once(page: Run, calibrated: Path) -> None:
    test = page(PAGE, "Details")
    next(c for c in test.checkbox if "Time of a batch" in c.label).check().run()
    box = next(n for n in test.number_input if "Time of a batch" in n.label)
    box.set_value(box.value * 0.8).run()
    test.button(key="find-best").click().run()
    assert not test.exception
    assert estimate_latency(plan_of(test).shape_after, 32, device()) <= box.value + 1e-3
    assert "and" in test.success[0].value


def test_rounding_shows_what_it_changes(page: Run) -> None:
    test = page(PAGE, "Details", residual="47", ffn="47", **PAPER, **{"round-to": "16"})
    html = "\n".join(str(element.proto.body) for element in test.get("html"))
    free = WhatIf(47, 50, 3, 47).plan(demo())
    assert f"What multiples of 16 change: parameters {count_parameters(free.shape_after) / 1e3:.2f} k →" in html


def test_sizes_in_words() -> None:
    assert [estimates.format_bytes(n) for n in (5, 2048, 3 * 2**20 + 2**19, 5 * 2**30)] == [
        "5 B",
        "2 KiB",
        "3.5 MiB",
        "5 GiB",
    ]


def test_a_budget_may_take_blocks_too(page: Run) -> None:
    test = page(PAGE, "Details", **PAPER)
    test.toggle(key="budget-depth").set_value(True)
    test.radio(key="budget-family").set_value("stock").run()
    limit = count_parameters(plan_of(test).shape_after)
    test.button(key="find-best").click().run()
    assert not test.exception
    removals = BlockRemovals.load(DEMO_FOLDER / "blocks.json")
    expected, every = best_over_depth(demo(), removals, Budget(params=limit + 50), family="stock", heads=3)
    plan = plan_of(test)
    assert (plan.residual, plan.blocks) == (expected.best.plan.residual, expected.best.plan.blocks)
    told = test.success[0].value
    assert f"removes {units.share(expected.predicted / total_score(demo()))} of the score" in told
    assert expected.predicted == min(choice.predicted for choice in every)
    table = test.dataframe[0].value.set_index("Among")
    assert table.loc["a shape of stock timm", "Blocks"] == expected.depth == 5
    assert table["Against the best"].min() == 1
    test.toggle(key="budget-depth").set_value(False).run()
    test.button(key="find-best").click().run()
    assert plan_of(test).shape_after.depth == 6


def test_the_kl_of_a_plan_that_was_not_measured_is_not_known(page: Run) -> None:
    test = page(PAGE, "Details", residual="41", **PAPER)
    told = cards(test)["KL after"]
    assert "not known yet" in told
    assert f"It removes {units.share(share_removed(demo(), plan_of(test)))} of the score" in told
    assert "nats" not in told


def test_the_kl_of_a_measured_plan_is_what_the_library_measures(page: Run, jobs_at_once: None) -> None:
    """The sum of single removals is called no KL: at the default sliders it is an eighth of what is measured."""
    test = page(PAGE, "Details", **PAPER)
    test.run()
    told = cards(test)["KL after"]
    loaded, plan = upvit_core.load_model("demo"), plan_of(test)
    shown = float(re.search(r"KL after the cut measured ([\d.]+)", told)[1])
    alone = upvit_core.evaluate(upvit_core.prune(loaded, plan), "demo", teacher=loaded)
    assert shown == pytest.approx(alone.kl, rel=0.15)  # of 1,000 images and of all 3,000
    assert shown > 4 * predicted_loss(demo(), plan)
