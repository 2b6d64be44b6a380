"""Structures beyond the letter's: exact removal, surgery, counts and files, against masks on timm's own modules."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from tests.oracle.masked import parts, without
from tests.support.shrunk import shrunk
from tests.support.tiny import TensorProxy
from upvit_core.errors import UnsupportedModelError
from upvit_core.importance.blocks import remove_blocks
from upvit_core.importance.fisher import Fisher
from upvit_core.importance.kl import KL
from upvit_core.importance.magnitude import Random
from upvit_core.models.build import adapt, build_model, live_tensors, shape_of
from upvit_core.models.checkpoint import load_model, save_model
from upvit_core.models.output import Gaussian, Softmax, output_of, with_output
from upvit_core.planning.ratios import Ratios, plan_uniform
from upvit_core.profiling.macs import count_macs, count_parameters
from upvit_core.pruning.repair.repair import repair
from upvit_core.pruning.surgery import prune
from upvit_core.records.plan import PruningPlan
from upvit_core.records.shape import ModelShape

STRUCTURES = {
    "attention pooling": "vit_base_patch16_siglip_224",
    "attention pooling of all tokens, rotary positions": "vit_pe_core_base_patch16_224",
    "gated FFN in one layer": "vit_giant_patch14_dinov2",
    "RMSNorm, gated FFN in two layers, no biases": "aimv2_1b_patch14_224",
    "norms inside attention and FFN": "beit3_base_patch16_224",
    "no final norm": "vit_huge_patch16_radio_v3",
    "parallel attentions and FFNs": "vit_small_patch16_18x2_224",
    "EVA without rotary positions": "eva_giant_patch14_224",
    "rotary positions": "vit_base_patch16_rope_reg1_gap_256",
    "rotary positions by halves": "vit_base_patch16_dinov3_qkvb",
    "rotary positions, gated FFN": "eva02_small_patch14_224",
    "rotary positions, norms inside": "eva02_base_patch16_clip_224",
    "learned rotary frequencies": "vit_base_patch16_rope_mixed_ape_224",
    "relative positions": "beit_base_patch16_224",
}
STOCK = {
    "no final norm",
    "gated FFN in one layer", "RMSNorm, gated FFN in two layers, no biases", "norms inside attention and FFN",
    "EVA without rotary positions", "rotary positions", "rotary positions by halves",
    "rotary positions, gated FFN", "rotary positions, norms inside",
}  # fmt: skip
QK_NORM = {"qk_norm": True, "num_classes": 5}


def made(name: str, **overrides: object) -> tuple[nn.Module, nn.Module, ModelShape]:
    """timm's model in float64, ours with its weights, and their shape."""
    fixed = {"dynamic_img_size": False} if "dinov3" in name else {}  # else its angles are made anew in float64
    stock = shrunk(name, **fixed, **overrides).double()
    shape = shape_of(stock, name)
    model = build_model(shape).double().eval()
    model.load_state_dict(live_tensors(stock))
    return stock, model, shape


def pixels(count: int = 3) -> Tensor:
    return torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


