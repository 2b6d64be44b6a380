"""Budgets of a model of stages against trying every share by hand."""

from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.verbs import call
from upvit_core.errors import PlanError
from upvit_core.planning import budget_stages
from upvit_core.planning.curves import predicted_loss
from upvit_core.planning.pareto import candidate_plans, pareto_rows
from upvit_core.planning.ratios import Ratios, plan_uniform, uniform_widths
from upvit_core.profiling.macs import count_macs, count_parameters
from upvit_core.records.known_shapes import pvt_shape
from upvit_core.records.scores import ImportanceScores
from upvit_core.records.shape import ModelShape


@pytest.fixture(scope="module")
def scores() -> ImportanceScores:
    shape, rng = pvt_shape("b0", img_size=(64, 64), num_classes=10), np.random.default_rng(0)
    weight = {"residual": 20.0, "attention": 1.0, "ffn": 0.3, "reduction": 2.0}
    values = {g.key: weight[g.component] * rng.lognormal(0, 1, g.width) for g in shape.groups}
    return ImportanceScores(values, "kl", "nats, summed over images", shape, images=10)


@pytest.mark.parametrize("stock", [False, True])
def test_no_shares_tried_by_hand_lose_less(
    scores: ImportanceScores, stock: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    shape, few = scores.shape, 6
    monkeypatch.setattr(budget_stages, "PERCENTS", np.arange(few))
    limits = {"params": 0.93 * count_parameters(shape), "macs": 0.94 * count_macs(shape)}
    lowest = np.inf
    for r, a, f, d in product(range(few), repeat=4):
        if stock and not r == a == d:
            continue
        ratios = Ratios(r / 100, a / 100, f / 100, None if d == r else d / 100)
        widths, _ = uniform_widths(shape, ratios, snap=True)
        after = shape.with_widths(widths)
        if count_parameters(after) > limits["params"] or count_macs(after) > limits["macs"]:
            continue
        lost = 0.0
        for group in shape.groups:
            heads = group.heads if group.component == "attention" else 1
            gone = (group.width - widths[group.key]) // heads
            lost += np.sort(scores.values[group.key].reshape(heads, -1), axis=1)[:, :gone].sum()
        lowest = min(lowest, lost / 10)
    found = budget_stages.best_shares(scores, limits, stock=stock)
    assert np.isfinite(lowest)
    assert found.predicted == pytest.approx(lowest)
    assert found.predicted == pytest.approx(predicted_loss(scores, found.plan))
    after = found.plan.shape_after
    assert (found.params, found.macs) == (count_parameters(after), count_macs(after))
    assert found.params <= limits["params"]
    assert found.macs <= limits["macs"]
    assert after.is_uniform or not stock


def test_limits_hold_over_the_whole_range_and_what_cannot_be_is_said(scores: ImportanceScores) -> None:
    full = count_macs(scores.shape)
    losses = []
    for share in (0.7, 0.4, 0.1):
        found = budget_stages.best_shares(scores, {"macs": share * full})
        assert found.macs <= share * full
        losses.append(found.predicted)
    assert losses == sorted(losses)
    with pytest.raises(PlanError, match="the narrowest has"):
        budget_stages.best_shares(scores, {"params": 10.0})
    with pytest.raises(PlanError, match="calibration"):
        budget_stages.best_shares(scores, {"latency_ms": 1.0})
    with pytest.raises(PlanError, match="no budget of joules"):
        budget_stages.best_shares(scores, {"joules": 1.0})


class Stairs:
    """A latency whose FFN takes longer at odd widths than at the next even one."""

    def fixed(self, dims: Sequence[int]) -> np.ndarray:
        return np.asarray(1 + 0.01 * sum(dims))

    def attention(self, stage: int, D: Any, heads: int, A: Any, R: Any) -> np.ndarray:
        return np.asarray(0.02 * heads + 1e-4 * D * np.ceil(np.asarray(A) / 4) + 1e-4 * np.asarray(R) * (1 + stage))

    def ffn(self, stage: int, D: Any, H: Any) -> np.ndarray:
        return np.asarray(3e-5 * D * (np.asarray(H) + 40 * (np.asarray(H) % 2)))

    def of(self, shape: ModelShape) -> float:
        total = float(self.fixed(shape.embed_dims))
        for b, block in enumerate(shape.blocks):
            stage = shape.stage_of(b)
            D = shape.embed_dims[stage]
            total += float(self.attention(stage, D, block.num_heads, block.attention, block.reduction))
            total += float(self.ffn(stage, D, block.ffn))
        return total


@pytest.mark.parametrize("stock", [False, True])
def test_no_shares_tried_by_hand_are_better_in_time(
    scores: ImportanceScores, stock: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    shape, few, latency = scores.shape, 6, Stairs()
    monkeypatch.setattr(budget_stages, "PERCENTS", np.arange(few))
    limits = {"latency_ms": 0.96 * latency.of(shape), "params": 0.97 * count_parameters(shape)}
    lowest = np.inf
    for r, a, f, d in product(range(few), repeat=4):
        if stock and not r == a == d:
            continue
        plan = plan_uniform(scores, Ratios(r / 100, a / 100, f / 100, None if d == r else d / 100), snap=True)
        after = plan.shape_after
        if latency.of(after) <= limits["latency_ms"] and count_parameters(after) <= limits["params"]:
            lowest = min(lowest, predicted_loss(scores, plan))
    found = budget_stages.best_shares(scores, limits, stock=stock, latency=latency)
    assert np.isfinite(lowest)
    assert found.predicted == pytest.approx(lowest)
    assert found.latency_ms == pytest.approx(latency.of(found.plan.shape_after))
    assert found.latency_ms <= limits["latency_ms"]
    with pytest.raises(PlanError, match="the narrowest has"):
        budget_stages.best_shares(scores, {"latency_ms": 0.5}, latency=latency)


def test_the_verb_takes_a_budget(scores: ImportanceScores, tmp_path: Path) -> None:
    scores.save(tmp_path / "s.safetensors")
    command = ("plan", tmp_path / "s.safetensors", "--out", tmp_path / "p.json", "--budget", "params=2M")
    assert "residual_removed" in call(*command)
    with pytest.raises(PlanError, match="without stages"):
        call(*command, "--allocation", "global")


def test_the_front_of_a_model_of_stages(scores: ImportanceScores, tmp_path: Path) -> None:
    plans = candidate_plans(scores, shares=(0.7, 0.4, 1e-6))
    assert [name for name, _ in plans] == [
        "uniform, 70% of MACs", "stock, 70% of MACs", "uniform, 40% of MACs", "stock, 40% of MACs",
        "25% of everything", "50% of everything", "75% of everything",
    ]  # fmt: skip
    rows = {row.name: row for row in pareto_rows(scores, plans)}
    full = count_macs(scores.shape)
    for share in (0.7, 0.4):
        free, stock = (rows[f"{kind}, {share:.0%} of MACs"] for kind in ("uniform", "stock"))
        alone = budget_stages.best_shares(scores, {"macs": share * full}).plan
        assert free.plan.digest == alone.digest
        assert free.predicted <= stock.predicted
        assert max(free.macs, stock.macs) <= share * full
        assert stock.stock
        shares = budget_stages.percents_of(free.plan)
        if shares["reduction"] == shares["residual"]:  # then it goes with the residual
            del shares["reduction"]
        again = plan_uniform(scores, Ratios(**{key: value / 100 for key, value in shares.items()}), snap=True)
        assert again.shape_after == free.plan.shape_after
    assert not rows["uniform, 40% of MACs"].dominated
    with pytest.raises(PlanError, match="without stages"):
        candidate_plans(scores, heads=2)
    scores.save(tmp_path / "s.safetensors")
    told = call("front", tmp_path / "s.safetensors", "--hide-dominated")
    assert "uniform, 40% of MACs" in str(told)
