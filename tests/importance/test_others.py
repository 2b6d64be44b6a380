"""Magnitude, Taylor, variance, random, refine, agreement, and the record on disk."""

import numpy as np
import pytest
import torch
from scipy import stats

from tests.support.tiny import VARIANTS, TensorProxy, images, tiny
from upvit_core.errors import ScoresError
from upvit_core.importance.activation import Activation
from upvit_core.importance.agreement import compare, spearman, uncertain
from upvit_core.importance.criterion import Request
from upvit_core.importance.fisher import Fisher
from upvit_core.importance.kl import KL
from upvit_core.importance.magnitude import Magnitude, Random
from upvit_core.importance.refine import Refine, cut_of, default_cuts
from upvit_core.importance.score import make_criterion
from upvit_core.models.build import adapt
from upvit_core.planning.ratios import Ratios, plan_uniform
from upvit_core.records.criteria import CRITERIA
from upvit_core.records.scores import ImportanceScores


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("order", [1, 2])
def test_magnitude_is_what_zeroing_the_channel_takes_away(variant: str, order: int) -> None:
    model, shape = tiny(variant)
    got = Magnitude(order).attribute(adapt(model, shape))
    state, D, A = model.state_dict(), shape.embed_dim, shape.blocks[1].attention
    c = 3

    def total(mask) -> float:
        return sum(float((tensor.abs() ** order)[mask(name, tensor)].sum()) for name, tensor in state.items())

    def ffn(name, tensor):
        chosen = torch.zeros_like(tensor, dtype=torch.bool)
        if name.startswith("blocks.1.mlp.fc1"):
            chosen[c] = True
        if name == "blocks.1.mlp.fc2.weight":
            chosen[:, c] = True
        return chosen

    def attention(name, tensor):
        chosen = torch.zeros_like(tensor, dtype=torch.bool)
        if name.startswith("blocks.1.attn.qkv"):
            chosen[[c, A + c, 2 * A + c]] = True
        if name == "blocks.1.attn.proj.weight":
            chosen[:, c] = True
        return chosen

    for key, mask in (("ffn.1", ffn), ("attention.1", attention)):
        assert got.values[key][c] == pytest.approx(total(mask) ** (1 / order), rel=1e-9)
    assert len(got.residual) == D
    assert (got.residual > 0).all()


def test_taylor_and_variance_against_a_slow_way() -> None:
    model, shape = tiny()
    x = images(6)
    taylor, variance = (
        Activation(name, 4).attribute(adapt(model, shape), TensorProxy(x)) for name in ("taylor", "variance")
    )
    hidden = []
    handle = model.blocks[1].mlp.act.register_forward_hook(lambda m, i, out: hidden.append(out))
    expected = torch.zeros(shape.blocks[1].ffn, dtype=torch.float64)
    for i in range(6):
        hidden.clear()
        loss = torch.nn.functional.cross_entropy(model(x[i : i + 1]), torch.tensor([i % 4 % 5]))
        gradient = torch.autograd.grad(loss, hidden[0])[0]
        expected += (gradient * hidden[0])[0].sum(0).abs().detach()
    hidden.clear()
    model(x)
    handle.remove()
    np.testing.assert_allclose(taylor.ffn(1), expected.numpy(), rtol=1e-9)
    np.testing.assert_allclose(
        variance.ffn(1), hidden[0].detach().flatten(0, 1).var(0, correction=0).numpy(), rtol=1e-9
    )


def test_refine_is_exact_where_it_says_and_spends_no_more_than_allowed() -> None:
    model, shape = tiny("3 heads, 5 blocks")
    proxy, adapter = TensorProxy(images(12)), adapt(model, shape)
    exact = KL().attribute(adapter, proxy)
    updates, progress = [], []
    refine = Refine(default_cuts(shape), allowance=0.3, on_update=updates.append)
    got = refine.attribute(adapter, proxy, progress.append)
    assert 0.2 < got.notes["exact_share"] <= 0.3
    shares = [u.notes["exact_share"] for u in updates]
    assert shares == sorted(shares)
    assert shares[0] == 0, "the estimate is shown before the first exact pass"
    assert len(updates) > 6
    fast = Fisher().attribute(adapter, proxy)
    assert all(np.array_equal(updates[0].values[key], fast.values[key]) for key in fast.values)
    for key, channels in got.notes["exact_channels"].items():
        np.testing.assert_allclose(got.values[key][channels], exact.values[key][channels], rtol=1e-9, atol=1e-13)
    assert all(p.unit == "exact passes" for p in progress[-5:])
    assert [p.done for p in progress[1:]] == sorted(p.done for p in progress[1:])
    same = sum(
        int((np.abs(got.values[k] - exact.values[k]) <= 1e-9 * np.abs(exact.values[k]) + 1e-13).sum())
        for k in exact.values
    )
    assert same >= sum(got.notes["exact"].values())
    np.testing.assert_allclose(got.residual, exact.residual, rtol=1e-9)
    plans = [plan_uniform(s, Ratios(ffn=0.5)) for s in (exact, got)]
    assert compare(exact, got, *plans)[2].overlap > 0.95


