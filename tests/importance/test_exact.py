"""`kl` against the slow oracle, which removes every channel physically, one at a time."""

import json

import numpy as np
import pytest
import torch

from tests.oracle import reference
from tests.support.tiny import VARIANTS, TensorProxy, images, tiny
from upvit_core.errors import Cancelled, ScoresError
from upvit_core.importance.criterion import Clock
from upvit_core.importance.kl import KL, PIECE_MACS, _image_batch
from upvit_core.models.build import adapt
from upvit_core.models.output import kl_divergence, log_softmax
from upvit_core.records.known_shapes import deit_shape
from upvit_core.records.scores import expected_widths


@pytest.mark.parametrize("variant", VARIANTS)
def test_equals_slow_removal_in_float64(variant: str) -> None:
    model, shape = tiny(variant)
    x = images()
    record = KL(image_batch=4).attribute(adapt(model, shape), TensorProxy(x))
    for key, expected in reference.kl_scores(model, x).items():
        np.testing.assert_allclose(record.values[key], expected.numpy(), rtol=1e-9, atol=1e-13, err_msg=key)


def test_equals_slow_removal_in_float32() -> None:
    model, shape = tiny("3 heads, 5 blocks", torch.float32)
    x = images(dtype=torch.float32)
    record = KL().attribute(adapt(model, shape), TensorProxy(x))
    exact, _ = tiny("3 heads, 5 blocks")
    for key, expected in reference.kl_scores(exact, x.double()).items():
        np.testing.assert_allclose(record.values[key], expected.numpy(), rtol=1e-4, atol=1e-7, err_msg=key)


def test_does_not_depend_on_batching() -> None:
    model, shape = tiny()
    proxy = TensorProxy(images(9))
    a = KL(image_batch=9, memory_mb=64).attribute(adapt(model, shape), proxy)
    b = KL(image_batch=2, memory_mb=0).attribute(adapt(model, shape), proxy)
    for key in a.values:
        np.testing.assert_allclose(a.values[key], b.values[key], rtol=1e-9, atol=1e-13)
        np.testing.assert_allclose(a.stderr[key], b.stderr[key], rtol=1e-7, atol=1e-12)


def test_standard_error_is_that_of_a_sum_over_images() -> None:
    model, shape = tiny()
    x = images(7)
    record = KL().attribute(adapt(model, shape), TensorProxy(x))
    each = np.stack([reference.kl_scores(model, x[i : i + 1], only="ffn.1")["ffn.1"].numpy() for i in range(7)])
    np.testing.assert_allclose(record.stderr["ffn.1"], each.std(0, ddof=1) * 7**0.5, rtol=1e-9)


def test_a_killed_run_goes_on_and_gives_the_same_numbers(tmp_path) -> None:
    model, shape = tiny()
    proxy, journal = TensorProxy(images(8)), tmp_path / "journal.jsonl"
    whole = KL(image_batch=3).attribute(adapt(model, shape), proxy)
    seen = []

    def stop(progress) -> None:
        seen.append(progress.done)
        if len(seen) == 8:
            raise Cancelled("stopped by the test")

    with pytest.raises(Cancelled):
        KL(image_batch=3, journal=journal).attribute(adapt(model, shape), proxy, stop)
    with journal.open("ab") as file:
        file.write(b'{"piece": "1/ffn.0/0-63/64", "sum": [0.1')
    first = []
    resumed = KL(image_batch=3, journal=journal).attribute(adapt(model, shape), proxy, first.append)
    assert first[0].done > seen[-1], "finished pieces were computed again"
    for key in whole.values:
        assert np.array_equal(whole.values[key], resumed.values[key])
    assert all(json.loads(line) for line in journal.read_text().splitlines())


def test_a_journal_of_another_model_is_refused(tmp_path) -> None:
    journal = tmp_path / "journal.jsonl"
    for variant in ("class token", "distilled"):
        model, shape = tiny(variant)
        criterion = KL(journal=journal)
        if variant == "class token":
            criterion.attribute(adapt(model, shape), TensorProxy(images()))
        else:
            with pytest.raises(ScoresError, match="another model"):
                criterion.attribute(adapt(model, shape), TensorProxy(images()))


