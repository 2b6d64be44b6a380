"""Budgets that may take blocks too: the best of every depth, against trying each by hand."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.support.verbs import call
from upvit_core.errors import PlanError
from upvit_core.planning.budget import Budget
from upvit_core.planning.budget_depth import best_over_depth, scores_at
from upvit_core.profiling.macs import count_macs
from upvit_core.records.block_removals import BlockRemovals, Candidate, Step, neighbours, without
from upvit_core.records.plan import PruningPlan
from upvit_core.records.scores import ImportanceScores, expected_widths
from upvit_core.records.shape import BlockShape, ModelShape

SHAPE = ModelShape("small", 16, (BlockShape(2, 16, 32), BlockShape(2, 16, 48), BlockShape(2, 16, 32)), (16, 16), (8, 8),
                   3, 5)  # fmt: skip


def scores(scale: float = 1.0) -> ImportanceScores:
    rng = np.random.default_rng(1)
    values = {key: scale * rng.exponential(size=width) for key, width in expected_widths(SHAPE).items()}
    return ImportanceScores(
        values=values, criterion="kl", unit="nats, summed over images", shape=SHAPE, images=4, model_digest="m"
    )


def removals(costs: tuple[float, float], images: int = 4) -> BlockRemovals:
    left, steps = tuple(range(6)), []
    for cost in costs:
        scored = tuple(Candidate(halves=pair, kl=cost + n) for n, pair in enumerate(neighbours(left)))
        steps.append(Step(candidates=scored, removed=scored[0].halves))
        left = without(left, scored[0].halves)
    return BlockRemovals(source_shape=SHAPE.to_dict(), model_digest="m", images=images, steps=tuple(steps))


def test_scores_follow_their_half_blocks() -> None:
    record = scores()
    shallow = scores_at(record, removals((1.0, 2.0)), 2)  # A0 F0 go
    assert shallow.shape.blocks == SHAPE.blocks[1:]
    assert np.array_equal(shallow.attention(0), record.attention(1))
    assert np.array_equal(shallow.ffn(1), record.ffn(2))


@pytest.mark.parametrize(("costs", "depth"), [((0.001, 0.002), 1), ((0.001, 1e9), 2), ((1e9, 2e9), 3)])
def test_blocks_go_where_that_costs_less(costs: tuple[float, float], depth: int) -> None:
    record, blocks = scores(), removals(costs)
    budget = Budget(macs=0.32 * count_macs(SHAPE))
    best, every = best_over_depth(record, blocks, budget)
    assert best.depth == best.best.plan.shape_after.depth == depth
    assert best.predicted == min(choice.predicted for choice in every)
    for choice in every:
        plan = choice.best.plan
        assert count_macs(plan.shape_after) == choice.best.macs <= 0.32 * count_macs(SHAPE)
        assert plan.shape_before == SHAPE
        gone = sum(  # by hand: channels that go from blocks that stay, and the blocks
            float(np.delete(record.values[key], list(plan.kept(key))).sum()) for key in record.values if plan.kept(key)
        )
        lost = 0.0 if choice.depth == 3 else costs[2 - choice.depth]
        assert choice.predicted == pytest.approx((gone + lost) / 4)


def test_records_of_different_models_are_refused() -> None:
    with pytest.raises(PlanError, match="of one model"):
        best_over_depth(replace(scores(), model_digest="other"), removals((1.0, 2.0)), Budget(params=1e4))
    with pytest.raises(PlanError, match="narrowest"):
        best_over_depth(scores(), removals((1.0, 2.0)), Budget(params=10))


def test_the_command(tmp_path: Path) -> None:
    scores().save(tmp_path / "s.safetensors")
    removals((0.001, 1e9)).save(tmp_path / "blocks.json")
    limit = 0.32 * count_macs(SHAPE)
    given = ("--budget", f"macs={limit}", "--depth-scores", tmp_path / "blocks.json", "--out", tmp_path / "p.json")
    said = call("plan", tmp_path / "s.safetensors", *given)
    assert said["depth"] == 2 == PruningPlan.load(tmp_path / "p.json").shape_after.depth
    assert said["score_removed_percent"] == min(said[f"score_removed_percent_at_{depth}_blocks"] for depth in (1, 2, 3))
