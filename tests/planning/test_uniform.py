import itertools
from dataclasses import replace

import numpy as np
import pytest

from upvit_core.errors import PlanError
from upvit_core.planning.curves import predicted_loss
from upvit_core.planning.ratios import Ratios, plan_uniform
from upvit_core.planning.uniform import UniformTable, uniform_table
from upvit_core.profiling.macs import count_macs, count_parameters
from upvit_core.records.known_shapes import deit_shape
from upvit_core.records.scores import ImportanceScores, expected_widths
from upvit_core.records.shape import BlockShape

SHAPE = replace(deit_shape("tiny", distilled=True), embed_dim=24, blocks=(BlockShape(4, 48, 40),) * 3)


@pytest.fixture(scope="module")
def scores() -> ImportanceScores:
    rng = np.random.default_rng(0)
    values = {key: rng.lognormal(-2, 1.5, width) for key, width in expected_widths(SHAPE).items()}
    return ImportanceScores(values=values, criterion="kl", unit="nats", shape=SHAPE, images=50)


@pytest.fixture(scope="module")
def table(scores: ImportanceScores) -> UniformTable:
    return uniform_table(scores, 2)


def test_every_entry_is_what_the_plan_itself_costs(scores: ImportanceScores, table: UniformTable) -> None:
    for ratios in itertools.product((0, 13, 50, 77, 95), repeat=3):
        residual, attention, ffn = (r / 100 for r in ratios)
        plan = plan_uniform(scores, Ratios(residual, attention, ffn), heads=2, snap=True)
        choice = table.choice(*ratios)
        assert choice.params == count_parameters(plan.shape_after)
        assert choice.macs == count_macs(plan.shape_after)
        assert choice.removed == pytest.approx(predicted_loss(scores, plan), abs=1e-12)


def test_front_is_not_dominated(table: UniformTable) -> None:
    front = table.front("macs", every=5)
    costs, lost = [c.macs for c in front], [c.removed for c in front]
    assert costs == sorted(set(costs))
    assert lost == sorted(set(lost), reverse=True)
    for residual, attention, ffn in itertools.product(range(0, 96, 25), repeat=3):
        own = table.choice(residual, attention, ffn)
        assert any(c.macs <= own.macs and c.removed <= own.removed + 1e-12 for c in front)


def test_heads_that_do_not_divide_are_refused(scores: ImportanceScores) -> None:
    with pytest.raises(PlanError, match="cannot be merged into 3"):
        uniform_table(scores, 3)
