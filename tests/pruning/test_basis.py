import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from tests.support.tiny import VARIANTS, TensorProxy, images, tiny
from upvit_core.errors import PlanError, ScoresError, UnsupportedModelError
from upvit_core.models.build import adapt, build_model, shape_of
from upvit_core.planning.ratios import plan_uniform
from upvit_core.pruning.basis import basis_for, collect_statistics, directions_scores, fold, prune_directions
from upvit_core.pruning.basis.fold import state_of
from upvit_core.pruning.basis.heads import alike
from upvit_core.pruning.basis.residual import embedding
from upvit_core.pruning.basis.scores import whole_plan
from upvit_core.pruning.basis.slice import Basis, channel_basis
from upvit_core.records.plan import Kept
from upvit_core.records.shape import deit_shape

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}


def statistics_of(variant="class token", dtype=torch.float64, count=24, **settings):
    model, shape = tiny(variant, dtype)
    return collect_statistics(adapt(model, shape), TensorProxy(images(count, dtype)), batch_size=8, **settings)


def relative_change(model, other, x):
    with torch.no_grad():
        before, after = model(x), other(x)
    return float((before - after).abs().max() / before.abs().max())


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("variant", VARIANTS)
def test_fold_leaves_logits(variant, dtype):
    model, shape = tiny(variant, dtype)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    folded = fold(model, shape)
    assert relative_change(model, folded, images(dtype=dtype)) < TOLERANCE[dtype]
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert shape_of(folded, shape.name) == shape


@pytest.mark.parametrize("variant", VARIANTS)
def test_folded_stream_is_mean_free_and_norms_are_plain(variant):
    model, shape = tiny(variant)
    folded = fold(model, shape)
    seen = []
    handles = [block.register_forward_hook(lambda _, __, out: seen.append(out)) for block in folded.blocks]
    with torch.no_grad():
        folded(images())
    for handle in handles:
        handle.remove()
    assert max(float(x.mean(-1).abs().max()) for x in seen) < 1e-12
    assert all(torch.equal(block.norm2.weight, torch.ones(shape.embed_dim).double()) for block in folded.blocks)


def test_fold_refuses_what_it_cannot_keep():
    model, shape = tiny("no qkv bias, layer scale")
    dead = build_model(shape).double()
    dead.load_state_dict(model.state_dict())
    with torch.no_grad():
        dead.blocks[1].norm1.weight[3] = 0
    with pytest.raises(UnsupportedModelError, match=r"blocks.1.norm1.weight\[3\] is 0"):
        fold(dead, shape)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_direction_and_every_factor_leave_logits_alone_and_together(variant, dtype):
    model, shape = tiny(variant, dtype)
    plan, stats = whole_plan(shape), statistics_of(variant, dtype)
    turned, plain = basis_for(plan, stats), channel_basis(plan)
    x = images(dtype=dtype, seed=5)
    for basis in (turned, Basis(turned.embedding, plain.heads), Basis(plain.embedding, turned.heads)):
        whole = prune_directions(model, shape, plan, stats, basis)
        assert relative_change(model, whole, x) < TOLERANCE[dtype]
        changed = max(
            float((a - b).detach().abs().max()) for a, b in zip(model.parameters(), whole.parameters(), strict=True)
        )
        assert changed > 0.01


@pytest.mark.parametrize(("D", "k"), [(16, 2), (16, 9), (16, 16), (12, 5)])
def test_embedding_keeps_mean_free_streams_mean_free(D, k):
    generator = torch.Generator().manual_seed(0)
    constant = torch.full((D, 1), D**-0.5, dtype=torch.float64)
    random = torch.randn(D, D - 1, generator=generator, dtype=torch.float64)
    P = torch.linalg.qr(random - constant @ (constant.T @ random))[0][:, : k - 1]
    E = embedding(P)
    assert torch.allclose(E.T @ E, torch.eye(k).double(), atol=1e-12)
    assert torch.allclose(E.sum(1), torch.full((D,), math.sqrt(k / D)).double(), atol=1e-12)
    x = torch.randn(7, D, generator=generator, dtype=torch.float64)
    x = x - x.mean(-1, keepdim=True)
    assert (x @ E).mean(-1).abs().max() < 1e-12
    assert torch.allclose((x @ E).norm(dim=-1), (x @ P).norm(dim=-1))


