"""PVTv2: read from names, folders, files and the authors' key names; counted; cut into thinner ones that timm opens."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from tests.oracle import pvt
from tests.support.tiny_pvt import HEADS, images, tiny_pvt
from upvit_core.errors import CheckpointError, PlanError, UnsupportedModelError
from upvit_core.export import export_onnx
from upvit_core.importance.magnitude import Magnitude, Random
from upvit_core.models.build import adapt
from upvit_core.models.checkpoint import LoadedModel, build_model, load_model, save_model, shape_of
from upvit_core.models.drop_path import set_drop_path
from upvit_core.planning.ratios import Ratios, plan_groups, plan_preset, plan_uniform, presets_for
from upvit_core.profiling.macs import count_macs, count_parameters
from upvit_core.pruning.prune import cut
from upvit_core.pruning.surgery import prune
from upvit_core.records.known_shapes import PVT_VARIANTS, pvt_shape
from upvit_core.records.plan import PruningPlan
from upvit_core.records.shape import ModelShape

B1_PARAMETERS, B0_PARAMETERS, B2_PARAMETERS = 14_009_000, 3_666_760, 25_362_856


@pytest.mark.parametrize("variant", PVT_VARIANTS)
def test_shapes_and_counts_are_timms(variant: str) -> None:
    model: Any = timm.create_model(f"pvt_v2_{variant}", device="meta")
    shape = shape_of(model, f"pvt_v2_{variant}")
    assert shape == pvt_shape(variant)  # type: ignore[arg-type]
    assert shape.is_uniform
    assert count_parameters(shape) == sum(p.numel() for p in model.parameters())


def test_published_sizes() -> None:
    sizes = [count_parameters(pvt_shape(v)) for v in ("b0", "b1", "b2")]  # type: ignore[arg-type]
    assert sizes == [B0_PARAMETERS, B1_PARAMETERS, B2_PARAMETERS]


@pytest.mark.parametrize("linear", [False, True])
def test_macs_equal_those_seen_while_it_runs(linear: bool) -> None:
    model, shape = tiny_pvt(linear=linear)
    seen = 0

    def count(module: Any, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        nonlocal seen
        if isinstance(module, nn.Linear):
            seen += output.numel() * module.in_features
        elif isinstance(module, nn.Conv2d):
            seen += output.numel() * module.weight[0].numel()

    handles = [m.register_forward_hook(count) for m in model.modules()]
    model(images(1))
    for handle in handles:
        handle.remove()
    for b, block in enumerate(shape.blocks):
        seen += 2 * shape.tokens_at(b) * shape.keys_at(b) * block.attention
    assert count_macs(shape) == seen


def cut_by_hand(state: pvt.State, plan: PruningPlan) -> pvt.State:
    """The thinner tensors: residual, ffn and reduction channels by the oracle, attention rows and columns here."""
    for group in plan.shape_before.groups:
        kept = list(plan.kept(group.key))
        if group.component != "attention":
            state = pvt.keep(state, group.key, kept)
            continue
        stem, width = pvt.places(state)[group.place][1], group.width
        state = dict(state)
        for leaf in ("weight", "bias"):
            if f"{stem}.attn.q.{leaf}" in state:
                state[f"{stem}.attn.q.{leaf}"] = state[f"{stem}.attn.q.{leaf}"][kept]
                state[f"{stem}.attn.kv.{leaf}"] = state[f"{stem}.attn.kv.{leaf}"][kept + [width + c for c in kept]]
        state[f"{stem}.attn.proj.weight"] = state[f"{stem}.attn.proj.weight"][:, kept]
    return state


def random_scores(model: nn.Module, shape: ModelShape) -> Any:
    return Random(3).attribute(adapt(model, shape))


@pytest.mark.parametrize(("merged", "linear"), [(False, False), (True, False), (False, True)])
def test_surgery_equals_cutting_by_hand(merged: bool, linear: bool) -> None:
    """Uneven widths everywhere; with heads merged, the hand's softmax keeps the scale of the source's heads."""
    model, shape = tiny_pvt(embed_dims=(4, 6, 7, 12), mlp_ratios=(2, 3, 1, 2), linear=linear)
    widths = {g.key: g.width - 1 - (g.place % 2) for g in shape.groups if g.component != "attention"}
    heads = {b: 1 if merged else block.num_heads for b, block in enumerate(shape.blocks)}
    widths |= {f"attention.{b}": block.attention - 2 * heads[b] for b, block in enumerate(shape.blocks)}
    plan = plan_groups(random_scores(model, shape), widths, heads, requested={})
    thin = prune(model, shape, plan)
    assert shape_of(thin, shape.name) == replace(plan.shape_after, name=shape.name)
    assert count_parameters(plan.shape_after) == sum(p.numel() for p in thin.parameters())
    state = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    scales = [(width / h) ** -0.5 for width, h in zip((4, 6, 7, 12), HEADS, strict=True)]
    by_stage = [heads[shape.first_block(stage)] for stage in range(4)]
    expected = pvt.logits(cut_by_hand(state, plan), images(), by_stage, scales)
    torch.testing.assert_close(thin(images()), expected, rtol=1e-9, atol=1e-11)


def test_half_of_b1_is_b0_and_stock_timm_opens_it(tmp_path: Path) -> None:
    loaded = load_model("pvt_v2_b1", pretrained=False)
    scores = Magnitude(2).attribute(adapt(loaded.model, loaded.shape))
    plan = plan_uniform(scores, Ratios.equal(0.5))
    assert presets_for(loaded.shape) == ("pvt_v2_b0",)
    assert plan_preset(scores, "pvt_v2_b0").digest == plan.digest
    after = plan.shape_after
    assert replace(after, name="pvt_v2_b0") == pvt_shape("b0")
    assert count_parameters(after) == B0_PARAMETERS
    thin = cut(loaded, plan)
    save_model(thin, tmp_path, shape=after, pretrained_cfg=loaded.pretrained_cfg, plan_json=plan.to_json(), name="half")
    stock: Any = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    named: Any = timm.create_model("pvt_v2_b0").eval()
    named.load_state_dict(thin.state_dict())
    x = torch.randn(1, 3, 224, 224)
    with torch.inference_mode():
        expected = thin(x)
        assert torch.equal(stock(x), expected)
        assert torch.equal(named(x), expected)
    assert stock.pretrained_cfg["architecture"] == "pvt_v2_b0"


def tiny_loaded(**changes: Any) -> LoadedModel:
    model, shape = tiny_pvt(torch.float32, **changes)
    return LoadedModel(model, shape, "tiny pvt", "", "", True, "config", {}, None)


def test_a_folder_of_uneven_widths_comes_back(tmp_path: Path) -> None:
    loaded = tiny_loaded()
    scores = random_scores(loaded.model, loaded.shape)
    plan = plan_uniform(scores, Ratios(0.25, 0.5, 0.3, 0.5), snap=True)
    thin = cut(loaded, plan)
    save_model(thin, tmp_path, shape=plan.shape_after, pretrained_cfg={}, plan_json=plan.to_json(), name="uneven")
    again = load_model(tmp_path)
    assert replace(again.shape, name="") == replace(plan.shape_after, name="")
    x = images(2, torch.float32)
    torch.testing.assert_close(again.model(x), thin(x), rtol=1e-6, atol=1e-6)
    assert again.pretrained_cfg["input_size"] == (3, 64, 64)
    with pytest.raises(RuntimeError, match="Unknown model"):
        timm.create_model(f"local-dir:{tmp_path}", pretrained=False)


def authors_names(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """timm's names to those of the authors' repository (whai362/PVT, v2)."""
    renamed = {}
    for key, tensor in state.items():
        new = re.sub(r"^patch_embed\.", "patch_embed1.", key)
        new = re.sub(r"^stages\.(\d)\.downsample\.", lambda m: f"patch_embed{int(m[1]) + 1}.", new)
        new = re.sub(r"^stages\.(\d)\.blocks\.(\d+)\.", lambda m: f"block{int(m[1]) + 1}.{m[2]}.", new)
        new = re.sub(r"^stages\.(\d)\.norm\.", lambda m: f"norm{int(m[1]) + 1}.", new)
        renamed[new.replace("mlp.dwconv.", "mlp.dwconv.dwconv.")] = tensor
    return renamed


@pytest.mark.parametrize("form", ["authors, pickled", "authors, wrapped", "timm", "authors, linear attention"])
def test_the_architecture_is_read_from_the_tensors(tmp_path: Path, form: str) -> None:
    linear = [replace(stage, reduction_ratio=0) for stage in pvt_shape("b0").stages]
    shape = replace(pvt_shape("b0"), num_classes=7)
    if "linear" in form:
        blocks = tuple(replace(block, reduction=block.attention) for block in shape.blocks)
        shape = replace(shape, stages=tuple(linear), blocks=blocks)
    state = build_model(shape, seed=4).state_dict()
    path = tmp_path / ("pvt.safetensors" if form == "timm" else "pvt.pth")
    if form == "timm":
        save_file(state, path)
    else:
        theirs = authors_names(state)
        assert {"patch_embed1.proj.weight", "block1.0.norm1.weight", "block4.1.mlp.dwconv.dwconv.weight"} <= set(theirs)
        torch.save({"state_dict": theirs} if "wrapped" in form else theirs, path)
    loaded = load_model(path)
    assert replace(loaded.shape, name="") == replace(shape, name="")
    assert loaded.recognised.heads.startswith("1, 2, 5 and 8")
    for key, tensor in loaded.model.state_dict().items():
        assert torch.equal(tensor, state[key])


def test_what_is_not_understood_is_named(tmp_path: Path) -> None:
    state = build_model(pvt_shape("b0")).state_dict()
    cases = {
        "blocks of a stage": {k: v for k, v in state.items() if not k.startswith("stages.1.blocks.0.")},
        "misses stages.0.blocks.1.mlp.dwconv.bias": {
            k: v for k, v in state.items() if k != "stages.0.blocks.1.mlp.dwconv.bias"
        },
    }
    for number, (message, tensors) in enumerate(cases.items()):
        save_file(tensors, tmp_path / f"{number}.safetensors")
        with pytest.raises(CheckpointError, match=re.escape(message)):
            load_model(tmp_path / f"{number}.safetensors")
    with pytest.raises(UnsupportedModelError, match="larger"):
        load_model("pvt_v2_b0", pretrained=False, img_size=16)
    save_file({k: v for k, v in state.items() if not k.startswith("head.")}, tmp_path / "headless.safetensors")
    assert load_model(tmp_path / "headless.safetensors").shape.outputs == 256  # features of the last stage


def test_directions_say_that_they_are_for_plain_vits() -> None:
    loaded = tiny_loaded()
    scores = random_scores(loaded.model, loaded.shape)
    with pytest.raises(PlanError, match="has no directions: rotation is written for plain ViTs, not for PVTv2"):
        plan_uniform(scores, Ratios(residual=0.5), snap=True, basis="directions")


def test_a_plan_must_keep_a_block_of_every_stage() -> None:
    model, shape = tiny_pvt()
    plan = plan_uniform(random_scores(model, shape))
    with pytest.raises(PlanError, match="every stage must keep a block"):
        PruningPlan.from_json(plan.model_copy(update={"blocks": plan.blocks[1:]}).to_json())
    bare = plan.blocks[0].model_copy(update={"reduction": None})
    with pytest.raises(PlanError, match="reduction"):
        PruningPlan.from_json(plan.model_copy(update={"blocks": (bare, *plan.blocks[1:])}).to_json())


def test_uniform_ratios_reach_every_group() -> None:
    model, shape = tiny_pvt(embed_dims=(8, 8, 8, 16))
    scores = random_scores(model, shape)
    plan = plan_uniform(scores, Ratios(0.5, 0.25, 0.5, 0.75), snap=True)
    shares = {"residual": 0.5, "attention": 0.75, "ffn": 0.5, "reduction": 0.25}
    for before, after in zip(shape.groups, plan.shape_after.groups, strict=True):
        assert after.width == before.width * shares[before.component], before.key
        best = np.sort(np.argsort(-scores.values[before.key], kind="stable")[: after.width])
        if before.component != "attention":
            assert list(plan.kept(before.key)) == best.tolist()


def test_export_runs_in_onnxruntime(tmp_path: Path) -> None:
    loaded = tiny_loaded()
    plan = plan_uniform(
        random_scores(loaded.model, loaded.shape), Ratios(residual=0.25, ffn=0.5, reduction=0.5), snap=True
    )
    thin = cut(loaded, plan)
    result = export_onnx(thin, plan.shape_after, tmp_path / "thin.onnx")
    assert result["max_abs_difference"] < 1e-4


def test_stochastic_depth_reaches_every_block() -> None:
    model = build_model(tiny_pvt()[1])
    set_drop_path(model, 0.4)
    found = [getattr(block.drop_path1, "drop_prob", 0.0) for stage in model.stages for block in stage.blocks]  # type: ignore[attr-defined,union-attr]
    assert found == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4])