def test_spearman_equals_scipy_with_ties() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 9, 60).astype(float), rng.random(60)
    assert spearman(a, b) == pytest.approx(stats.spearmanr(a, b)[0])
    assert spearman(a, a) == pytest.approx(1)


def test_random_is_by_seed_and_leaves_the_global_generator_alone() -> None:
    model, shape = tiny()
    torch.manual_seed(5)
    state = torch.get_rng_state()
    a, b, c = (Random(seed).attribute(adapt(model, shape)) for seed in (0, 0, 1))
    assert a.digest == b.digest != c.digest
    assert torch.equal(state, torch.get_rng_state())


def test_record_round_trip_and_refusals(tmp_path) -> None:
    model, shape = tiny("distilled")
    record = KL().attribute(adapt(model, shape), TensorProxy(images(3)))
    path = tmp_path / "scores.safetensors"
    record.save(path)
    again = ImportanceScores.load(path)
    assert again.digest == record.digest
    assert again.shape == record.shape
    assert again.unit == "nats, summed over images"
    assert all(np.array_equal(again.stderr[key], record.stderr[key]) for key in record.stderr)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ScoresError, match="not a readable scores record"):
        ImportanceScores.load(path)
    with pytest.raises(ScoresError, match="no scores file"):
        ImportanceScores.load(tmp_path / "none")
    with pytest.raises(ScoresError, match="NaN"):
        record.with_values({"residual": np.full(shape.embed_dim, np.nan)})
    with pytest.raises(ScoresError, match="lack"):
        ImportanceScores(values={}, criterion="kl", unit="", shape=shape)


def test_every_criterion_has_a_name_and_an_unknown_one_is_refused() -> None:
    _, shape = tiny()
    request = Request(shape)
    assert [make_criterion(name, request).name for name in CRITERIA] == list(CRITERIA)
    with pytest.raises(ScoresError, match="choose one of"):
        make_criterion("best", request)


def test_undecided_channels_are_those_whose_errors_reach_the_cut() -> None:
    model, shape = tiny()
    exact = KL().attribute(adapt(model, shape), TensorProxy(images(8)))
    plan = plan_uniform(exact, Ratios(0.5, 0.5, 0.25), heads=2)
    found = uncertain(exact, plan)
    assert found["residual"][1] == shape.embed_dim
    kept, count = [set(plan.kept(f"attention.{b}")) for b in range(shape.depth)], 0
    for b, keep in enumerate(kept):
        values, errors = exact.attention(b), exact.stderr[f"attention.{b}"]
        for half in (range(8), range(8, 16)):
            cut = (min(values[c] for c in half if c in keep) + max(values[c] for c in half if c not in keep)) / 2
            count += sum(abs(values[c] - cut) < 2 * errors[c] for c in half)
    assert found["attention"] == (count, 16 * shape.depth)
    assert uncertain(exact.with_values({}, stderr={}), plan) == {}
    everything = uncertain(exact, plan, errors=1e9)
    assert all(channels == of for channels, of in everything.values())
    assert uncertain(exact, plan_uniform(exact), errors=1e9)["ffn"][0] == 0, "nothing is cut"


def test_the_cut_of_a_plan_keeps_its_widths() -> None:
    model, shape = tiny()
    exact = Magnitude().attribute(adapt(model, shape))
    plan = plan_uniform(exact, Ratios(0.5, 0.5, 0.25), heads=2)
    groups = cut_of(plan).groups
    assert groups["residual"] == (1, 8)
    assert groups["attention.1"] == (2, 4)
    assert groups["ffn.2"] == (1, 48)
