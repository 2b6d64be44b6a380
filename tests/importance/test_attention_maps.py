"""Against a second way: timm's own layers, with the rows of q and k of the channel set to zero in a copy."""

import copy

import pytest
import torch

from tests.support.tiny import images, tiny
from upvit_core.importance.attention_maps import attention_maps
from upvit_core.models.build import adapt


def softmax_of(model: torch.nn.Module, pixels: torch.Tensor, block: int) -> torch.Tensor:
    """(B, heads, N, N), from what enters the block's attention in the model's own forward pass."""
    seen = {}
    own = model.blocks[block].attn
    hook = own.register_forward_pre_hook(lambda module, inputs: seen.update(x=inputs[0]))
    model(pixels)
    hook.remove()
    x = seen["x"]
    width = own.num_heads * own.head_dim
    q, k = (
        part.unflatten(-1, (own.num_heads, -1)).transpose(1, 2) for part in own.qkv(x)[..., : 2 * width].chunk(2, -1)
    )
    return (q @ k.mT * own.scale).softmax(-1)


@torch.no_grad()
@pytest.mark.parametrize("variant", ["class token", "registers"])
@pytest.mark.parametrize(("block", "channel"), [(0, 0), (1, 7), (2, 15)])
def test_maps_are_those_of_a_masked_copy(variant: str, block: int, channel: int) -> None:
    model, shape = tiny(variant)
    found = attention_maps(adapt(model, shape), images(), block, channel)
    assert found is not None
    masked = copy.deepcopy(model)
    qkv, width = masked.blocks[block].attn.qkv, shape.blocks[block].attention
    for row in (channel, width + channel):
        qkv.weight[row] = 0
        qkv.bias[row] = 0
    head = channel // (width // shape.blocks[block].num_heads)
    for maps, network in zip(found, (model, masked), strict=True):
        patches = softmax_of(network, images(), block)[:, head, 0, shape.num_prefix_tokens :]
        assert maps.shape == (6, 2, 2)
        torch.testing.assert_close(maps.flatten(1), patches)
    assert not torch.allclose(*found)