def slow_moments(model, shape, x):
    """Second moments and output gradients by brute force: one image and one eigenvector at a time, with hooks."""
    folded = fold(model, shape)
    sums = {}

    def add(name, rows):
        for row in rows.reshape(-1, rows.shape[-1]):
            sums[name] = sums.get(name, 0) + torch.outer(row, row)

    for image in x:
        kept = {}
        handles = []
        for b, block in enumerate(folded.blocks):
            for name, module in ((f"n1.{b}", block.norm1), (f"n2.{b}", block.norm2), (f"qkv.{b}", block.attn.qkv),
                                 (f"proj.{b}", block.attn.proj), (f"fc1.{b}", block.mlp.fc1),
                                 (f"fc2.{b}", block.mlp.fc2)):  # fmt: skip
                handles.append(
                    module.register_forward_hook(lambda _, i, o, n=name, kept=kept: kept.update({n: (i[0], o)}))
                )
        handles.append(folded.head.register_forward_hook(lambda _, i, o, kept=kept: kept.update(head=(i[0], o))))
        logits = folded(image[None])
        for handle in handles:
            handle.remove()
        q = logits[0].detach().softmax(-1)
        values, vectors = torch.linalg.eigh(torch.diag(q) - torch.outer(q, q))
        for b in range(shape.depth):
            T = slice(0, shape.head_tokens) if b == shape.depth - 1 and shape.head_tokens else slice(None)
            query, key, _ = kept[f"qkv.{b}"][1][0].detach().chunk(3, -1)
            add(f"query.{b}", query[T])
            add(f"key.{b}", key - key.mean(0))
            add(f"mixed.{b}", kept[f"proj.{b}"][0][0, T].detach())
            hidden = kept[f"fc2.{b}"][0][0, T].detach()
            add(f"hidden.{b}", torch.cat([hidden, torch.ones(len(hidden), 1).double()], 1))
            stream = folded.blocks[b]
            add(f"reader.{2 * b}", kept[f"n1.{b}"][1][0].detach() - stream.norm1.bias.detach())
            add(f"reader.{2 * b + 1}", kept[f"n2.{b}"][1][0, T].detach())
            for r in (-1, -2):
                u = vectors[:, r] * values[r].sqrt()
                scalar = (u * logits[0]).sum()
                for name, tensor in ((f"reader_gradient.{2 * b}", kept[f"n1.{b}"][1]),
                                     (f"reader_gradient.{2 * b + 1}", kept[f"n2.{b}"][1]),
                                     (f"mixed_gradient.{b}", kept[f"proj.{b}"][0]),
                                     (f"written_gradient.{b}", kept[f"fc2.{b}"][1])):  # fmt: skip
                    add(name, torch.autograd.grad(scalar, tensor, retain_graph=True)[0])
                gradient = torch.autograd.grad(scalar, kept[f"qkv.{b}"][1], retain_graph=True)[0][0]  # (N, 3A)
                tokens = [("proj", kept[f"proj.{b}"][1]), ("fc1", kept[f"fc1.{b}"][1]), ("fc2", kept[f"fc2.{b}"][1])]
                parts = dict(zip("qkv", gradient.chunk(3, -1), strict=True))
                parts |= {n: torch.autograd.grad(scalar, t, retain_graph=True)[0][0] for n, t in tokens}
                for part, g in parts.items():
                    squares = (g[T] if part not in "kv" else g).square().sum(-1)
                    sums[f"token {part}.{b}"] = sums.get(f"token {part}.{b}", 0) + squares
    return sums


@pytest.mark.parametrize("variant", ["class token", "average pool", "no qkv bias, layer scale"])
def test_statistics_equal_brute_force_whatever_the_batch(variant):
    model, shape = tiny(variant)
    x = images(5)
    found = collect_statistics(adapt(model, shape), TensorProxy(x), batch_size=2)
    other = collect_statistics(adapt(model, shape), TensorProxy(x), batch_size=5)
    slow = slow_moments(model, shape, x)
    for name, gram in found.grams.items():
        scale = gram.abs().max() + 1e-30
        assert torch.allclose(other.grams[name] / scale, gram / scale, atol=1e-10)
        if name in slow and not (shape.layer_scale and "gradient" in name and "written" in name):
            assert torch.allclose(slow[name] / scale, gram / scale, atol=1e-9), name
    for name, squares in found.token_gradients.items():
        assert torch.allclose(slow[f"token {name}"], squares, rtol=1e-8), name
    assert len(slow) >= 16 * shape.depth


