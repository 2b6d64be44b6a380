"""Surgery against hand-written slices, and against stock timm."""

import json

import pytest
import timm
import torch

from tests.oracle import reference
from tests.support.tiny import VARIANTS, images, tiny
from upvit_core.errors import PlanError
from upvit_core.importance.magnitude import Magnitude, Random
from upvit_core.models.build import adapt
from upvit_core.models.checkpoint import load_model, save_model
from upvit_core.planning.ratios import Ratios, plan_preset, plan_uniform
from upvit_core.profiling.macs import count_macs, count_parameters
from upvit_core.pruning.surgery import prune
from upvit_core.records.plan import BlockPlan, Kept, KeptAttention, PruningPlan

CFG = {"mean": (0.5,) * 3, "std": (0.5,) * 3}


def random_plan(variant: str, heads: int | None = None, **ratios: float) -> PruningPlan:
    model, shape = tiny(variant)
    return plan_uniform(Random(3).attribute(adapt(model, shape)), Ratios(**ratios), heads=heads, snap=True)


@pytest.mark.parametrize("variant", VARIANTS)
def test_ratio_zero_is_bit_identical(variant: str) -> None:
    model, shape = tiny(variant)
    thin = prune(model, shape, random_plan(variant))
    assert all(torch.equal(t, thin.state_dict()[name]) for name, t in model.state_dict().items())
    assert torch.equal(model(images()), thin(images()))


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("merge", [False, True])
def test_equals_an_independent_slice(variant: str, merge: bool) -> None:
    model, shape = tiny(variant)
    heads = {3: 1, 4: 2}[shape.num_heads] if merge else shape.num_heads
    plan = random_plan(variant, residual=0.5, attention=0.5, ffn=0.75, heads=heads)
    before = {name: t.clone() for name, t in model.state_dict().items()}
    thin = prune(model, shape, plan)
    blocks = [
        {"source": b.source, "heads": b.attention.heads, "attention_keep": b.attention.keep, "ffn_keep": b.ffn.keep}
        for b in plan.blocks
    ]
    expected = reference.thin(model, plan.residual.keep, blocks)
    torch.testing.assert_close(thin(images()), expected(images()), rtol=1e-10, atol=1e-10)
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())


def test_ffn_and_unmerged_attention_equal_masks() -> None:
    model, shape = tiny()
    plan = random_plan("class token", attention=0.5, ffn=0.5)
    thin = prune(model, shape, plan)
    masked = timm.create_model(
        "deit_tiny_patch16_224", img_size=16, patch_size=8, embed_dim=16, depth=3, num_heads=4, num_classes=5
    ).double().eval()  # fmt: skip
    masked.load_state_dict(model.state_dict())
    with torch.no_grad():
        for block, blk in zip(plan.blocks, masked.blocks, strict=True):
            gone = [c for c in range(16) if c not in block.attention.keep]
            for part in range(3):
                blk.attn.qkv.weight[[16 * part + c for c in gone]] = 0
                blk.attn.qkv.bias[[16 * part + c for c in gone]] = 0
            blk.mlp.fc2.weight[:, [c for c in range(64) if c not in block.ffn.keep]] = 0
    torch.testing.assert_close(thin(images()), masked(images()), rtol=1e-10, atol=1e-10)


