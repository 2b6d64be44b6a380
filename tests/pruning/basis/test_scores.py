"""Scores of directions."""

import numpy as np
import pytest
import torch

from tests.support.tiny import ROTATED, TensorProxy, images, kl_sum, tiny
from upvit_core.models.build import adapt
from upvit_core.planning.ratios import Ratios, plan_uniform
from upvit_core.pruning.basis import collect_statistics, directions_scores, prune_directions
from upvit_core.pruning.basis.scores import whole_plan
from upvit_core.records.plan import Kept


@pytest.mark.parametrize("variant", ROTATED)
def test_direction_scores_make_plans_that_cut(variant):
    model, shape = tiny(variant)
    proxy = TensorProxy(images(12))
    stats = collect_statistics(adapt(model, shape), proxy)
    scores = directions_scores(adapt(model, shape), proxy, stats)
    assert scores.basis == "directions"
    assert (np.diff(scores.residual) <= 1e-12).all()
    heads = shape.blocks[0].num_heads
    assert all((np.diff(scores.attention(b).reshape(heads, -1)) <= 1e-12).all() for b in range(shape.depth))
    plan = plan_uniform(scores, Ratios.equal(0.5), basis="directions", snap=True)
    assert plan.residual.keep == tuple(range(len(plan.residual.keep)))
    thin = prune_directions(model, shape, plan, stats)
    with torch.no_grad():
        assert torch.isfinite(thin(images())).all()


def test_exact_scores_of_directions_are_what_their_removal_costs():
    model, shape = tiny("3 heads, 5 blocks")
    proxy = TensorProxy(images(6))
    stats = collect_statistics(adapt(model, shape), proxy)
    scores = directions_scores(adapt(model, shape), proxy, stats, "kl")
    whole = whole_plan(shape)
    with torch.no_grad():
        residual = whole.model_copy(update={"residual": Kept(keep=(*range(4), *range(5, 12)))})
        thin = prune_directions(model, shape, residual, stats)
        assert scores.residual[4] == pytest.approx(kl_sum(model, thin, proxy.tensor), rel=1e-6)
        rotated = prune_directions(model, shape, whole, stats)
        rotated.blocks[2].mlp.fc2.weight[:, 7] = 0
        assert scores.ffn(2)[7] == pytest.approx(kl_sum(model, rotated, proxy.tensor), rel=1e-6)