def reference_logits(model, shape, stats, plan, x):
    """The cut model the slow way: D-wide tensors, projections in place of slices, one head and one query at a time."""
    basis = basis_for(plan, stats)
    E, k = basis.embedding, len(plan.residual.keep)
    D = shape.embed_dim
    onto = E @ E.T
    state = stats.state

    def rms_norm(stream, site):
        C = stats.grams[f"reader.{site}"]
        gamma = (torch.trace(E.T @ C @ E) / k / (torch.trace(C) / D)).sqrt()
        return gamma * stream / ((stream.square().sum(-1, keepdim=True) / k) + shape.norm_eps).sqrt()

    def linear(name, value):
        return value @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    result = []
    for image in x:
        p = shape.patch_size[0]
        patches = image.unfold(1, p, p).unfold(2, p, p).permute(1, 2, 0, 3, 4).reshape(-1, 3 * p * p)
        stream = patches @ state["patch_embed.proj.weight"].flatten(1).T + state["patch_embed.proj.bias"]
        stream = (torch.cat([state["cls_token"][0], stream]) + state["pos_embed"][0]) @ onto
        for b, (block, maps) in enumerate(zip(plan.blocks, basis.heads, strict=True)):
            q, key, v = linear(f"blocks.{b}.attn.qkv", rms_norm(stream, 2 * b)).chunk(3, -1)
            heads, rank = block.attention.heads, len(block.attention.keep) // block.attention.heads
            out = torch.zeros_like(q)
            for h in range(heads):
                rows = slice(h * rank, (h + 1) * rank)
                for i in range(len(q)):
                    logit = torch.stack([(maps.query[rows] @ q[i]) @ (maps.key[rows] @ row) for row in key])
                    attention = (logit / rank**0.5).softmax(0)
                    out[i] += maps.output[:, rows] @ (maps.value[rows] @ (attention @ v))
            stream = stream + linear(f"blocks.{b}.attn.proj", out) @ onto
            hidden = F.gelu(linear(f"blocks.{b}.mlp.fc1", rms_norm(stream, 2 * b + 1)))
            mask = torch.zeros_like(hidden)
            mask[:, list(block.ffn.keep)] = 1
            stream = stream + linear(f"blocks.{b}.mlp.fc2", hidden * mask) @ onto
        result.append(linear("head", rms_norm(stream, 2 * shape.depth)[0]))
    return torch.stack(result)


@pytest.mark.parametrize("heads", [4, 2])
@pytest.mark.parametrize("ratio", [0.25, 0.5, 0.75])
def test_slicing_equals_the_slow_way(ratio, heads):
    model, shape = tiny()
    stats = statistics_of()
    scores = directions_scores(adapt(model, shape), TensorProxy(images(8)), stats)
    plan = plan_uniform(scores, residual=ratio, attention=ratio, ffn=ratio, heads=heads, basis="directions")
    thin = prune_directions(model, shape, plan, stats)
    assert shape_of(thin, shape.name) == plan.shape_after
    x = images(3, seed=9)
    with torch.no_grad():
        assert torch.allclose(thin(x), reference_logits(model, shape, stats, plan, x), atol=1e-10)


