"""`fisher` against the slow oracle and against finite differences of the KL itself."""

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from tests.oracle import reference
from tests.support.tiny import VARIANTS, TensorProxy, images, tiny
from upvit_core.errors import MemoryLimitError
from upvit_core.importance.fisher import Fisher
from upvit_core.importance.kl import KL
from upvit_core.models.build import adapt
from upvit_core.models.output import kl_divergence, log_softmax


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("count", [None, 2])
def test_equals_the_slow_oracle(variant: str, count: int | None) -> None:
    model, shape = tiny(variant)
    x = images(4)
    settings = (
        Fisher(directions="all", residual="derivative") if count is None else Fisher(count, residual="derivative")
    )
    record = settings.attribute(adapt(model, shape), TensorProxy(x))
    for key, expected in reference.fisher_scores(model, x, count).items():
        np.testing.assert_allclose(record.values[key], expected.numpy(), rtol=1e-7, atol=1e-12, err_msg=key)


def test_is_half_the_curvature_of_the_kl() -> None:
    model, shape = tiny()
    adapter, x, step = adapt(model, shape), images(5), 1e-4
    record = Fisher(directions="all", residual="derivative").attribute(adapter, TensorProxy(x))
    log_q = log_softmax(model(x))
    for channel in range(shape.embed_dim):
        total = 0.0
        for sign in (1, -1):
            weight = torch.ones(len(x), shape.embed_dim, dtype=torch.float64)
            weight[:, channel] += sign * step
            total += (
                kl_divergence(log_q, adapter.run_from(0, adapter.embed(x), adapter.weigh("residual", weight)))
                .sum()
                .item()
            )
        assert record.residual[channel] == pytest.approx(total / 2 / step**2, rel=1e-5)


