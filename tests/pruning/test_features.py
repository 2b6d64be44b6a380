"""Models without a classifier: cut, rotated and repaired, they give all features of the original."""

import copy
import json
from pathlib import Path

import pytest
import timm
import torch
from torch import Tensor, nn

from tests.oracle import reference
from tests.support.basis import relative_change
from tests.support.tiny import HEADLESS, TensorProxy, images, tiny
from upvit_core.importance.fisher import Fisher
from upvit_core.importance.magnitude import Random
from upvit_core.models.build import adapt, build_model
from upvit_core.models.checkpoint import load_model, save_model
from upvit_core.models.output import output_of, with_output
from upvit_core.planning.ratios import Ratios, plan_uniform
from upvit_core.profiling.macs import count_macs, count_parameters
from upvit_core.pruning.basis import collect_statistics, directions_scores, prune_directions
from upvit_core.pruning.basis.scores import whole_plan
from upvit_core.pruning.repair.repair import repair
from upvit_core.pruning.surgery import prune
from upvit_core.records.known_shapes import pvt_shape
from upvit_core.records.plan import PruningPlan

ROTATED = [name for name, (_, overrides) in HEADLESS.items() if "pre_norm" not in overrides]
CFG = {"mean": (0.5,) * 3, "std": (0.5,) * 3}


def random_plan(variant: str, **ratios: float) -> PruningPlan:
    model, shape = tiny(variant)
    return plan_uniform(Random(3).attribute(adapt(model, shape)), Ratios(**ratios), snap=True)


@pytest.mark.parametrize("variant", HEADLESS)
def test_a_cut_equals_an_independent_slice_and_gives_every_feature(variant: str) -> None:
    model, shape = tiny(variant)
    plan = random_plan(variant, residual=0.5, attention=0.5, ffn=0.75)
    thin = prune(model, shape, plan)
    blocks = [
        {"source": b.source, "heads": b.attention.heads, "attention_keep": b.attention.keep, "ffn_keep": b.ffn.keep}
        for b in plan.blocks
    ]
    whole = copy.deepcopy(model)
    whole.head = nn.Linear(16, 16, bias=False, dtype=torch.float64)
    whole.head.weight = nn.Parameter(torch.eye(16, dtype=torch.float64))
    expected = reference.thin(whole, plan.residual.keep, blocks)
    torch.testing.assert_close(thin(images()), expected(images()), rtol=1e-10, atol=1e-10)
    gone = [c for c in range(16) if c not in plan.residual.keep]
    assert thin(images()).shape == (6, 16)
    assert not thin(images())[:, gone].any()
    after = plan.shape_after
    assert (after.num_classes, after.features, shape.num_classes) == (16, True, 0)
    assert count_parameters(after) == sum(p.numel() for p in thin.parameters())
    assert count_parameters(shape) == sum(p.numel() for p in model.parameters())
    assert count_macs(after) == count_macs(plan.shape_after.with_widths({})) > 8 * 16


def test_a_cut_inside_the_blocks_alone_adds_no_layer() -> None:
    model, shape = tiny("features")
    plan = random_plan("features", attention=0.5, ffn=0.5)
    thin = prune(model, shape, plan)
    assert isinstance(thin.head, nn.Identity)
    assert plan.shape_after.num_classes == 0
    assert torch.equal(model(images()), prune(model, shape, random_plan("features"))(images()))


@pytest.mark.parametrize("variant", ROTATED)
def test_rotation_leaves_features_and_repair_brings_a_cut_closer(variant: str) -> None:
    model, shape = tiny(variant)
    proxy, new = TensorProxy(images(150)), images(60, seed=77)
    adapter = with_output(adapt(model, shape), proxy)
    stats = collect_statistics(adapter, proxy)
    assert relative_change(model, prune_directions(model, shape, whole_plan(shape), stats), new) < 1e-10
    scores = directions_scores(adapter, proxy, stats)
    plan = plan_uniform(scores, Ratios.equal(0.5), basis="directions", snap=True)
    cut = prune_directions(model, shape, plan, stats)
    repaired, _ = repair(cut, model, plan, proxy, stats=stats)

    @torch.no_grad()
    def kl(student: nn.Module) -> float:
        output = output_of(adapter)
        return float(output.kl(output.reference(model(new)), student(new)).mean())

    by_channels = plan_uniform(Fisher().attribute(adapter, proxy), Ratios.equal(0.5), snap=True)
    thin = prune(model, shape, by_channels)
    fitted, _ = repair(thin, model, by_channels, proxy)
    assert kl(repaired) < kl(cut)
    assert kl(fitted) < kl(thin)


def test_directions_are_scored_exactly_too() -> None:
    model, shape = tiny("features")
    proxy = TensorProxy(images(8))
    adapter = with_output(adapt(model, shape), proxy)
    stats = collect_statistics(adapter, proxy)
    record = directions_scores(adapter, proxy, stats, "kl")
    output = output_of(adapter)
    without = whole_plan(shape, tuple(i for i in range(16) if i != 5))
    change = output.kl(
        output.reference(model(proxy.tensor)), prune_directions(model, shape, without, stats)(proxy.tensor)
    )
    assert float(change.sum()) == pytest.approx(record.values["residual"][5], rel=1e-8)


@pytest.mark.parametrize("residual", [0.0, 0.5])
def test_a_folder_opens_again_and_in_stock_timm(residual: float, tmp_path: Path) -> None:
    model, shape = tiny("features", torch.float32)
    plan = random_plan("features", residual=residual, attention=residual, ffn=0.5)
    thin, x = prune(model, shape, plan), images(dtype=torch.float32)
    save_model(thin, tmp_path, shape=plan.shape_after, pretrained_cfg=CFG, plan_json=plan.to_json(), name="thin")
    again = load_model(tmp_path)
    assert again.shape.features
    assert again.shape.outputs == 16
    assert torch.equal(again.model(x), thin(x))
    assert json.loads((tmp_path / "config.json").read_text())["num_classes"] == (16 if residual else 0)
    stock = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    torch.testing.assert_close(stock(x), thin(x))


def test_a_pyramid_without_a_classifier() -> None:
    shape = pvt_shape("b0", img_size=(32, 32), num_classes=0)
    model = build_model(shape).eval()
    x = torch.randn(40, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    record = Fisher(num_directions=1).attribute(adapt(model, shape), TensorProxy(x[:8]))
    plan = plan_uniform(record, Ratios.equal(0.5), snap=True)
    thin = prune(model, shape, plan)
    assert count_parameters(plan.shape_after) == sum(p.numel() for p in thin.parameters())
    repaired, _ = repair(thin, model, plan, TensorProxy(x))

    @torch.no_grad()
    def error(student: nn.Module) -> Tensor:
        return (student(x) - model(x)).square().mean()

    assert error(repaired) < error(thin)
