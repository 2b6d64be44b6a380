"""Least-squares repair of a PVTv2: nearer answers on fresh images, a spoilt layer found again, fewer blocks too."""

import copy

import pytest
import torch

from tests.support.tiny import TensorProxy, kl_sum
from tests.support.tiny_pvt import images, tiny_pvt
from upvit_core.errors import PlanError
from upvit_core.importance.magnitude import Magnitude
from upvit_core.models.build import adapt
from upvit_core.planning.ratios import Ratios, plan_uniform
from upvit_core.pruning.repair import repair
from upvit_core.pruning.surgery import prune


def plan_of(**ratios: float):
    model, shape = tiny_pvt()
    return plan_uniform(Magnitude(2).attribute(adapt(model, shape)), Ratios(**ratios), snap=True)


@torch.no_grad()
def test_the_answer_comes_nearer_on_images_never_seen() -> None:
    model, shape = tiny_pvt()
    plan = plan_of(residual=0.3, attention=0.3, ffn=0.5, reduction=0.3)
    thin = prune(model, shape, plan)
    before = {name: tensor.clone() for name, tensor in thin.state_dict().items()}
    repaired, report = repair(thin, model, plan, TensorProxy(images(150)))
    fresh = images(40, seed=9)
    assert kl_sum(model, repaired, fresh) < 0.5 * kl_sum(model, thin, fresh)
    assert all(torch.equal(before[name], tensor) for name, tensor in thin.state_dict().items())
    names = {layer.layer for layer in report.layers}
    assert {"blocks.0.attn.sr", "blocks.4.attn.kv", "stages.2.downsample.proj", "head"} <= names
    assert "blocks.4.attn.sr" not in names  # the last stage reduces nothing
    assert all(layer.after < layer.before for layer in report.layers if layer.kept)


@torch.no_grad()
@pytest.mark.parametrize(
    "where", ["stages.1.blocks.0.attn.sr", "stages.2.downsample.proj", "stages.1.blocks.1.mlp.fc2"]
)
def test_a_spoilt_layer_is_found_again(where: str) -> None:
    """Nothing is cut; one layer's weights are replaced: least squares gives its outputs back."""
    model, _ = tiny_pvt()
    spoilt = copy.deepcopy(model)
    spoilt.get_submodule(where).weight.mul_(0.1)
    repaired, _ = repair(spoilt, model, plan_of(), TensorProxy(images(150)))
    fresh = images(20, seed=4)
    assert kl_sum(model, spoilt, fresh) > 20 * 1e-4
    assert kl_sum(model, repaired, fresh) < 1e-3 * kl_sum(model, spoilt, fresh)


def test_too_few_images_are_refused() -> None:
    model, shape = tiny_pvt()
    plan = plan_of(ffn=0.5)
    with pytest.raises(PlanError, match="at least 5 images"):
        repair(prune(model, shape, plan), model, plan, TensorProxy(images(3)))
