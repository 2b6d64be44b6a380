import copy

import pytest
import torch

from tests.support.basis import TOLERANCE
from tests.support.elastic import full_width, tiny_elastic
from tests.support.tiny import PARTS, ROTATED, images
from upvit_core.errors import UnsupportedModelError
from upvit_core.models.build import build_model
from upvit_core.pruning.basis.heads import head_factors
from upvit_core.pruning.basis.residual import embedding
from upvit_core.pruning.basis.scores import whole_plan
from upvit_core.pruning.basis.slice import CutBasis, prune_directions
from upvit_core.pruning.elastic import cut_size, ladder_sizes, prefix_plan, prefix_state, size_of
from upvit_core.pruning.elastic.full_width import helmert, nested_embedding
from upvit_core.records.plan import Kept, KeptAttention
from upvit_core.records.ratios import Ratios


def logits(model, x):
    with torch.no_grad():
        return model(x)


def sliced(full, shape, after, scales):
    thin = build_model(after).to(next(full.parameters()).dtype)
    thin.load_state_dict(prefix_state(full.state_dict(), shape, after, scales))
    return thin.eval()


def separate_cut(source, stats, order, after):
    """The cut along the same directions and FFN channels by the surgery of directions, made from the source."""
    whole = whole_plan(stats.shape, tuple(range(after.embed_dim)))
    blocks = []
    for b, (block, own) in enumerate(zip(whole.blocks, after.blocks, strict=True)):
        prefix = prefix_plan(stats.shape, after).blocks[b].attention.keep
        ffn = tuple(sorted(order[b][: own.ffn].tolist()))
        attention = KeptAttention(heads=own.num_heads, keep=prefix)
        blocks.append(block.model_copy(update={"attention": attention, "ffn": Kept(keep=ffn)}))
    plan = whole.model_copy(update={"blocks": tuple(blocks)})
    directions = stats.directions[:, : after.embed_dim - 1]
    factors = tuple(head_factors(stats, block.source, block.attention) for block in plan.blocks)
    return prune_directions(source, stats.shape, plan, stats, CutBasis(embedding(directions), factors))


@pytest.mark.parametrize("n", [2, 3, 7, 96])
def test_helmert_rows_are_orthonormal_and_orthogonal_to_the_constant(n):
    rows = helmert(n)
    assert torch.allclose(rows @ rows.T, torch.eye(n - 1).double(), atol=1e-12)
    assert float(rows.sum(1).abs().max()) < 1e-12
    assert bool((rows.triu(2) == 0).all())


def test_first_channels_of_the_full_embedding_differ_from_a_smaller_one_by_a_multiple_of_the_constant():
    _, _, shape, _, stats, _ = full_width()
    whole = nested_embedding(stats.directions)
    for k in range(2, shape.embed_dim + 1):
        difference = whole[:, :k] - nested_embedding(stats.directions[:, : k - 1])
        assert torch.allclose(difference, difference.mean(1, keepdim=True).expand_as(difference), atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("variant", [name for name in ROTATED if name != "no qkv bias, layer scale"])
def test_the_full_width_model_answers_as_the_original(variant, dtype):
    source, full, *_ = full_width(variant, dtype)
    x = images(6, dtype)
    assert float((logits(full, x) - logits(source, x)).abs().max()) < TOLERANCE[dtype]


def test_a_model_without_qkv_bias_gets_one_and_answers_as_before():
    loaded, made = tiny_elastic("no qkv bias, layer scale")
    assert made.shape.qkv_bias
    assert not loaded.shape.qkv_bias
    x = images(6, torch.float32)
    assert float((logits(made.model, x) - logits(loaded.model, x)).abs().max()) < 1e-5


@pytest.mark.parametrize("variant", [name for name in ROTATED if name != "no qkv bias, layer scale"])
def test_a_slice_equals_the_separately_made_cut(variant):
    source, full, shape, scales, stats, order = full_width(variant)
    x = images(6)
    after = size_of(shape, Ratios(0.25, 0.5, 0.4))
    uneven = shape.with_widths({"residual": 7, "attention.0": shape.blocks[0].num_heads, "ffn.1": 5})
    for size in [*ladder_sizes(shape), after, uneven]:
        expected = logits(separate_cut(source, stats, order, size), x)
        assert float((logits(sliced(full, shape, size, scales), x) - expected).abs().max()) < 1e-9


def test_without_the_scales_a_slice_is_another_model():
    source, full, shape, scales, stats, order = full_width()
    size, x = ladder_sizes(shape)[4], images(6)
    expected = logits(separate_cut(source, stats, order, size), x)
    wrong = sliced(full, shape, size, torch.ones_like(scales))
    assert float((logits(wrong, x) - expected).abs().max()) > 1e-3


def test_gradients_of_a_slice_reach_the_full_width_and_nothing_behind_its_prefix():
    _, full, shape, scales, *_ = full_width()
    size = ladder_sizes(shape)[4]
    full = copy.deepcopy(full).requires_grad_(True)
    state = prefix_state(dict(full.named_parameters()), shape, size, scales)
    torch.func.functional_call(build_model(size).double(), state, (images(4),)).square().sum().backward()
    weight = full.blocks[0].mlp.fc1.weight.grad
    assert bool((weight[: size.blocks[0].ffn, : size.embed_dim] != 0).all())
    assert bool((weight[size.blocks[0].ffn :] == 0).all())
    assert bool((weight[:, size.embed_dim :] == 0).all())


@pytest.mark.parametrize("variant", ["features", *PARTS])
def test_models_of_other_ends_and_ffns_have_every_size_too_and_each_gives_all_outputs(variant):
    loaded, made = tiny_elastic(variant)
    x = images(6, torch.float32)
    assert float((logits(made.model, x) - logits(loaded.model, x)).abs().max()) < 1e-5
    assert made.shape.features == (variant == "features")
    new = images(60, torch.float32, seed=77)

    def change(cut):
        answers = logits(cut, new), logits(loaded.model, new)
        first, second = answers if made.shape.features else (each - each.mean(-1, keepdim=True) for each in answers)
        return float((first - second).square().mean() / second.square().mean())

    for share, most in ((0.25, 0.12), (0.5, 0.2)):
        size = size_of(made.shape, Ratios.equal(share))
        thin, prefix = (cut_size(made.model, made.elastic, size, repair=repair) for repair in (None, False))
        assert logits(thin, x).shape == (6, loaded.shape.outputs)
        assert change(thin) < min(most, change(prefix))


def test_models_whose_residual_cannot_be_rotated_are_refused():
    with pytest.raises(UnsupportedModelError, match="cannot be rotated: a norm writes to its residual"):
        tiny_elastic("norm before the blocks")
