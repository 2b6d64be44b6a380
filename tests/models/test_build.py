"""A model built from its shape is timm's; what is not understood of a live model is named."""

from dataclasses import replace

import pytest
import timm
import torch
from torch import nn

from tests.support.checkpoints import UNEVEN, logits
from tests.support.errors import refused
from tests.support.tiny import VARIANTS, tiny
from upvit_core.errors import UnsupportedModelError
from upvit_core.models.build import expected_tensors
from upvit_core.models.checkpoint import build_model, shape_of
from upvit_core.records.known_shapes import deit_shape
from upvit_core.records.shape import BlockShape


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_built_model_computes_what_timms_does(variant: str) -> None:
    model, shape = tiny(variant, torch.float32)
    built = build_model(shape)
    built.load_state_dict(model.state_dict())
    assert torch.equal(logits(built.eval()), logits(model))
    assert shape_of(built, shape.name) == shape


@pytest.mark.parametrize("variant", VARIANTS)
def test_expected_tensors_are_those_of_the_model(variant: str) -> None:
    model, shape = tiny(variant, torch.float32)
    assert expected_tensors(shape) == {key: tuple(value.shape) for key, value in model.state_dict().items()}


def test_uneven_widths_are_built_and_read_back() -> None:
    model = build_model(UNEVEN)
    assert shape_of(model, "uneven") == UNEVEN
    assert model(torch.zeros(1, 2, 16, 24)).shape == (1, 3)


def test_building_draws_by_seed_and_leaves_the_global_generator_alone() -> None:
    before = torch.random.get_rng_state()
    first, same, other = (build_model(UNEVEN, seed=seed).head.weight for seed in (1, 1, 2))
    assert torch.equal(first, same)
    assert not torch.equal(first, other)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_hidden_width_that_no_ratio_gives_exactly_is_met() -> None:
    for width, hidden in ((49, 7 * 49 // 3), (96, 113), (110, 57), (187, 373)):
        shape = replace(UNEVEN, embed_dim=width, blocks=(BlockShape(1, width, hidden),))
        assert build_model(shape, device="meta").blocks[0].mlp.fc1.out_features == hidden


@pytest.mark.parametrize(
    ("name", "overrides", "part"),
    [
        ("deit_tiny_patch16_224", {"act_layer": "relu"}, "mlp.act"),
        ("deit_tiny_patch16_224", {"attn_layer": "diff"}, "blocks.0.attn"),
        ("vit_tiny_patch16_224", {"global_pool": "max"}, "global_pool"),
        ("vit_tiny_patch16_224", {"global_pool": "avg", "pool_include_prefix": True}, "pool_include_prefix"),
        ("vit_base_patch16_xp_224", {}, "ParallelScalingBlock"),
        ("resnet10t", {}, "ResNet"),
    ],
)
def test_parts_that_are_not_understood_are_named(name: str, overrides: dict[str, object], part: str) -> None:
    small = {"img_size": 16, "patch_size": 8, "embed_dim": 24, "depth": 1, "num_heads": 3}
    model = timm.create_model(name, device="meta", **({**small, **overrides} if "deit" in name or overrides else {}))
    with refused(UnsupportedModelError, part):
        shape_of(model, "it")


def test_one_odd_block_is_found() -> None:
    model = build_model(deit_shape("tiny"), device="meta")
    model.blocks[7].mlp.act = nn.ReLU()
    with pytest.raises(UnsupportedModelError, match=r"blocks\.7\.mlp\.act is ReLU"):
        shape_of(model)
