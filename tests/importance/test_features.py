"""Scores of models without a classifier against slow removal, one channel at a time, and ½ Δfᵀ Σ⁻¹ Δf by hand."""

import copy

import numpy as np
import pytest
import torch
from sklearn.covariance import LedoitWolf
from torch import Tensor, nn

from tests.oracle import reference
from tests.support.errors import refused
from tests.support.tiny import HEADLESS, TensorProxy, images, tiny
from upvit_core.errors import ScoresError
from upvit_core.importance.activation import Activation
from upvit_core.importance.blocks import remove_blocks
from upvit_core.importance.fisher import Fisher
from upvit_core.importance.kl import KL
from upvit_core.importance.removal import remove_one
from upvit_core.importance.stopping import StableFisher
from upvit_core.models.build import adapt
from upvit_core.models.output import with_output
from upvit_core.records.scores import expected_widths


def precision_of(features: Tensor) -> np.ndarray:
    return np.linalg.inv(LedoitWolf().fit(features.numpy()).covariance_)


@torch.no_grad()
def removed(model: nn.Module, key: str, channel: int, x: Tensor) -> Tensor:
    """Features (B, D) of a copy without one channel; a feature that is gone is 0."""
    component, _, block = key.partition(".")
    model = copy.deepcopy(model)
    model.head = nn.Linear(model.embed_dim, model.embed_dim, bias=False, dtype=x.dtype)
    model.head.weight.copy_(torch.eye(model.embed_dim))
    if component == "residual":
        return reference._without_residual_channel(model, channel)(x)
    cut = {"attention": reference._with_attention_channel_zero, "ffn": reference._without_ffn_channel}[component]
    return cut(model, int(block), channel)(x)


@torch.no_grad()
def slow_scores(model: nn.Module, shape, x: Tensor) -> dict[str, np.ndarray]:
    whole = model(x)
    precision, scores = precision_of(whole), {}
    for key, width in expected_widths(shape).items():
        changes = [(removed(model, key, c, x) - whole).numpy() for c in range(width)]
        scores[key] = np.array([0.5 * np.einsum("bi,ij,bj->", d, precision, d) for d in changes])
    return scores


@pytest.mark.parametrize("variant", HEADLESS)
def test_exact_scores_equal_slow_removal(variant: str) -> None:
    model, shape = tiny(variant)
    x = images(9)
    record = KL(image_batch=4).attribute(adapt(model, shape), TensorProxy(x))
    for key, expected in slow_scores(model, shape, x).items():
        np.testing.assert_allclose(record.values[key], expected, rtol=1e-7, atol=1e-12, err_msg=key)


def test_every_direction_gives_the_second_order_score_and_a_few_its_mean() -> None:
    model, shape = tiny("features")
    x = images(9)
    adapter, proxy = adapt(model, shape), TensorProxy(x)
    whole = Fisher(directions="all", residual="derivative").attribute(adapter, proxy)
    precision = torch.from_numpy(precision_of(model(x).detach()))
    hidden: list[Tensor] = []
    handle = model.blocks[1].mlp.act.register_forward_hook(lambda _, __, out: hidden.append(out) or out)
    slopes = torch.autograd.functional.jacobian(lambda mask: _with_ffn_mask(model, 1, mask, x), torch.ones(64).double())
    handle.remove()
    expected = 0.5 * torch.einsum("bdc,de,bec->c", slopes, precision, slopes)
    np.testing.assert_allclose(whole.ffn(1), expected.numpy(), rtol=1e-7)
    repeated = TensorProxy(x.repeat(300, 1, 1, 1))
    known = with_output(adapter, proxy)
    few = Fisher(num_directions=2).attribute(known, repeated)
    every = Fisher(directions="all").attribute(known, proxy)
    for key, values in every.values.items():
        np.testing.assert_allclose(few.values[key] / 300, values, rtol=0.25, err_msg=key)


def _with_ffn_mask(model: nn.Module, block: int, mask: Tensor, x: Tensor) -> Tensor:
    handle = model.blocks[block].mlp.act.register_forward_hook(lambda _, __, out: out * mask)
    try:
        return model(x)
    finally:
        handle.remove()


def test_parts_of_a_proxy_set_share_the_covariance_of_the_whole() -> None:
    model, shape = tiny("features")
    proxy = TensorProxy(images(12))
    exact = KL(image_batch=5).attribute(with_output(adapt(model, shape), proxy), proxy.part(0, 6))
    precision, x = precision_of(model(proxy.tensor).detach()), proxy.tensor[:6]
    change = (removed(model, "ffn.0", 3, x) - model(x)).detach().numpy()
    np.testing.assert_allclose(exact.ffn(0)[3], 0.5 * np.einsum("bi,ij,bj->", change, precision, change), rtol=1e-9)
    record = StableFisher(pilot=4).attribute(adapt(model, shape), proxy)
    assert record.images <= 12
    assert all(np.isfinite(values).all() for values in record.values.values())


def test_half_blocks_and_single_channels_by_the_same_distance() -> None:
    model, shape = tiny("features")
    x = images(8)
    precision, whole = precision_of(model(x).detach()), model(x).detach()
    removals = remove_blocks(adapt(model, shape), TensorProxy(x), 2)
    for candidate in removals.steps[0].candidates:
        stream = model.norm_pre(model._pos_embed(model.patch_embed(x)))
        for b, block in enumerate(model.blocks):
            if 2 * b not in candidate.halves:
                stream = stream + block.ls1(block.attn(block.norm1(stream)))
            if 2 * b + 1 not in candidate.halves:
                stream = stream + block.ls2(block.mlp(block.norm2(stream)))
        change = (model.forward_head(model.norm(stream)) - whole).detach().numpy()
        expected = 0.5 * np.einsum("bi,ij,bj->", change, precision, change)
        np.testing.assert_allclose(candidate.kl, expected, rtol=1e-7)
    one = remove_one(adapt(model, shape), [(x[:5], torch.zeros(5)), (x[5:], torch.zeros(3))], "ffn.1", 7)
    change = (removed(model, "ffn.1", 7, x) - whole).numpy()
    np.testing.assert_allclose(one.kl.numpy(), 0.5 * np.einsum("bi,ij,bj->b", change, precision, change), rtol=1e-7)


def test_taylor_needs_classes_and_the_others_do_not() -> None:
    model, shape = tiny("features")
    adapter, proxy = adapt(model, shape), TensorProxy(images(6))
    with refused(ScoresError, "taylor", "features"):
        Activation("taylor").attribute(adapter, proxy)
    assert Activation("variance").attribute(adapter, proxy).values.keys() == expected_widths(shape).keys()