def test_halves_a_batch_that_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    model, shape = tiny()
    adapter = adapt(model, shape)
    expected = KL().attribute(adapter, TensorProxy(images()))
    run_from, sizes = adapter.run_from, []

    def limited(block, x, *norm):
        sizes.append(len(x))
        if len(x) > 20:
            raise torch.OutOfMemoryError("out of memory")
        return run_from(block, x, *norm)

    monkeypatch.setattr(adapter, "run_from", limited)
    got = KL().attribute(adapter, TensorProxy(images()))
    assert max(sizes) > 20
    for key in expected.values:
        np.testing.assert_allclose(got.values[key], expected.values[key], rtol=1e-9, atol=1e-13)


def test_time_left_is_right_after_the_first_minute() -> None:
    """On a clock of the test's own, on which every key has its own speed: DeiT-B, 20 images, a CPU's pieces."""
    shape = deit_shape("base")
    keys = list(expected_widths(shape))
    rate = dict(zip(keys, np.random.default_rng(0).uniform(1.2e10, 3.5e10, len(keys)), strict=True))
    for key in keys:
        rate[key] *= {"residual": 0.5, "attention": 0.7, "ffn": 1.0}[key.split(".")[0]]
    criterion, limit = KL(), PIECE_MACS["cpu"]
    size = _image_batch(shape, limit)
    batches = [criterion._pieces(shape, b, size, limit) for b in range(20 // size)]
    totals = dict.fromkeys(keys, 0.0)
    for piece in (piece for batch in batches for piece in batch):
        totals[piece.key] += piece.cost
    now, seen = [0.0], []
    clock = Clock(sum(totals.values()), "MACs", seen.append, totals=totals, now=lambda: now[0])
    moments = []
    for piece in (piece for batch in batches for piece in batch):
        now[0] += piece.cost / rate[piece.key]
        clock.advance(piece.cost, "", piece.key)
        moments.append(now[0])
    end = now[0]
    assert end > 3600
    after = [i for i, moment in enumerate(moments) if moment > 60]
    for i in after[: len(after) // 2]:
        assert seen[i].seconds_left == pytest.approx(end - moments[i], rel=0.25)
    assert seen[-1].seconds_left == pytest.approx(0, abs=1e-3)


def test_a_cancel_waits_for_one_piece_of_at_most_seconds() -> None:
    """No piece holds more than its limit of work, and no batch makes one pass longer than that; at any size."""
    for variant in ("tiny", "base"):
        shape = deit_shape(variant)
        for limit in PIECE_MACS.values():
            size = _image_batch(shape, limit)
            pieces = KL()._pieces(shape, 0, size, limit)
            assert max(piece.cost for piece in pieces) <= limit
            assert sorted(c for p in pieces if p.key == "ffn.3" for c in p.channels) == list(range(shape.blocks[3].ffn))


def test_leaves_the_model_as_it_was() -> None:
    model, shape = tiny()
    model.train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    try:
        KL().attribute(adapt(model, shape), TensorProxy(images(2)))
        assert model.training
        assert all(p.requires_grad for p in model.parameters())
        assert all(not m._forward_hooks and not m._forward_pre_hooks for m in model.modules())
        assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    finally:
        model.eval()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_kl_is_of_float64_whatever_the_logits_and_never_clipped(dtype: torch.dtype) -> None:
    logits = (4 * torch.randn(400, 10, generator=torch.Generator().manual_seed(0))).to(dtype)
    near = logits.double() + 1e-3 * torch.randn(400, 10, generator=torch.Generator().manual_seed(1))
    log_q, log_p = log_softmax(logits), near - near.exp().sum(-1, keepdim=True).log()
    assert log_q.dtype == torch.float64
    np.testing.assert_allclose(kl_divergence(log_q, near), (log_q.exp() * (log_q - log_p)).sum(-1), atol=1e-13)
    same = kl_divergence(log_q, logits.double() + 1e-12 * (near - logits))  # but for rounding errors, of either sign
    assert (same < 0).any()
    assert same.abs().max() < 1e-14
