"""Peak activations against what torch's profiler sees allocated."""

from dataclasses import replace

import pytest
import torch
from timm.data.mixup import mixup_target

from tests.support.allocated import allocated, peak
from upvit_core.models.build import build_model
from upvit_core.models.gpt2 import language_shape, random_inputs
from upvit_core.profiling.memory import TrainingMemory, estimate_memory, estimate_training
from upvit_core.records.known_shapes import deit_shape, pvt_shape
from upvit_core.records.shape import BlockShape, ModelShape
from upvit_core.records.structure import Structure
from upvit_core.training.distillation import distillation_loss

DEMO = replace(
    deit_shape("tiny"), name="demo", embed_dim=96, blocks=(BlockShape(6, 96, 384),) * 2, img_size=(28, 28),
    patch_size=(4, 4), in_chans=1, num_classes=10,
)  # fmt: skip
HEADS = replace(DEMO, family="eva", blocks=(BlockShape(1, 6, 40),) * 2)
ROPE = (("type", "cat"), ("temperature", 100.0), ("grid_offset", 0.0), ("grid_indexing", "ij"), ("rotate_half", False))
SHAPES = {
    "demo": (DEMO, 16),
    "DeiT-T": (replace(deit_shape("tiny"), blocks=(BlockShape(3, 192, 768),) * 2), 4),
    "narrow FFN": (replace(DEMO, blocks=(BlockShape(6, 96, 40), BlockShape(3, 60, 100))), 16),
    "narrow attention": (replace(DEMO, embed_dim=40, blocks=(BlockShape(3, 30, 300),) * 2), 16),
    "PVTv2-B0": (pvt_shape("b0", img_size=(64, 64)), 8),
    "PVTv2-B1, thinner FFN": (pvt_shape("b1", img_size=(96, 96)).with_widths({f"ffn.{b}": 200 for b in range(8)}), 4),
    "gated FFN": (replace(DEMO, act="silu", structure=Structure(gate="packed", timm="it")), 16),
    "rotary positions": (replace(HEADS, structure=Structure(head_dim=16, rope=ROPE, timm="it")), 16),
    "relative positions": (replace(HEADS, structure=Structure(head_dim=16, relative=True)), 16),
    "nearly all residual": (replace(DEMO, blocks=(BlockShape(6, 6, 8),) * 2), 16),
}


def text(vocabulary: int, context: int, width: int, *blocks: tuple[int, int, int]) -> ModelShape:
    return language_shape(
        "text", vocabulary=vocabulary, context=context, embed_dim=width, blocks=tuple(BlockShape(*b) for b in blocks)
    )


TEXTS = {
    "small GPT-2": (text(512, 64, 96, *[(4, 96, 384)] * 4), 8),
    "its half": (text(512, 64, 48, *[(2, 48, 192)] * 4), 8),
    "narrow FFN": (text(64, 32, 64, (4, 256, 16), (4, 100, 20)), 8),
    "nearly all residual": (text(64, 32, 256, (4, 16, 16), (2, 4, 8)), 8),
    "many words": (text(3000, 32, 16, (4, 16, 16), (4, 16, 16)), 4),
}


@pytest.mark.parametrize("name", SHAPES)
def test_within_fifteen_percent_of_the_allocator(name: str) -> None:
    shape, batch = SHAPES[name]
    model = build_model(shape).eval()
    estimate = estimate_memory(shape, batch)
    assert estimate.weights == sum(p.numel() * p.element_size() for p in model.parameters())
    measured = peak(model, torch.randn(batch, shape.in_chans, *shape.img_size))
    assert estimate.activations == pytest.approx(measured, rel=0.15)


@pytest.mark.parametrize("name", TEXTS)
def test_a_language_model_within_fifteen_percent_of_the_allocator(name: str) -> None:
    pytest.importorskip("transformers")
    shape, batch = TEXTS[name]
    model = build_model(shape).eval()
    estimate = estimate_memory(shape, batch)
    assert estimate.weights == sum(p.numel() * p.element_size() for p in model.parameters())
    assert estimate.activations == pytest.approx(peak(model, random_inputs(shape, batch)), rel=0.15)


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("name", TEXTS)
def test_a_training_step_on_text_within_twenty_percent_of_the_allocator(name: str, autocast: bool) -> None:
    """With the loss, whose logits weigh more than the model where there are many words."""
    pytest.importorskip("transformers")
    shape, batch = TEXTS[name]
    model = build_model(shape).train()
    words = shape.num_classes

    def step() -> None:
        ids = random_inputs(shape, batch)
        targets = mixup_target(ids.flatten(), words, smoothing=0.0)
        teacher = torch.randn(ids.numel(), words)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            logits = model(ids).float()
        distillation_loss(logits.flatten(0, 1), targets, teacher, alpha=1.0).loss.backward()

    step()  # the gradients are there
    measured = allocated(step)
    estimate = estimate_training(shape, shape, dtype="bfloat16" if autocast else "float32")
    copied = 2 * sum(p.numel() for p in model.parameters()) if autocast else 0
    assert batch * estimate.per_image + copied == pytest.approx(measured, rel=0.2)


def test_half_the_bytes_in_half_precision() -> None:
    full, half = (estimate_memory(DEMO, 8, dtype) for dtype in ("float32", "bfloat16"))
    assert full.total == 2 * half.total
    with pytest.raises(ValueError, match="not 'int8'"):
        estimate_memory(DEMO, 8, "int8")


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("name", SHAPES)
def test_a_training_step_within_twenty_percent_of_the_allocator(name: str, autocast: bool) -> None:
    """Activations: the optimiser's state and gradients are there before; the rest is counted exactly below.

    Without AVX-512, torch's kernel of a depthwise convolution keeps its input once; the estimate counts the two copies
    that the other one keeps.
    """
    shape, batch = SHAPES[name]
    model = build_model(shape).train()
    images = torch.randn(batch, shape.in_chans, *shape.img_size)

    def forward_and_backward() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = model(images.clone()).float().square().mean()
        loss.backward()

    forward_and_backward()  # the gradients are there
    measured = allocated(forward_and_backward)
    estimate = estimate_training(shape, shape, dtype="bfloat16" if autocast else "float32")
    weights = sum(p.numel() for p in model.parameters())
    copied = 2 * weights if autocast else 0
    assert estimate.fixed == 4 * weights * 7 + 2 * copied  # the teacher's too
    foretold = batch * estimate.per_image + copied
    if shape.stages and torch.backends.cpu.get_cpu_capability() != "AVX512":
        hidden = sum(shape.tokens_at(b) * block.ffn for b, block in enumerate(shape.blocks))
        foretold -= batch * hidden * (2 if autocast else 4)
    assert foretold == pytest.approx(measured, rel=0.2)


def test_parts_for_a_device() -> None:
    memory = TrainingMemory(fixed=100, per_image=10)
    assert memory.parts_for(740, 64) == 1
    assert memory.parts_for(739, 64) == 2
    assert memory.parts_for(420, 64) == 2
    assert memory.parts_for(110, 64) == 64
    assert memory.parts_for(110, 65) == 65
    assert memory.parts_for(109, 64) is None
