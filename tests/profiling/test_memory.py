"""Peak activations against what torch's profiler sees allocated."""

from dataclasses import replace

import pytest
import torch

from upvit_core.models.build import build_model
from upvit_core.models.shape import BlockShape, deit_shape
from upvit_core.profiling.memory import estimate_memory

DEMO = replace(
    deit_shape("tiny"), name="demo", embed_dim=96, blocks=(BlockShape(6, 96, 384),) * 2, img_size=(28, 28),
    patch_size=(4, 4), in_chans=1, num_classes=10,
)  # fmt: skip
SHAPES = {
    "demo": (DEMO, 16),
    "DeiT-T": (replace(deit_shape("tiny"), blocks=(BlockShape(3, 192, 768),) * 2), 4),
    "narrow FFN": (replace(DEMO, blocks=(BlockShape(6, 96, 40), BlockShape(3, 60, 100))), 16),
    "narrow attention": (replace(DEMO, embed_dim=40, blocks=(BlockShape(3, 30, 300),) * 2), 16),
    "nearly all residual": (replace(DEMO, blocks=(BlockShape(6, 6, 8),) * 2), 16),
}


def peak(model: torch.nn.Module, images: torch.Tensor) -> int:
    with torch.inference_mode():
        model(images)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
            model(images)
    held = highest = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            highest = max(highest, held)
    return highest


@pytest.mark.parametrize("name", SHAPES)
def test_within_fifteen_percent_of_the_allocator(name: str) -> None:
    shape, batch = SHAPES[name]
    model = build_model(shape).eval()
    estimate = estimate_memory(shape, batch)
    assert estimate.weights == sum(p.numel() * p.element_size() for p in model.parameters())
    measured = peak(model, torch.randn(batch, shape.in_chans, *shape.img_size))
    assert estimate.activations == pytest.approx(measured, rel=0.15)


def test_half_the_bytes_in_half_precision() -> None:
    full, half = (estimate_memory(DEMO, 8, dtype) for dtype in ("float32", "bfloat16"))
    assert full.total == 2 * half.total
    with pytest.raises(ValueError, match="not 'int8'"):
        estimate_memory(DEMO, 8, "int8")