def test_removal_form_takes_the_exact_change_of_one_layer_norm() -> None:
    model, shape = tiny()
    x = images(3)
    state = adapt(model, shape).sensitivities(x)
    site = state.norm_sites["residual"][2]
    stream, out, weight, bias, eps, _ = site
    from upvit_core.importance.fisher import _SiteRemoval

    gradient = torch.randn(out.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    got = _SiteRemoval(site, exact=True).change(gradient)
    for c in range(shape.embed_dim):
        rest = [i for i in range(shape.embed_dim) if i != c]
        after = torch.zeros_like(out)
        after[..., rest] = torch.nn.functional.layer_norm(
            stream[..., rest], (len(rest),), weight[rest], bias[rest], eps
        )
        expected = (gradient * (after - out)).sum((1, 2))
        torch.testing.assert_close(got[:, c], expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("site_error", [0.0, 0.3])
def test_residual_is_the_kl_of_logits_that_follow_each_site_to_first_order(site_error: float) -> None:
    """Against the logits' Jacobian, class by class, at every LayerNorm that loses the channel."""
    model, shape = tiny("distilled")
    adapter, x = adapt(model, shape), images(3)
    got = Fisher(directions="all", site_error=site_error).attribute(adapter, TensorProxy(x))
    state = adapter.sensitivities(x)
    sites = state.norm_sites["residual"]
    change = torch.zeros(len(sites), len(x), shape.embed_dim, shape.num_classes, dtype=torch.float64)
    for k in range(shape.num_classes):
        gradients = torch.autograd.grad(state.logits[:, k].sum(), [site.output for site in sites], retain_graph=True)
        for s, ((stream, out, weight, bias, eps, _), gradient) in enumerate(zip(sites, gradients, strict=True)):
            for c in range(shape.embed_dim):
                rest = [i for i in range(shape.embed_dim) if i != c]
                after = torch.zeros_like(out)
                after[..., rest] = torch.nn.functional.layer_norm(
                    stream[..., rest], (len(rest),), weight[rest], bias[rest], eps
                )
                change[s, :, c, k] = (gradient * (after - out)).sum((1, 2)).detach()
    logits, q = state.logits.detach(), state.logits.detach().softmax(-1)
    expected = kl_divergence(log_softmax(logits), (logits.unsqueeze(1) + change.sum(0)).transpose(0, 1))  # (D, B)
    mean = (q[:, None] * change).sum(-1, keepdim=True)
    quadratic = (q[:, None] * (change - mean).square()).sum(-1) / 2  # (sites, B, D)
    expected = expected.sum(1) + site_error * quadratic.sum((0, 1))
    np.testing.assert_allclose(got.residual, expected.numpy(), rtol=1e-7)


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("out of memory"), RuntimeError("DefaultCPUAllocator: can't allocate memory")]
)
def test_halves_a_batch_that_does_not_fit(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    model, shape = tiny()
    adapter = adapt(model, shape)
    expected, sensitivities, sizes = Fisher().attribute(adapter, TensorProxy(images(7))), adapter.sensitivities, []

    def limited(x):
        sizes.append(len(x))
        if len(x) > most:
            raise error
        return sensitivities(x)

    monkeypatch.setattr(adapter, "sensitivities", limited)
    most = 2
    got = Fisher().attribute(adapter, TensorProxy(images(7)))
    assert sizes == [7, 3, 1, 1, 1, 1, 1, 1, 1]
    for key in expected.values:
        np.testing.assert_allclose(got.values[key], expected.values[key], rtol=1e-9, atol=1e-14)
    most = 0
    with pytest.raises(MemoryLimitError, match="one at a time"):
        Fisher().attribute(adapter, TensorProxy(images(7)))


def test_an_error_of_another_kind_is_not_taken_for_lack_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    model, shape = tiny()
    adapter = adapt(model, shape)

    def broken(x):
        raise RuntimeError("shapes differ")

    monkeypatch.setattr(adapter, "sensitivities", broken)
    with pytest.raises(RuntimeError, match="shapes differ"):
        Fisher().attribute(adapter, TensorProxy(images(7)))


def test_all_directions_equal_the_expectation_over_labels() -> None:
    model, shape = tiny()
    x = images(4)
    everything = Fisher(directions="all").attribute(adapt(model, shape), TensorProxy(x))
    drawn = Fisher(4000, directions="labels", seed=3).attribute(adapt(model, shape), TensorProxy(x))
    np.testing.assert_allclose(drawn.ffn(1), everything.ffn(1), rtol=0.2)


def test_many_classes_by_their_likeliest_and_the_trace_share() -> None:
    model, shape = tiny()
    full = Fisher(5).attribute(adapt(model, shape), TensorProxy(images()))
    few = Fisher(2, num_classes=3).attribute(adapt(model, shape), TensorProxy(images()))
    assert full.notes["trace_share"] == pytest.approx(1, abs=1e-9)
    assert 0.5 < few.notes["trace_share"] < 1
    assert spearmanr(full.ffn(0), few.ffn(0))[0] > 0.8


def test_ranks_like_the_exact_score() -> None:
    model, shape = tiny("3 heads, 5 blocks")
    proxy = TensorProxy(images(40))
    exact, fast = KL().attribute(adapt(model, shape), proxy), Fisher().attribute(adapt(model, shape), proxy)
    for b in range(shape.depth):
        assert spearmanr(exact.ffn(b), fast.ffn(b))[0] > 0.95


def test_does_not_depend_on_batching() -> None:
    model, shape = tiny("distilled")
    proxy = TensorProxy(images(7))
    a, b = (Fisher(batch_size=size).attribute(adapt(model, shape), proxy) for size in (7, 2))
    for key in a.values:
        np.testing.assert_allclose(a.values[key], b.values[key], rtol=1e-9, atol=1e-14)


def test_stopping_rule_uses_no_more_images_than_a_stable_kept_set_needs() -> None:
    from upvit_core.importance.stopping import StableFisher, kept_overlap

    model, shape = tiny()
    proxy = TensorProxy(images(200))
    loose = StableFisher(tolerance=0.2, pilot=16).attribute(adapt(model, shape), proxy)
    strict = StableFisher(tolerance=0.0, pilot=16).attribute(adapt(model, shape), proxy)
    assert loose.images < strict.images <= 200
    assert loose.notes["stable"]
    assert loose.notes["stability"] >= 0.8
    plain = Fisher(loose.notes["num_directions"]).attribute(adapt(model, shape), proxy.part(0, loose.images))
    np.testing.assert_allclose(loose.residual, plain.residual, rtol=1e-9)
    half = Fisher(loose.notes["num_directions"]).attribute(adapt(model, shape), proxy.part(0, loose.images // 2))
    assert loose.notes["stability"] == kept_overlap(half, plain)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_ranks_alike_and_keeps_the_kl_in_float32(precision: str) -> None:
    model, shape = tiny("3 heads, 5 blocks", torch.float32)
    proxy = TensorProxy(images(30, torch.float32))
    for criterion in (KL, Fisher):
        full, half = (criterion(precision=p).attribute(adapt(model, shape), proxy) for p in ("float32", precision))
        assert full.digest != half.digest
        assert spearmanr(full.ffn(2), half.ffn(2))[0] > 0.95
