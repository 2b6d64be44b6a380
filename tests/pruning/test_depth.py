"""Depth in plans: how half-blocks pair up, and depth together with widths."""

import json
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import timm
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.oracle import reference
from tests.support.tiny import VARIANTS, TensorProxy, images, kl_sum, tiny
from upvit_core.errors import PlanError
from upvit_core.importance.fisher import Fisher
from upvit_core.models.build import adapt
from upvit_core.models.checkpoint import LoadedModel, load_model, save_model
from upvit_core.planning.depth import (
    ORDERS,
    block_pairs,
    digest_at,
    is_hybrid,
    pairs_at,
    plan_depth,
    plan_depth_only,
    shape_at,
)
from upvit_core.planning.ratios import Ratios, plan_uniform
from upvit_core.profiling.macs import count_parameters
from upvit_core.pruning.depth import at_depth, score_blocks
from upvit_core.pruning.prune import cut
from upvit_core.pruning.surgery import prune
from upvit_core.records.block_removals import BlockRemovals, Candidate, Step, neighbours, without
from upvit_core.records.known_shapes import deit_shape
from upvit_core.records.plan import PruningPlan
from upvit_core.records.scores import ImportanceScores, expected_widths
from upvit_core.records.shape import BlockShape

DEEP = "3 heads, 5 blocks"
CFG = {"mean": (0.5,) * 3, "std": (0.5,) * 3}
UNEVEN = replace(
    deit_shape("tiny"), name="uneven", embed_dim=24,
    blocks=tuple(BlockShape(heads, 24, ffn) for heads, ffn in ((6, 96), (3, 48), (6, 72), (2, 64))),
)  # fmt: skip


def removals(shape, places, **more) -> BlockRemovals:
    """A record that removes the neighbours at these places, one after another."""
    left, steps = tuple(range(2 * shape.depth)), []
    for place in places:
        pairs = neighbours(left)
        candidates = tuple(Candidate(halves=pair, kl=float(i != place)) for i, pair in enumerate(pairs))
        steps.append(Step(candidates=candidates, removed=pairs[place]))
        left = without(left, pairs[place])
    known = {"source_shape": shape.to_dict(), "images": 4, "model_digest": "abc", "steps": tuple(steps)}
    return BlockRemovals(**known | more)


def scores(shape, digest: str = "abc") -> ImportanceScores:
    rng = np.random.default_rng(0)
    values = {key: rng.random(width) for key, width in expected_widths(shape).items()}
    return ImportanceScores(values=values, criterion="kl", unit="nats", shape=shape, model_digest=digest)


def test_neighbours_pair_up() -> None:
    assert block_pairs((0, 1, 2, 3)) == ((0, 0), (1, 1))
    assert block_pairs((0, 1, 2, 5, 6, 7)) == ((0, 0), (1, 2), (3, 3))
    assert [is_hybrid(pair) for pair in ((0, 0), (1, 2))] == [False, True]
    for wrong in ((1, 2), (0, 1, 2), (0, 2), (0, 1, 3, 5)):
        with pytest.raises(PlanError, match="alternate"):
            block_pairs(wrong)


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(st.integers(1, 9), st.data())
def test_any_removals_leave_ordinary_blocks_in_order(depth: int, data) -> None:
    shape = replace(UNEVEN, blocks=(UNEVEN.blocks[0],) * depth)
    count = data.draw(st.integers(0, depth - 1))
    places = [data.draw(st.integers(0, 2 * (depth - n) - 2)) for n in range(count)]
    record = removals(shape, places)
    for target in range(depth - count, depth + 1):
        pairs = pairs_at(record, target)
        assert len(pairs) == target
        assert all(a <= f for a, f in pairs)
        assert all(one[1] < other[0] for one, other in pairwise(pairs))
        plan_depth_only(record, target)


def test_a_hybrid_block_has_the_attention_of_one_and_the_ffn_of_another() -> None:
    record = removals(UNEVEN, [3, 1])  # F1 A2 leaves (1, 2); then F0 A1 leaves (0, 2)
    assert pairs_at(record, 4) == ((0, 0), (1, 1), (2, 2), (3, 3))
    assert pairs_at(record, 3) == ((0, 0), (1, 2), (3, 3))
    assert pairs_at(record, 2) == ((0, 2), (3, 3))
    assert shape_at(UNEVEN, pairs_at(record, 3)).blocks[1] == BlockShape(3, 24, 72)
    assert plan_depth_only(record, 2).shape_after.blocks == (BlockShape(6, 24, 72), BlockShape(2, 24, 64))
    for depth in (0, 1, 5):
        with pytest.raises(PlanError, match=f"from 4 to 2 blocks, not to {depth}"):
            pairs_at(record, depth)


