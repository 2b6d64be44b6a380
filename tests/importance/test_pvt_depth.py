"""Block removals of a staged model: inside stages alone, against the slow oracle; B2 to 2, 2, 2, 2 is B1."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch

from tests.oracle import pvt
from tests.support.tiny import TensorProxy
from tests.support.tiny_pvt import HEADS, images, tiny_pvt
from tests.support.verbs import call
from upvit_core.errors import ScoresError
from upvit_core.importance.blocks import remove_blocks
from upvit_core.importance.magnitude import Random
from upvit_core.models.build import adapt
from upvit_core.models.checkpoint import LoadedModel, build_model, load_model, save_model
from upvit_core.planning.depth import plan_depth, plan_depth_only
from upvit_core.planning.ratios import Ratios, plan_uniform
from upvit_core.profiling.macs import count_parameters
from upvit_core.pruning.surgery import prune
from upvit_core.records.block_removals import BlockRemovals, Candidate, Step, candidates, without
from upvit_core.records.known_shapes import pvt_shape

DEEP: dict[str, Any] = {"depths": (2, 3, 1, 2)}


def name(half: int, depths: tuple[int, ...] = (2, 3, 1, 2)) -> str:
    stage, block = 0, half // 2
    while block >= depths[stage]:
        block -= depths[stage]
        stage += 1
    return f"stages.{stage}.blocks.{block}/{'AF'[half % 2]}"


def test_every_candidate_equals_leaving_the_half_blocks_out() -> None:
    model, shape = tiny_pvt(**DEEP)
    record = remove_blocks(adapt(model, shape), TensorProxy(images()), 5, image_batch=3)
    state = {key: tensor.detach() for key, tensor in model.state_dict().items()}
    scales = [(width / heads) ** -0.5 for width, heads in zip((4, 6, 7, 8), HEADS, strict=True)]
    whole = pvt.logits(state, images(), HEADS, scales)
    gone: tuple[int, ...] = ()
    for step in record.steps:
        for candidate in step.candidates:
            left_out = tuple(name(half) for half in (*gone, *candidate.halves))
            p = pvt.logits(state, images(), HEADS, scales, skipped=left_out)
            assert candidate.kl == pytest.approx(pvt.kl(whole, p), rel=1e-8, abs=1e-12)
            assert len({name(half)[:8] for half in candidate.halves}) == 1, "a pair across two stages"
        gone += step.removed
    assert len(record.steps) == 3
    assert len(record.steps[0].candidates) == 3 + 5 + 3


def test_each_stage_keeps_what_it_is_told_to() -> None:
    model, shape = tiny_pvt(**DEEP)
    record = remove_blocks(adapt(model, shape), TensorProxy(images()), (2, 1, 1, 1))
    plan = plan_depth_only(record, 5)
    assert plan.shape_after.depths == (2, 1, 1, 1)
    assert BlockRemovals.from_json(record.to_json()) == record
    thin = prune(model, shape, plan)
    state = {key: tensor.detach() for key, tensor in model.state_dict().items()}
    scales = [(width / heads) ** -0.5 for width, heads in zip((4, 6, 7, 8), HEADS, strict=True)]
    gone = tuple(name(half) for step in record.steps for half in step.removed)
    expected = pvt.logits(state, images(), HEADS, scales, skipped=gone)
    torch.testing.assert_close(thin(images()), expected, rtol=1e-9, atol=1e-11)
    width = plan_uniform(Random(2).attribute(adapt(model, shape)), Ratios(residual=0.25, ffn=0.5), snap=True)
    both = plan_depth(width, record, 5).shape_after
    assert (both.depths, both.embed_dims) == ((2, 1, 1, 1), width.shape_after.embed_dims)
    for wrong, words in (((2, 3, 1, 2), "already"), ((0, 1, 1, 1), "stages of"), ((1, 1), "stages of"), (3, "4 to 7")):
        with pytest.raises(ScoresError, match=words):
            remove_blocks(adapt(model, shape), TensorProxy(images()), wrong)


def test_a_stopped_run_goes_on(tmp_path: Path) -> None:
    model, shape = tiny_pvt(**DEEP)
    journal, shares = tmp_path / "journal.jsonl", []
    proxy = TensorProxy(images())
    whole = remove_blocks(adapt(model, shape), proxy, 4, report=lambda p: shares.append(p.share))
    assert shares[-1] == pytest.approx(1.0)
    assert all(0 <= share <= 1 + 1e-9 for share in shares)
    remove_blocks(adapt(model, shape), proxy, 6, journal=journal)
    resumed = remove_blocks(adapt(model, shape), proxy, 4, journal=journal)
    assert [step.removed for step in resumed.steps] == [step.removed for step in whole.steps]


def test_b2_to_two_blocks_a_stage_is_b1(tmp_path: Path) -> None:
    """Shapes alone, with made-up scores of candidates: B2 has B1's widths."""
    shape, rng = pvt_shape("b2"), np.random.default_rng(0)
    left, steps = tuple(range(2 * shape.depth)), []
    while len(left) > 16:
        scored = [Candidate(halves=pair, kl=float(rng.random())) for pair in candidates(shape, left, (2, 2, 2, 2))]
        least = min(scored, key=lambda c: c.kl)
        steps.append(Step(candidates=tuple(scored), removed=least.halves))
        left = without(left, least.halves)
    record = BlockRemovals(source_shape=shape.to_dict(), images=1, steps=tuple(steps), least=(2, 2, 2, 2))
    plan = plan_depth_only(record, 8)
    assert replace(plan.shape_after, name="pvt_v2_b1") == pvt_shape("b1")
    assert count_parameters(shape) == 25_362_856
    assert count_parameters(plan.shape_after) == 14_009_000
    assert any(block.ffn_source is not None for block in plan.blocks), "no hybrid block among them"
    loaded = LoadedModel(build_model(shape, seed=1).eval(), shape, "b2", "", "", True, "config", {}, None)
    thin = prune(loaded.model, shape, plan)
    save_model(thin, tmp_path, shape=plan.shape_after, pretrained_cfg={}, plan_json=plan.to_json(), name="b2, 8 blocks")
    stock: Any = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    assert stock.depths == (2, 2, 2, 2) or list(stock.depths) == [2, 2, 2, 2]
    assert json.loads((tmp_path / "config.json").read_text())["architecture"] == "pvt_v2_b1"
    timm.create_model("pvt_v2_b1").load_state_dict(thin.state_dict())