def test_merged_heads_equal_a_hand_written_reference() -> None:
    model, shape = tiny()
    plan = random_plan("class token", attention=0.5, heads=2)
    thin = prune(model, shape, plan)
    x = torch.randn(2, 5, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    for block in plan.blocks:
        expected = reference.merged_head_attention(model.blocks[block.source].attn, x, 2, block.attention.keep)
        torch.testing.assert_close(thin.blocks[block.source].attn(x), expected, rtol=1e-10, atol=1e-10)


def test_dropping_blocks_and_hybrid_blocks() -> None:
    model, shape = tiny("3 heads, 5 blocks")
    full = random_plan("3 heads, 5 blocks")
    b = full.blocks
    hybrid = BlockPlan(source=1, attention=b[1].attention, ffn=b[2].ffn, ffn_source=2)
    plan = PruningPlan(source_shape=shape.to_dict(), residual=full.residual, blocks=(b[0], hybrid, b[4]))
    thin = prune(model, shape, plan)
    x = model._pos_embed(model.patch_embed(images()))
    for attention, ffn in ((0, 0), (1, 2), (4, 4)):
        x = x + model.blocks[attention].attn(model.blocks[attention].norm1(x))
        x = x + model.blocks[ffn].mlp(model.blocks[ffn].norm2(x))
    torch.testing.assert_close(thin(images()), model.forward_head(model.norm(x)), rtol=1e-10, atol=1e-10)
    assert plan.shape_after.depth == 3


@pytest.mark.parametrize("variant", VARIANTS)
def test_closed_form_counts_equal_the_model(variant: str) -> None:
    model, shape = tiny(variant)
    plan = random_plan(variant, residual=0.5, attention=0.25, ffn=0.75)
    for m, s in ((model, shape), (prune(model, shape, plan), plan.shape_after)):
        assert count_parameters(s) == reference.count_parameters(m)
        assert count_macs(s) == reference.count_macs(m, images(1)[0])


@pytest.mark.parametrize(("preset", "size"), [("deit_small", 22_050_664), ("deit_tiny", 5_717_416)])
def test_deit_b_to_the_presets_loads_in_stock_timm(preset: str, size: int, tmp_path) -> None:
    opened = load_model("deit_base_patch16_224", pretrained=False)
    plan = plan_preset(Magnitude(1).attribute(adapt(opened.model, opened.shape)), preset)
    thin = prune(opened.model, opened.shape, plan)
    assert sum(p.numel() for p in thin.parameters()) == size
    stock = timm.create_model(f"{preset}_patch16_224").eval()
    stock.load_state_dict(thin.state_dict())
    save_model(thin, tmp_path / "m", shape=plan.shape_after, pretrained_cfg=opened.pretrained_cfg, name=preset)
    folder = timm.create_model(f"local-dir:{tmp_path / 'm'}", pretrained=True).eval()
    assert json.loads((tmp_path / "m" / "config.json").read_text())["architecture"] == f"{preset}_patch16_224"
    x = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = thin(x)
        assert torch.equal(stock(x), expected)
        assert torch.equal(folder(x), expected)


def test_uneven_widths_reload(tmp_path) -> None:
    model, shape = tiny("distilled", torch.float32)
    full = random_plan("distilled")
    blocks = [
        BlockPlan(source=0, attention=KeptAttention(heads=2, keep=(0, 9)), ffn=Kept(keep=(1, 5, 9))),
        BlockPlan(source=1, attention=KeptAttention(heads=4, keep=(0, 4, 8, 12)), ffn=Kept(keep=(0,))),
        full.blocks[2],
    ]
    plan = PruningPlan(source_shape=shape.to_dict(), residual=Kept(keep=(0, 3, 7, 8, 15)), blocks=tuple(blocks))
    thin = prune(model, shape, plan)
    save_model(thin, tmp_path, shape=plan.shape_after, pretrained_cfg=CFG, name="uneven", plan_json=plan.to_json())
    again = load_model(tmp_path)
    assert again.shape.blocks == plan.shape_after.blocks
    assert torch.equal(again.model(images(dtype=torch.float32)), thin(images(dtype=torch.float32)))
    assert PruningPlan.load(tmp_path / "plan.json") == plan


def test_a_plan_for_another_model_is_refused() -> None:
    model, shape = tiny()
    with pytest.raises(PlanError, match="was made for"):
        prune(model, shape, random_plan("3 heads, 5 blocks"))
    directions = plan_uniform(Random().attribute(adapt(model, shape)), basis="directions")
    with pytest.raises(PlanError, match="directions"):
        prune(model, shape, directions)
