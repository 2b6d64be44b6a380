"""The fold leaves the function alone and makes norms plain."""

from dataclasses import replace

import pytest
import torch

from tests.support.basis import TOLERANCE, relative_change
from tests.support.tiny import ROTATED, images, tiny
from upvit_core.errors import UnsupportedModelError
from upvit_core.models.build import build_model, shape_of
from upvit_core.pruning.basis import fold


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("variant", ROTATED)
def test_fold_leaves_logits(variant, dtype):
    model, shape = tiny(variant, dtype)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    folded = fold(model, shape)
    assert relative_change(model, folded, images(dtype=dtype)) < TOLERANCE[dtype]
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert shape_of(folded, shape.name) == replace(shape, structure=replace(shape.structure, timm=""))


@pytest.mark.parametrize("variant", ROTATED)
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


@pytest.mark.parametrize("variant", ["norm before the blocks", "features, norm before"])
def test_a_residual_that_cannot_be_rotated_is_refused(variant):
    with pytest.raises(UnsupportedModelError, match="cannot be rotated"):
        fold(*tiny(variant))
