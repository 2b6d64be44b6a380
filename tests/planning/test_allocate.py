"""Allocations against orderings written out by hand."""

from dataclasses import replace

import numpy as np
import pytest

from tests.support.planning import SHAPE, scores
from upvit_core.errors import PlanError
from upvit_core.planning.allocate import GlobalRanking, plan_allocated
from upvit_core.planning.curves import predicted_loss, removal_curves
from upvit_core.planning.ratios import Ratios, plan_uniform
from upvit_core.profiling.macs import count_macs, count_parameters
from upvit_core.records.shape import BlockShape

UNEVEN = replace(SHAPE, name="uneven", blocks=(BlockShape(6, 24, 96), BlockShape(3, 18, 40), BlockShape(6, 12, 96)))


def dropped(plan, record) -> dict[str, set[int]]:
    shape = record.shape
    gone = {"residual": set(range(shape.embed_dim)) - set(plan.residual.keep)}
    for b, block in enumerate(plan.blocks):
        gone[f"attention.{b}"] = set(range(shape.blocks[b].attention)) - set(block.attention.keep)
        gone[f"ffn.{b}"] = set(range(shape.blocks[b].ffn)) - set(block.ffn.keep)
    return gone


def test_uniform_is_the_letters() -> None:
    record = scores()
    ours = plan_allocated(record, Ratios(0.5, 0.5, 0.75), heads=3)
    assert ours.digest == plan_uniform(record, Ratios(0.5, 0.5, 0.75), heads=3).digest


def test_isomorphic_keeps_the_best_of_each_kind() -> None:
    record = scores()
    plan = plan_allocated(record, Ratios(0.25, 0.5, 0.5), allocation="isomorphic")
    gone = dropped(plan, record)
    ranked = sorted((record.ffn(b)[c], b, c) for b in range(3) for c in range(96))
    for b in range(3):
        assert gone[f"ffn.{b}"] == {c for _, block, c in ranked[:144] if block == b}
    assert sum(len(gone[f"attention.{b}"]) for b in range(3)) == 36
    steps = sorted(
        (np.sort(record.attention(b).reshape(6, 4), axis=1)[:, n].sum(), b) for b in range(3) for n in range(3)
    )
    for b in range(3):
        assert len(gone[f"attention.{b}"]) == 6 * sum(block == b for _, block in steps[:6])
    assert len({len(block.ffn.keep) for block in plan.blocks}) > 1, "blocks differ"


def test_global_is_one_threshold() -> None:
    record = scores()
    plan = plan_allocated(record, Ratios.equal(0.5), heads=1, allocation="global")
    gone = dropped(plan, record)
    highest_gone = max(record.values[key][c] for key, channels in gone.items() for c in channels)
    narrow = {"residual": 1, "attention.0": 1}
    for key, channels in gone.items():
        kept = [record.values[key][c] for c in range(len(record.values[key])) if c not in channels]
        if len(kept) > narrow.get(key, 1):
            assert min(kept) >= highest_gone
    assert sum(map(len, gone.values())) == (24 + 3 * 24 + 3 * 96) // 2


@pytest.mark.parametrize("per", ["params", "macs"])
def test_global_per_cost_divides_by_what_the_channel_saves(per: str) -> None:
    record = scores()
    count = {"params": count_parameters, "macs": count_macs}[per]
    ranking = GlobalRanking(removal_curves(record, heads=1), per)
    full = count(SHAPE)
    blocks = SHAPE.blocks
    saved = {
        "residual": full - count(replace(SHAPE, embed_dim=23)),
        "attention": full - count(replace(SHAPE, blocks=(replace(blocks[0], attention=23), *blocks[1:]))),
        "ffn": full - count(replace(SHAPE, blocks=(replace(blocks[0], ffn=95), *blocks[1:]))),
    }
    worth = sorted(
        (value / saved[key.split(".")[0]], key)
        for key, values in record.values.items()
        for value in np.sort(values)[:-1]
    )
    for steps in (1, 50, 200):
        widths = ranking.widths(steps)
        gone = [key for _, key in worth[:steps]]
        assert widths.embed_dim == 24 - gone.count("residual")
        assert [a for _, a, _ in widths.blocks] == [24 - gone.count(f"attention.{b}") for b in range(3)]
        assert [h for _, _, h in widths.blocks] == [96 - gone.count(f"ffn.{b}") for b in range(3)]


@pytest.mark.parametrize("allocation", ["uniform", "global", "isomorphic"])
@pytest.mark.parametrize("round_to", [1, 8, 16])
def test_every_plan_is_legal_and_rounded(allocation, round_to: int) -> None:
    for shape in (SHAPE, UNEVEN):
        for ratio in (0, 0.3, 0.97):
            plan = plan_allocated(scores(shape), Ratios.equal(ratio), allocation=allocation, round_to=round_to)
            for before, after in zip(shape.blocks, plan.shape_after.blocks, strict=True):
                for width, full in ((after.ffn, before.ffn), (after.attention, before.attention)):
                    assert width % round_to == 0 or width == full
                assert after.attention % after.num_heads == 0


def test_predicted_loss_adds_what_goes() -> None:
    record = scores(images=10)
    plan = plan_allocated(record, Ratios(0.3, 0.5, 0.7), allocation="global")
    by_hand = sum(record.values[key][c] for key, channels in dropped(plan, record).items() for c in channels) / 10
    assert predicted_loss(record, plan) == pytest.approx(by_hand, rel=1e-12)


@pytest.mark.parametrize(
    ("wish", "message"),
    [
        ({"heads": 4}, "cannot be merged into 4"),
        ({"heads": [6, 3]}, "2 head counts were given for the 3 blocks"),
        ({"allocation": "best"}, "no allocation 'best'"),
        ({"allocation": "global", "per": "ms"}, "not per 'ms'"),
        ({"round_to": 0}, "not of 0"),
    ],
)
def test_illegal_wishes(wish, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        plan_allocated(scores(), **wish)
