"""Plans: what stays, what is refused."""

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from upvit_core.errors import PlanError
from upvit_core.importance.ranking import keep_in_merged_heads
from upvit_core.planning.ratios import kept_channels, plan_preset, plan_uniform, presets_for
from upvit_core.records.plan import PruningPlan
from upvit_core.records.scores import ImportanceScores, expected_widths
from upvit_core.records.shape import BlockShape, deit_shape

SHAPE = replace(deit_shape("tiny"), name="small", embed_dim=24, blocks=(BlockShape(6, 24, 96),) * 3)


def scores(shape=SHAPE, seed: int = 0) -> ImportanceScores:
    rng = np.random.default_rng(seed)
    return ImportanceScores(
        values={key: rng.random(width) for key, width in expected_widths(shape).items()},
        criterion="kl", unit="nats", shape=shape,
    )  # fmt: skip


def test_keeps_the_highest_scores() -> None:
    record = scores()
    plan = plan_uniform(record, residual=0.5, attention=0.5, ffn=0.75, heads=3)
    dropped = [c for c in range(24) if c not in plan.residual.keep]
    assert min(record.residual[list(plan.residual.keep)]) > max(record.residual[dropped])
    for b, block in enumerate(plan.blocks):
        assert len(block.ffn.keep) == 24
        assert set(block.ffn.keep) == set(np.argsort(record.ffn(b))[-24:].tolist())
        for head in range(3):
            inside = [c for c in block.attention.keep if 8 * head <= c < 8 * head + 8]
            best = 8 * head + np.argsort(record.attention(b)[8 * head : 8 * head + 8])[-4:]
            assert set(inside) == set(best.tolist())


def test_ratio_zero_keeps_everything() -> None:
    plan = plan_uniform(scores())
    assert plan.shape_after == SHAPE
    assert plan.residual.keep == tuple(range(24))


@pytest.mark.parametrize(
    ("wish", "message"),
    [
        ({"ffn": 1.0}, "share removed"),
        ({"residual": -0.1}, "share removed"),
        ({"residual": float("nan")}, "share removed"),
        ({"heads": 4}, "cannot be merged into 4"),
        ({"heads": 0}, "cannot be merged into 0"),
        ({"residual": 0.45}, "heads do not divide; a ratio of 0.5 leaves 12"),
        ({"attention": 0.99}, "leaves none|do not divide"),
    ],
)
def test_illegal_wishes_are_clear_errors(wish, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        plan_uniform(scores(), **wish)


@given(st.integers(1, 800), st.floats(0, 0.999), st.sampled_from([1, 2, 3, 6]))
def test_snapping_gives_a_legal_width(width: int, ratio: float, multiple: int) -> None:
    width *= multiple
    kept = kept_channels(width, ratio, multiple, snap=True)
    assert 0 < kept <= width
    assert kept % multiple == 0
    assert abs(kept - width * (1 - ratio)) <= multiple


def test_merging_puts_neighbours_together() -> None:
    values = np.array([9, 1, 8, 2, 7, 3, 6, 4], float)
    assert keep_in_merged_heads(values, 4, 2, 4).tolist() == [0, 2, 4, 6]
    assert keep_in_merged_heads(values, 4, 1, 4).tolist() == [0, 2, 4, 6]
    assert keep_in_merged_heads(values, 4, 4, 4).tolist() == [0, 2, 4, 6]
    with pytest.raises(PlanError, match="do not spread"):
        keep_in_merged_heads(values, 4, 2, 3)


def test_presets_are_offered_where_widths_allow() -> None:
    assert presets_for(deit_shape("base")) == ("deit_small", "deit_tiny")
    assert presets_for(deit_shape("tiny")) == ()
    assert presets_for(SHAPE) == ()
    with pytest.raises(PlanError, match="cannot be cut to"):
        plan_preset(scores(), "deit_tiny")


def test_round_trip(tmp_path) -> None:
    plan = plan_uniform(scores(), residual=0.5, heads=2)
    plan.save(tmp_path / "plan.json")
    assert PruningPlan.load(tmp_path / "plan.json") == plan
    content = json.loads(plan.to_json())
    assert content["blocks"][0]["source"] == 0
    assert content["blocks"][0]["attention"]["heads"] == 2


BREAKS = [
    (lambda p: p["residual"].update(keep=[]), "keeps no channel"),
    (lambda p: p["residual"].update(keep=[1, 1]), "ascending"),
    (lambda p: p["residual"].update(keep=[99]), "only 24"),
    (lambda p: p["blocks"][0].update(source=7), "has 3"),
    (lambda p: p["blocks"][0]["attention"].update(heads=4), "cannot be merged"),
    (lambda p: p["blocks"][0]["attention"].update(keep=[0, 1, 2]), "same number"),
    (lambda p: p.update(blocks=[]), "no block"),
    (lambda p: p["blocks"].reverse(), "order"),
    (lambda p: p.update(source_shape={}), "malformed"),
    (lambda p: p.update(extra=1), "Extra|extra"),
]


@pytest.mark.parametrize(("change", "message"), BREAKS)
def test_malformed_plans_are_refused_in_one_sentence(change, message: str) -> None:
    content = json.loads(plan_uniform(scores(), residual=0.5, heads=3).to_json())
    change(content)
    with pytest.raises(PlanError, match=message) as caught:
        PruningPlan.from_json(json.dumps(content))
    assert "\n" not in str(caught.value)


FIELDS = ["residual", "blocks", "keep", "source", "attention", "ffn", "source_shape", "heads", "version"]
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(FIELDS), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=300, deadline=None)
@given(ANYTHING)
def test_random_json_never_crashes(content) -> None:
    with pytest.raises(PlanError):
        PruningPlan.from_json(json.dumps(content))


def test_directions_keep_the_leading_ones_and_rank_ffn_by_score() -> None:
    record = scores()
    plan = plan_uniform(record, residual=0.5, attention=0.5, ffn=0.5, heads=3, basis="directions")
    assert plan.basis == "directions"
    assert plan.residual.keep == tuple(range(12))
    assert plan.blocks[0].attention.keep == (0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19)
    assert plan.blocks[0].ffn.keep == plan_uniform(record, ffn=0.5).blocks[0].ffn.keep
    directions = replace(record, basis="directions")
    assert plan_uniform(directions, ffn=0.5, basis="directions").basis == "directions"
    with pytest.raises(PlanError, match="scores of directions"):
        plan_uniform(directions, ffn=0.5)