def test_merged_heads_of_full_width_average_their_logits():
    shape = tiny()[1]
    stats = statistics_of()
    whole = whole_plan(shape)
    blocks = tuple(
        b.model_copy(update={"attention": b.attention.model_copy(update={"heads": 2})}) for b in whole.blocks
    )
    maps = basis_for(whole.model_copy(update={"blocks": blocks}), stats).heads[0]
    groups, weights = alike(stats, 0, 2)
    q, k = torch.randn(2, 16, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    merged = ((maps.query @ q) * (maps.key @ k)).unflatten(0, (2, 8)).sum(1) / 8**0.5
    own = (q * k).unflatten(0, (4, 4)).sum(-1) / 4**0.5
    expected = [float((weights[g] * own[g]).sum() / weights[g].sum()) for g in groups]
    assert merged.tolist() == pytest.approx(expected)
    assert torch.allclose(maps.output @ maps.value, torch.eye(16).double(), atol=1e-8)


@pytest.mark.parametrize("block", [0, 1, 2])
def test_heads_that_attend_most_alike_are_merged(block):
    """Against every way of pairing, each paid for by logits of random tokens with the gathered second moments."""
    stats = statistics_of()
    generator = torch.Generator().manual_seed(1)
    Q, K = (
        torch.randn(4000, 16, generator=generator, dtype=torch.float64)
        @ torch.linalg.cholesky(stats.mean(f"{name}.{block}") + 1e-9 * torch.eye(16).double()).T
        for name in ("query", "key")
    )
    logits = (Q * K).unflatten(1, (4, 4)).sum(-1)  # (4000, heads) of independent queries and keys
    groups, weights = alike(stats, block, 2)
    importance = [
        float(torch.trace(stats.mean(f"mixed.{block}")[h, h] @ stats.grams[f"mixed_gradient.{block}"][h, h]))
        for h in (slice(4 * i, 4 * i + 4) for i in range(4))
    ]
    assert weights.tolist() == pytest.approx(importance)

    def cost(pairs):
        total = 0.0
        for pair in pairs:
            own, w = logits[:, pair], weights[pair]
            mean = (own * w).sum(1, keepdim=True) / w.sum()
            total += float((w * (own - mean) ** 2).sum(1).mean())
        return total

    every = [[[0, 1], [2, 3]], [[0, 2], [1, 3]], [[0, 3], [1, 2]]]
    assert sorted(map(sorted, groups)) in every
    assert cost(groups) <= min(map(cost, every)) * 1.1


@pytest.mark.parametrize("variant", VARIANTS)
def test_direction_scores_make_plans_that_cut(variant):
    model, shape = tiny(variant)
    proxy = TensorProxy(images(12))
    stats = collect_statistics(adapt(model, shape), proxy)
    scores = directions_scores(adapt(model, shape), proxy, stats)
    assert scores.basis == "directions"
    assert (np.diff(scores.residual) <= 1e-12).all()
    heads = shape.blocks[0].num_heads
    assert all((np.diff(scores.attention(b).reshape(heads, -1)) <= 1e-12).all() for b in range(shape.depth))
    plan = plan_uniform(scores, residual=0.5, attention=0.5, ffn=0.5, basis="directions", snap=True)
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
        q = model(proxy.tensor).log_softmax(-1)
        residual = whole.model_copy(update={"residual": Kept(keep=(*range(4), *range(5, 12)))})
        p = prune_directions(model, shape, residual, stats)(proxy.tensor).log_softmax(-1)
        assert scores.residual[4] == pytest.approx(float((q.exp() * (q - p)).sum()), rel=1e-6)
        rotated = prune_directions(model, shape, whole, stats)
        rotated.blocks[2].mlp.fc2.weight[:, 7] = 0
        p = rotated(proxy.tensor).log_softmax(-1)
        assert scores.ffn(2)[7] == pytest.approx(float((q.exp() * (q - p)).sum()), rel=1e-6)


def test_the_same_images_give_the_same_basis_bit_for_bit():
    one, two = statistics_of(), statistics_of()
    assert torch.equal(one.directions, two.directions)
    assert all(torch.equal(one.grams[name], two.grams[name]) for name in one.grams)


def test_errors_name_what_is_wrong():
    model, shape = tiny()
    stats = statistics_of()
    plan = whole_plan(shape)
    with pytest.raises(PlanError, match="keeps channels, not directions"):
        prune_directions(model, shape, plan.model_copy(update={"basis": "channels"}), stats)
    with pytest.raises(PlanError, match="entry 0 of the residual"):
        prune_directions(model, shape, whole_plan(shape, (1, 2, 3)), stats)
    other, other_shape = tiny("3 heads, 5 blocks")
    with pytest.raises(PlanError, match="was made for"):
        prune_directions(other, other_shape, plan, stats)
    with pytest.raises(ScoresError, match="not 'l1'"):
        directions_scores(adapt(model, shape), TensorProxy(images(2)), stats, "l1")


def test_the_source_is_not_touched():
    model, shape = tiny()
    before = state_of(model)
    stats = statistics_of()
    directions_scores(adapt(model, shape), TensorProxy(images(4)), stats)
    prune_directions(model, shape, whole_plan(shape), stats)
    assert all(torch.equal(before[name], tensor) for name, tensor in state_of(model).items())


def test_a_few_directions_with_most_of_the_energy_leave_the_moments_of_float32_definite():
    """At DeiT's widths, with few images, products in float32 lose the directions of little energy."""
    whole = deit_shape("tiny")
    shape = replace(whole, blocks=whole.blocks[:2])
    model = build_model(shape, seed=0).eval()
    proxy = TensorProxy(torch.randn(4, 3, 224, 224, generator=torch.Generator().manual_seed(0)))
    moments = collect_statistics(adapt(model, shape), proxy, metric="both").readers()[0]
    values = [torch.linalg.eigvalsh(matrix) for matrix in moments[:-1]]
    assert max(float(v[-1] / v.mean()) for v in values) > 50
    for v in values:
        assert v[0] > -1e-12 * v[-1]
