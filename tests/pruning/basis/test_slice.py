"""Slicing along directions, against a slow forward pass of the source."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from tests.support.basis import TOLERANCE, relative_change, statistics_of
from tests.support.tiny import ROTATED, TensorProxy, images, tiny
from upvit_core.errors import PlanError, ScoresError
from upvit_core.models.build import adapt, shape_of
from upvit_core.planning.ratios import Ratios, plan_uniform
from upvit_core.pruning.basis import basis_for, directions_scores, prune_directions
from upvit_core.pruning.basis.fold import state_of
from upvit_core.pruning.basis.scores import whole_plan
from upvit_core.pruning.basis.slice import CutBasis, channel_basis


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("variant", ROTATED)
def test_every_direction_and_every_factor_leave_logits_alone_and_together(variant, dtype):
    model, shape = tiny(variant, dtype)
    plan, stats = whole_plan(shape), statistics_of(variant, dtype)
    turned, plain = basis_for(plan, stats), channel_basis(plan)
    x = images(dtype=dtype, seed=5)
    for basis in (turned, CutBasis(turned.embedding, plain.heads), CutBasis(plain.embedding, turned.heads)):
        whole = prune_directions(model, shape, plan, stats, basis)
        assert relative_change(model, whole, x) < TOLERANCE[dtype]
        changed = max(
            float((a - b).detach().abs().max()) for a, b in zip(model.parameters(), whole.parameters(), strict=True)
        )
        assert changed > 0.01


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
        if shape.class_token:
            stream = torch.cat([state["cls_token"][0], stream])
        stream = (stream + state["pos_embed"][0]) @ onto
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
            hidden = linear(f"blocks.{b}.mlp.fc1", rms_norm(stream, 2 * b + 1))
            if shape.structure.gate:
                gate, value = hidden.chunk(2, -1)
                hidden = gate / (1 + torch.exp(-gate)) * value
            else:
                hidden = F.gelu(hidden)
            mask = torch.zeros_like(hidden)
            mask[:, list(block.ffn.keep)] = 1
            stream = stream + linear(f"blocks.{b}.mlp.fc2", hidden * mask) @ onto
        read = rms_norm(stream, 2 * shape.depth)
        result.append(linear("head", pooled_slowly(model.attn_pool, read, linear) if shape.structure.pool else read[0]))
    return torch.stack(result)


def pooled_slowly(pool, read, linear):
    """Attention pooling of the tokens (N, D), head by head, to (D,)."""
    query = linear("attn_pool.q", pool.latent[0, 0])
    keys, values = linear("attn_pool.kv", read).chunk(2, -1)
    out, d = torch.zeros_like(query), len(query) // pool.num_heads
    for h in range(pool.num_heads):
        rows = slice(h * d, (h + 1) * d)
        out[rows] = (keys[:, rows] @ query[rows] / d**0.5).softmax(0) @ values[:, rows]
    out = linear("attn_pool.proj", out)
    return out + pool.mlp(pool.norm(out))


@pytest.mark.parametrize(
    ("ratio", "heads", "variant"),
    [*((ratio, heads, "class token") for ratio in (0.25, 0.5, 0.75) for heads in (4, 2)), (0.5, 2, "gated FFN"),
     (0.5, 2, "attention pooling")],
)  # fmt: skip
def test_slicing_equals_the_slow_way(ratio, heads, variant):
    model, shape = tiny(variant)
    stats = statistics_of(variant)
    scores = directions_scores(adapt(model, shape), TensorProxy(images(8)), stats)
    plan = plan_uniform(scores, Ratios.equal(ratio), heads=heads, basis="directions")
    thin = prune_directions(model, shape, plan, stats)
    read, after = shape_of(thin, shape.name), plan.shape_after
    assert read == replace(after, structure=replace(after.structure, timm=""))
    x = images(3, seed=9)
    with torch.no_grad():
        assert torch.allclose(thin(x), reference_logits(model, shape, stats, plan, x), atol=1e-10)


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
    with pytest.raises(ScoresError, match="not by 'l1'"):
        directions_scores(adapt(model, shape), TensorProxy(images(2)), stats, "l1")


def test_the_source_is_not_touched():
    model, shape = tiny()
    before = state_of(model)
    stats = statistics_of()
    directions_scores(adapt(model, shape), TensorProxy(images(4)), stats)
    prune_directions(model, shape, whole_plan(shape), stats)
    assert all(torch.equal(before[name], tensor) for name, tensor in state_of(model).items())
