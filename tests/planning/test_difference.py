import numpy as np
import pytest

from upvit_core.errors import PlanError
from upvit_core.planning.difference import difference
from upvit_core.planning.ratios import Ratios, plan_uniform
from upvit_core.records.plan import PruningPlan
from upvit_core.records.scores import ImportanceScores, expected_widths
from upvit_core.records.shape import BlockShape, ModelShape

SHAPE = ModelShape("small", 24, (BlockShape(4, 24, 40),) * 3, (16, 16), (8, 8), 3, 5)


def scores(shape: ModelShape = SHAPE, seed: int = 0) -> ImportanceScores:
    rng = np.random.default_rng(seed)
    return ImportanceScores({k: rng.random(w) for k, w in expected_widths(shape).items()}, "made up", "nats", shape)


def kept(plan: PruningPlan, key: str) -> set[int]:
    """By the record's own JSON."""
    values = plan.model_dump()
    if key == "residual":
        return set(values["residual"]["keep"])
    component, block = key.split(".")
    return set(values["blocks"][int(block)][component]["keep"])


def test_counts_are_those_of_sets() -> None:
    a = plan_uniform(scores(), Ratios(0.5, 0.5, 0.25), heads=2)
    b = plan_uniform(scores(seed=1), Ratios(0.25, 0.5, 0.5), heads=1)
    found = difference(a, b)
    assert {d.key for d in found} == set(expected_widths(SHAPE))
    for d in found:
        one, two = kept(a, d.key), kept(b, d.key)
        assert set(np.flatnonzero(d.in_a).tolist()) == one
        assert set(np.flatnonzero(d.in_b).tolist()) == two
        assert d.counts == (len(one & two), len(one - two), len(two - one), len(d.in_a) - len(one | two))


def test_plans_of_two_models_or_of_two_bases_are_refused() -> None:
    a = plan_uniform(scores(), Ratios(residual=0.5))
    other = ModelShape("wide", 32, (BlockShape(4, 24, 40),) * 3, (16, 16), (8, 8), 3, 5)
    with pytest.raises(PlanError, match="two models, small and wide"):
        difference(a, plan_uniform(scores(other), Ratios(residual=0.5)))
    with pytest.raises(PlanError, match="directions"):
        difference(a, plan_uniform(scores(), Ratios(residual=0.5), basis="directions"))
