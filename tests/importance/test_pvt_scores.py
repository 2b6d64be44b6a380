"""Criteria on a staged model, against a forward pass from bare tensors with channels cut out by hand."""

import numpy as np
import pytest
import torch

from tests.oracle import pvt
from tests.support.tiny import TensorProxy
from tests.support.tiny_pvt import HEADS, images, tiny_pvt
from upvit_core.importance.activation import Activation
from upvit_core.importance.agreement import spearman
from upvit_core.importance.fisher import Fisher
from upvit_core.importance.kl import KL
from upvit_core.importance.magnitude import Magnitude
from upvit_core.importance.removal import remove_one
from upvit_core.models.build import adapt
from upvit_core.models.pvt import PVTAdapter


def state(**changes: bool) -> pvt.State:
    return {name: tensor.detach() for name, tensor in tiny_pvt(**changes)[0].state_dict().items()}


def scales() -> list[float]:
    return [(width / heads) ** -0.5 for width, heads in zip((4, 6, 7, 8), HEADS, strict=True)]


@pytest.fixture(scope="module")
def expected() -> dict[str, torch.Tensor]:
    return pvt.kl_scores(state(), images(), HEADS)


@pytest.mark.parametrize("linear", [False, True])
def test_the_oracle_runs_the_model_as_timm_does(linear: bool) -> None:
    model, _ = tiny_pvt(linear=linear)
    found = pvt.logits(state(linear=linear), images(), HEADS, scales())
    torch.testing.assert_close(found, model(images()), rtol=1e-9, atol=1e-11)


def test_exact_scores_of_linear_attention_equal_slow_removal_and_fisher_ranks_so() -> None:
    model, shape = tiny_pvt(linear=True)
    record = KL().attribute(adapt(model, shape), TensorProxy(images()))
    fast = Fisher(directions="all").attribute(adapt(model, shape), TensorProxy(images()))
    for key, value in pvt.kl_scores(state(linear=True), images(), HEADS).items():
        np.testing.assert_allclose(record.values[key], value.numpy(), rtol=1e-8, atol=1e-12, err_msg=key)
    for component in shape.components:
        keys = [group.key for group in shape.groups_of(component)]
        ours, exact = (np.concatenate([r.values[key] for key in keys]) for r in (fast, record))
        assert spearman(ours, exact) > 0.7, component


def test_exact_scores_equal_slow_removal(expected: dict[str, torch.Tensor]) -> None:
    model, shape = tiny_pvt()
    record = KL(image_batch=3, memory_mb=1).attribute(adapt(model, shape), TensorProxy(images()))
    assert list(record.values) == [group.key for group in shape.groups]
    assert set(record.values) == set(expected)
    for key, value in expected.items():
        np.testing.assert_allclose(record.values[key], value.numpy(), rtol=1e-8, atol=1e-12, err_msg=key)


def test_one_removal_equals_its_score(expected: dict[str, torch.Tensor]) -> None:
    model, shape = tiny_pvt()
    for key in ("residual.1", "attention.2", "ffn.3", "reduction.0"):
        found = remove_one(adapt(model, shape), [(images(), torch.zeros(4))], key, 2)
        assert float(found.kl.sum()) == pytest.approx(float(expected[key][2]), rel=1e-8)


def masked_gradients(adapter: PVTAdapter, x: torch.Tensor) -> dict[str, torch.Tensor]:
    """Half the Fisher information of masks, by finite differences of log q along each mask, over all classes."""
    model_state, step = state(), 1e-5
    q = adapter.logits(x).softmax(-1)
    found = {}
    for key in ("residual.0", "residual.2", "reduction.1"):
        values = []
        for c in range(pvt.width_of(model_state, key)):
            ends = []
            for sign in (1, -1):
                weight = torch.ones(len(x), pvt.width_of(model_state, key), dtype=x.dtype)
                weight[:, c] += sign * step
                ends.append(weighted(adapter, key, weight, x).log_softmax(-1))
            slope = (ends[0] - ends[1]) / (2 * step)  # (B, classes)
            values.append(float((q * slope.square()).sum().detach()) / 2)
        found[key] = torch.tensor(values, dtype=torch.float64)
    return found


def weighted(adapter: PVTAdapter, key: str, weight: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Logits with a weight on the channels of `key`."""
    return adapter.run_from(0, x, adapter.weigh(key, weight))


def test_fisher_derivative_is_the_curvature_of_the_masks() -> None:
    model, shape = tiny_pvt()
    adapter = adapt(model, shape)
    record = Fisher(directions="all", residual="derivative").attribute(adapter, TensorProxy(images()))
    for key, value in masked_gradients(adapter, images()).items():
        np.testing.assert_allclose(record.values[key], value.numpy(), rtol=1e-4, atol=1e-9, err_msg=key)


def test_fisher_ranks_as_exact_scores_do(expected: dict[str, torch.Tensor]) -> None:
    model, shape = tiny_pvt()
    record = Fisher(directions="all").attribute(adapt(model, shape), TensorProxy(images()))
    for component in shape.components:
        keys = [group.key for group in shape.groups_of(component)]
        ours, theirs = (np.concatenate([np.asarray(v[key]) for key in keys]) for v in (record.values, expected))
        assert spearman(ours, theirs) > 0.8, component


def test_magnitude_sums_what_removal_deletes() -> None:
    model, shape = tiny_pvt()
    whole = state()
    record = Magnitude(1).attribute(adapt(model, shape))
    total = sum(float(tensor.abs().sum()) for tensor in whole.values())
    for key in ("residual.0", "residual.3", "ffn.2", "reduction.3"):
        width = pvt.width_of(whole, key)
        for c in (0, width - 1):
            left = pvt.keep(whole, key, [i for i in range(width) if i != c])
            deleted = total - sum(float(tensor.abs().sum()) for tensor in left.values())
            assert record.values[key][c] == pytest.approx(deleted, rel=1e-9)


@pytest.mark.parametrize("name", ["taylor", "variance"])
def test_activation_criteria_score_every_channel(name: str) -> None:
    model, shape = tiny_pvt()
    record = Activation(name).attribute(adapt(model, shape), TensorProxy(images()))  # type: ignore[arg-type]
    assert all((value >= 0).all() and value.sum() > 0 for value in record.values.values())
    assert set(record.values) == {group.key for group in shape.groups}