def test_depth_and_width_together_take_each_half_from_its_source() -> None:
    width = plan_uniform(scores(UNEVEN), Ratios(0.25, 0.5, 0.5), snap=True)
    record = removals(UNEVEN, [3])
    plan = plan_depth(width, record, 3)
    assert plan.requested["order"] == "together"
    assert (plan.requested["depth"], plan.requested["residual"]) == (3, 0.25)
    assert plan.residual == width.residual
    assert plan.blocks[0] == width.blocks[0]
    assert plan.blocks[1].attention == width.blocks[1].attention
    assert plan.blocks[1].ffn == width.blocks[2].ffn
    assert (plan.blocks[1].source, plan.blocks[1].ffn_source) == (1, 2)
    assert PruningPlan.from_json(plan.to_json()) == plan
    assert plan_depth(width, record, 4).blocks == width.blocks


def test_depth_first_maps_back_to_the_original() -> None:
    record = removals(UNEVEN, [3])
    shallow = scores(shape_at(UNEVEN, pairs_at(record, 3)), digest_at(record, 3))
    width = plan_uniform(shallow, Ratios(0.25, 0.5, 0.5), snap=True)
    plan = plan_depth(width, record, 3)
    assert plan.requested["order"] == "depth first"
    assert plan.shape_before == UNEVEN
    assert plan.model_digest == "abc"
    assert [(b.source, b.ffn_block) for b in plan.blocks] == [(0, 0), (1, 2), (3, 3)]
    assert [b.attention for b in plan.blocks] == [b.attention for b in width.blocks]
    assert [b.ffn for b in plan.blocks] == [b.ffn for b in width.blocks]
    assert plan.shape_after.blocks == width.shape_after.blocks


def test_records_of_different_models_are_refused() -> None:
    record = removals(UNEVEN, [3])
    width = plan_uniform(scores(UNEVEN), Ratios(ffn=0.5))
    with pytest.raises(PlanError, match="different models"):
        plan_depth(plan_uniform(scores(UNEVEN, "other"), Ratios(ffn=0.5)), record, 3)
    with pytest.raises(PlanError, match="different models"):
        plan_depth(plan_uniform(scores(shape_at(UNEVEN, pairs_at(record, 3))), Ratios(ffn=0.5)), record, 3)
    thin = removals(width.shape_after, [3], after=width.digest)
    assert plan_depth(width, thin, 3).requested["order"] == "width first"
    with pytest.raises(PlanError, match="another width plan"):
        plan_depth(plan_uniform(scores(UNEVEN), Ratios(ffn=0.25)), thin, 3)
    with pytest.raises(PlanError, match="reduced width"):
        plan_depth_only(thin, 3)
    with pytest.raises(PlanError, match="already leaves out blocks"):
        plan_depth(plan_depth(width, record, 3), record, 3)


def loaded(variant: str = DEEP, dtype: torch.dtype = torch.float64) -> LoadedModel:
    model, shape = tiny(variant, dtype)
    return LoadedModel(model, shape, variant, variant, "abc", True, "config", dict(CFG), None)


class Images:
    """An image set as far as a proxy needs it."""

    name, digest = "noise", "noise"

    def __init__(self, count: int = 4):
        self.count = count

    def __len__(self) -> int:
        return self.count

    def batches(self, batch_size, indices, device="cpu"):
        yield from TensorProxy(images(max(self.count, 6))[list(indices)]).batches(batch_size, device)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("order", ORDERS)
