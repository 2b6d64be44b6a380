"""Plans from ratios: what stays, what is refused."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.planning import SHAPE, scores
from upvit_core.errors import PlanError
from upvit_core.planning.ratios import Ratios, kept_channels, plan_preset, plan_uniform, presets_for
from upvit_core.records.known_shapes import deit_shape


def test_keeps_the_highest_scores() -> None:
    record = scores()
    plan = plan_uniform(record, Ratios(0.5, 0.5, 0.75), heads=3)
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
    ("ratios", "heads", "message"),
    [
        ({"ffn": 1.0}, None, "The ffn ratio is the share removed"),
        ({"residual": -0.1}, None, "residual ratio"),
        ({"reduction": float("nan")}, None, "reduction ratio"),
        ({}, 4, "cannot be merged into 4"),
        ({}, 0, "cannot be merged into 0"),
        ({"residual": 0.45}, None, "heads do not divide; a ratio of 0.5 leaves 12"),
        ({"attention": 0.99}, None, "leaves none|do not divide"),
        ({"reduction": 0.5}, None, "no spatial reduction"),
    ],
)
def test_illegal_wishes_are_clear_errors(ratios: dict[str, float], heads: int | None, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        plan_uniform(scores(), Ratios(**ratios), heads=heads)


@given(st.integers(1, 800), st.floats(0, 0.999), st.sampled_from([1, 2, 3, 6]))
def test_snapping_gives_a_legal_width(width: int, ratio: float, multiple: int) -> None:
    width *= multiple
    kept = kept_channels(width, ratio, multiple, snap=True)
    assert 0 < kept <= width
    assert kept % multiple == 0
    assert abs(kept - width * (1 - ratio)) <= multiple


@pytest.mark.parametrize(("width", "multiple", "kept"), [(11, 4, 8), (7, 2, 6), (23, 6, 18), (12, 4, 12)])
def test_snapping_stays_below_a_width_that_is_no_multiple(width: int, multiple: int, kept: int) -> None:
    assert kept_channels(width, 0.0, multiple, snap=True) == kept


def test_presets_are_offered_where_widths_allow() -> None:
    assert presets_for(deit_shape("base")) == ("deit_small", "deit_tiny")
    assert presets_for(deit_shape("tiny")) == ()
    assert presets_for(SHAPE) == ()
    with pytest.raises(PlanError, match="cannot be cut to"):
        plan_preset(scores(), "deit_tiny")


def test_directions_keep_the_leading_ones_and_rank_ffn_by_score() -> None:
    record = scores()
    plan = plan_uniform(record, Ratios.equal(0.5), heads=3, basis="directions")
    assert plan.basis == "directions"
    assert plan.residual.keep == tuple(range(12))
    assert plan.blocks[0].attention.keep == (0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19)
    assert plan.blocks[0].ffn.keep == plan_uniform(record, Ratios(ffn=0.5)).blocks[0].ffn.keep
    directions = replace(record, basis="directions")
    assert plan_uniform(directions, Ratios(ffn=0.5), basis="directions").basis == "directions"
    with pytest.raises(PlanError, match="scores of directions"):
        plan_uniform(directions, Ratios(ffn=0.5))