@pytest.mark.parametrize("name", [*STRUCTURES.values(), "qk_norm"])
@torch.no_grad()
def test_exact_removal_equals_masks(name: str) -> None:
    stock, model, shape = made("deit_tiny_patch16_224", **QK_NORM) if name == "qk_norm" else made(name)
    x, adapter = pixels(), adapt(model, shape)
    torch.testing.assert_close(adapter.logits(x), stock(x), rtol=1e-9, atol=1e-9)
    for group in shape.groups:
        channels = torch.tensor([0, group.width // 2, group.width - 1])
        start = adapter.embed(x)
        for b in range(adapter.first_block(group.key)):
            start = adapter.run_block(b, start)
        found = adapter.logits_without(group.key, start, channels)
        for channel, changed in zip(channels.tolist(), found, strict=True):
            expected = without(stock, {group.key: [channel]}, shape.structure.head_dim)(x)
            torch.testing.assert_close(changed, expected, rtol=1e-8, atol=1e-8, msg=f"{group.key} {channel}")
            assert not torch.allclose(changed, stock(x), atol=1e-8), f"{group.key} {channel} changes nothing"


def half(model: nn.Module, shape: ModelShape) -> PruningPlan:
    return plan_uniform(Random(3).attribute(adapt(model, shape)), Ratios.equal(0.5), snap=True)


@pytest.mark.parametrize("structure", STRUCTURES)
def test_a_built_model_is_read_back(structure: str) -> None:
    """Up to the name of a stock model that it began as, which no module holds, and what that tells of its head."""
    _, model, shape = made(STRUCTURES[structure])
    read = shape_of(model, shape.name)
    assert replace(read, structure=replace(read.structure, timm=shape.structure.timm), features=shape.features) == shape


@pytest.mark.parametrize("structure", STRUCTURES)
@torch.no_grad()
def test_surgery_equals_masks_and_counts_are_exact(structure: str) -> None:
    stock, model, shape = made(STRUCTURES[structure])
    plan, x = half(model, shape), pixels()
    thin, after = prune(model, shape, plan), plan.shape_after
    gone = {g.key: sorted(set(range(g.width)) - set(plan.kept(g.key))) for g in shape.groups}
    expected = without(stock, gone, shape.structure.head_dim)(x)
    torch.testing.assert_close(thin(x), expected, rtol=1e-8, atol=1e-8)
    assert count_parameters(after) == sum(p.numel() for p in thin.parameters())
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        thin(x[:1])  # without gradients the counter fails on a parameter that is expanded
    assert count_macs(after) == counter.get_total_flops() // 2


@pytest.mark.parametrize("structure", STRUCTURES)
@torch.no_grad()
def test_a_thinner_model_opens_again_and_in_stock_timm_where_it_can(structure: str, tmp_path: Path) -> None:
    _, model, shape = made(STRUCTURES[structure])
    plan, x = half(model, shape), pixels().float()
    thin = prune(model, shape, plan).float()
    save_model(thin, tmp_path, shape=plan.shape_after, pretrained_cfg={}, name="thin")
    again = load_model(tmp_path)
    assert again.shape == plan.shape_after.__class__.from_dict({**plan.shape_after.to_dict(), "name": again.shape.name})
    torch.testing.assert_close(again.model(x), thin(x))
    if structure in STOCK:
        theirs = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
        torch.testing.assert_close(theirs(x), thin(x))
    else:
        with pytest.raises(RuntimeError):
            timm.create_model(f"local-dir:{tmp_path}", pretrained=True)


@pytest.mark.parametrize("structure", STRUCTURES)
def test_fisher_is_exact_where_what_a_half_block_writes_is_small(structure: str) -> None:
    """Of the residual, whose removal is never small, it ranks as exact removal does."""
    name = STRUCTURES[structure]
    _, model, shape = made(name, **({} if shrunk(name).num_classes == 0 else {"num_classes": 5}))
    every, proxy = Fisher(directions="all", site_error=0), TensorProxy(pixels(4))

    def compared(key: str) -> tuple[Tensor, Tensor]:
        return tuple(torch.tensor(record.values[key]) for record in (exact, fast))  # type: ignore[return-value]

    exact, fast = (criterion.attribute(adapt(model, shape), proxy) for criterion in (KL(), Fisher()))
    ranks = torch.stack([each.argsort().argsort().double() for each in compared("residual")])
    assert torch.corrcoef(ranks)[0, 1] > 0.6
    with torch.no_grad():
        for block in model.blocks:
            for layer in (block.attn.proj, block.mlp.fc2):
                for parameter in layer.parameters():
                    parameter *= 1e-3
    exact, fast = (criterion.attribute(adapt(model, shape), proxy) for criterion in (KL(), every))
    keys = ["ffn.0", "ffn.1"]
    if shape.structure.head_dim and not shape.structure.attention_norm:
        keys += ["attention.0", "attention.1"]
    for key in keys:
        torch.testing.assert_close(*compared(key), rtol=0.05, atol=1e-12, msg=lambda text, key=key: f"{key}: {text}")


@pytest.mark.parametrize("structure", STRUCTURES)
@torch.no_grad()
def test_repair_brings_a_cut_closer_and_finds_lost_weights_again(structure: str) -> None:
    """On new images; of a model that was not cut, but whose fitted layers were changed, it finds the weights."""
    _, model, shape = made(STRUCTURES[structure])
    proxy, new = TensorProxy(pixels(400)[:300]), pixels(400)[300:]
    output = Gaussian.of(model(new)) if shape.features else Softmax()

    def kl(student: nn.Module) -> float:
        return float(output.kl(output.reference(model(new)), student(new)).mean())

    cut = prune(model, shape, plan := half(model, shape))
    assert kl(repair(cut, model, plan, proxy)[0]) < 0.95 * kl(cut)
    changed = copy.deepcopy(model)
    layers = [layer for layer in changed.blocks.modules() if isinstance(layer, nn.Linear)]
    layers += [changed.attn_pool.kv] if shape.structure.pool else []
    for layer in layers:
        layer.weight *= 1 + 0.5 * torch.rand(layer.weight.shape, generator=torch.Generator().manual_seed(1))
    repaired, report = repair(changed, model, PruningPlan.whole(shape), proxy)
    assert kl(repaired) < 1e-3 * kl(changed)
    assert len(report.layers) >= len(layers) + 2 * shape.depth


@pytest.mark.parametrize("structure", STRUCTURES)
@torch.no_grad()
def test_removed_half_blocks_write_nothing(structure: str) -> None:
    stock, model, shape = made(STRUCTURES[structure])
    adapter, x = with_output(adapt(model, shape), TensorProxy(pixels(4))), pixels(4)
    output = output_of(adapter)
    for candidate in remove_blocks(adapter, TensorProxy(x), 1).steps[0].candidates:
        silent = copy.deepcopy(stock)
        for block, is_ffn in (divmod(half, 2) for half in candidate.halves):
            for part in parts(silent.blocks[block], "ffn" if is_ffn else "attention"):
                for parameter in (part.fc2 if is_ffn else part.proj).parameters():
                    parameter.zero_()
        expected = output.kl(output.reference(stock(x)), silent(x)).sum()
        assert candidate.kl == pytest.approx(float(expected), rel=1e-6)


@pytest.mark.parametrize("name", ["vit_base_patch16_rope_reg1_gap_256", "vit_small_patch16_18x2_224"])
def test_a_live_model_of_other_modules_is_not_run(name: str) -> None:
    stock = shrunk(name)
    with pytest.raises(UnsupportedModelError, match="open it with load_model"):
        adapt(stock, shape_of(stock, "it"))
