"""Least-squares repair of a GPT-2: exact where the cut loses nothing, better where it does, one layer by hand."""

import copy

import pytest
import torch

pytest.importorskip("transformers")

from tests.support.tiny import kl_sum
from tests.support.tiny_text import CONTEXT, Blocks, tiny_gpt2, tokens
from upvit_core.errors import PlanError
from upvit_core.importance.magnitude import Magnitude
from upvit_core.models.build import adapt
from upvit_core.planning.ratios import Ratios, plan_uniform
from upvit_core.pruning.repair import repair
from upvit_core.pruning.surgery import prune


def plan_of(heads: int | None = None, **ratios: float):
    model, shape = tiny_gpt2()
    return plan_uniform(Magnitude(2).attribute(adapt(model, shape)), Ratios(**ratios), heads=heads)


@torch.no_grad()
def test_the_answer_comes_nearer_on_blocks_never_seen() -> None:
    model, shape = tiny_gpt2()
    plan = plan_of(residual=1 / 3, attention=0.5, ffn=0.5, heads=2)
    thin = prune(model, shape, plan)
    before = {name: tensor.clone() for name, tensor in thin.state_dict().items()}
    repaired, report = repair(thin, model, plan, Blocks(tokens(200)))
    fresh = tokens(60, seed=9)
    assert kl_sum(model, repaired, fresh) < 0.6 * kl_sum(model, thin, fresh)
    assert all(torch.equal(before[name], tensor) for name, tensor in thin.state_dict().items())
    assert len(report.layers) == 4 * shape.depth
    assert all(layer.after < layer.before for layer in report.layers if layer.kept)


@torch.no_grad()
def test_a_spoilt_layer_is_found_again() -> None:
    """Nothing is cut; one layer's weights are replaced: least squares gives them back."""
    model, _ = tiny_gpt2()
    plan = plan_of()
    spoilt = copy.deepcopy(model)
    spoilt.transformer.h[1].mlp.c_proj.weight.mul_(0.1)
    repaired, report = repair(spoilt, model, plan, Blocks(tokens(200)))
    torch.testing.assert_close(
        repaired.transformer.h[1].mlp.c_proj.weight, model.transformer.h[1].mlp.c_proj.weight, rtol=1e-3, atol=1e-3
    )
    assert kl_sum(model, repaired, tokens(20, seed=4)) < 1e-5 * 20 * CONTEXT
    assert next(layer for layer in report.layers if layer.layer == "1.mlp.c_proj").kept


def test_too_few_blocks_are_refused() -> None:
    model, shape = tiny_gpt2()
    plan = plan_of(ffn=0.5)
    with pytest.raises(PlanError, match="at least 5 blocks"):
        repair(prune(model, shape, plan), model, plan, Blocks(tokens(3)))