def test_each_order_gives_a_plan_of_the_original(variant: str, order) -> None:
    """Its cut equals removing in that order by hand: depth by re-keying whole blocks, width by the oracle's slices."""
    opened = loaded(variant)
    depth = opened.shape.depth - 1

    def score_channels(which: LoadedModel) -> ImportanceScores:
        record = Fisher().attribute(adapt(which.model, which.shape), TensorProxy(images()))
        return replace(record, model_digest=which.digest)

    def half_of(which: LoadedModel) -> PruningPlan:
        return plan_uniform(score_channels(which), Ratios.equal(0.5), snap=True)

    if order == "depth first":
        removals = score_blocks(opened, Images(), depth)
        plan = plan_depth(half_of(at_depth(opened, removals, depth)), removals, depth)
    else:
        width = half_of(opened)
        removals = score_blocks(opened, Images(), depth, after=width if order == "width first" else None)
        plan = plan_depth(width, removals, depth)
    assert plan.requested["order"] == order
    assert plan.shape_after.depth == depth
    thin = prune(opened.model, opened.shape, plan)
    pairs = [(b.source, b.ffn_block) for b in plan.blocks]
    whole = [
        {"source": b, "heads": block.num_heads, "attention_keep": range(block.attention), "ffn_keep": range(block.ffn)}
        for b, block in enumerate(opened.shape.blocks)
    ]
    shallow = reference.thin(opened.model, range(opened.shape.embed_dim), whole[:depth])
    for number, (a, f) in enumerate(pairs):
        for parts, source in ((("norm1", "attn", "ls1"), a), (("norm2", "mlp", "ls2"), f)):
            for part in parts:
                taken = getattr(opened.model.blocks[source], part).state_dict()
                getattr(shallow.blocks[number], part).load_state_dict(taken)
    cuts = [
        {"source": n, "heads": b.attention.heads, "attention_keep": b.attention.keep, "ffn_keep": b.ffn.keep}
        for n, b in enumerate(plan.blocks)
    ]
    expected = reference.thin(shallow, plan.residual.keep, cuts)
    torch.testing.assert_close(thin(images()), expected(images()), rtol=1e-10, atol=1e-10)


def test_width_first_scores_the_thinner_model_against_the_original() -> None:
    opened = loaded()
    width = plan_uniform(scores(opened.shape), Ratios(residual=0.5, ffn=0.5), snap=True)
    record = score_blocks(opened, Images(), 4, after=width)
    assert record.after == width.digest
    assert record.shape.blocks == width.shape_after.blocks
    x = images()[np.random.default_rng(0).permutation(4)]
    for candidate in record.steps[0].candidates[::4]:
        left = without(range(10), candidate.halves)
        plan = plan_depth(width, removals(width.shape_after, [candidate.halves[0]], after=width.digest), 4)
        assert [half for b in plan.blocks for half in (2 * b.source, 2 * b.ffn_block + 1)] == list(left)
        thin = prune(opened.model, opened.shape, plan)
        assert candidate.kl == pytest.approx(kl_sum(opened.model, thin, x), rel=1e-9)


def test_the_model_at_a_depth_is_not_taken_for_the_whole() -> None:
    opened = loaded()
    record = score_blocks(opened, Images(), 3)
    shallow = at_depth(opened, record, 3)
    assert shallow.shape.depth == 3
    assert shallow.digest not in (opened.digest, at_depth(opened, record, 4).digest)
    x = images()[np.random.default_rng(0).permutation(4)]
    assert record.step_to(3).kl == pytest.approx(kl_sum(opened.model, shallow.model, x), rel=1e-9)
    with pytest.raises(PlanError, match="belong to"):
        at_depth(replace(opened, digest="other"), record, 3)


def test_stock_timm_opens_a_shallower_model_with_hybrid_blocks(tmp_path) -> None:
    opened = loaded(DEEP, torch.float32)
    record = removals(opened.shape, [3, 3])  # F1 A2, then F2 A3: block 1 becomes (1, 3)
    plan = plan_depth(plan_uniform(scores(opened.shape), Ratios.equal(0.5)), record, 3)
    assert [(b.source, b.ffn_block) for b in plan.blocks] == [(0, 0), (1, 3), (4, 4)]
    thin = prune(opened.model, opened.shape, plan)
    save_model(thin, tmp_path, shape=plan.shape_after, pretrained_cfg=CFG, name="thin", plan_json=plan.to_json())
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["model_args"]["depth"] == 3
    stock = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    x = images(dtype=torch.float32)
    with torch.no_grad():
        assert torch.equal(stock(x), thin(x))
        assert torch.equal(load_model(tmp_path).model(x), thin(x))
    assert sum(p.numel() for p in stock.parameters()) == count_parameters(plan.shape_after)
    assert load_model(tmp_path).shape.depth == 3


@pytest.mark.parametrize("repair", [False, True])
def test_directions_and_repair_know_hybrid_blocks(repair: bool) -> None:
    """At full width a plan of directions changes nothing but the depth, and repair brings what is left nearer."""
    opened = loaded()
    record = removals(opened.shape, [3])
    plan = plan_depth(plan_uniform(scores(opened.shape), basis="directions"), record, 4)
    rekeyed = prune(opened.model, opened.shape, plan_depth_only(record, 4))
    student = cut(opened, plan, data=Images(40), images=40, repair=repair)
    x = images(40)
    with torch.no_grad():
        expected, found, whole = rekeyed(x), student(x), opened.model(x)
    if repair:
        assert (found - whole).square().sum() < (expected - whole).square().sum()
    else:
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