def test_the_verbs_take_a_depth_for_each_stage(tmp_path: Path) -> None:
    small = replace(pvt_shape("b0", img_size=(32, 32), num_classes=10, in_chans=1), name="small")
    narrow = {g.key: 8 * (1, 2, 5, 8)[small.stage_of(g.place)] for g in small.groups}
    narrow |= {f"residual.{s}": 8 * heads for s, heads in enumerate((1, 2, 5, 8))}
    small = small.with_widths(narrow)
    cfg = {"input_size": (1, 32, 32), "mean": (0.5,), "std": (0.5,)}
    source, record, plan = (str(tmp_path / part) for part in ("small", "blocks.json", "plan.json"))
    save_model(build_model(small, seed=3), source, shape=small, pretrained_cfg=cfg, name="small")

    call("score-blocks", source, "--data", "demo", "--depth", "1,2,1,1", "--images", "8", "--out", record)
    call("score", source, "--criterion", "l1", "--out", str(tmp_path / "s.safetensors"))
    made = call("plan", tmp_path / "s.safetensors", "--ffn", 0.5, "--depth", 5, "--depth-scores", record, "--out", plan)
    assert made["depth"] == 5
    call("prune", source, plan, "--out", str(tmp_path / "thin"))
    assert load_model(str(tmp_path / "thin")).shape.depths == (1, 2, 1, 1)
