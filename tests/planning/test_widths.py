import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from upvit_core.errors import PlanError
from upvit_core.paths import DEMO_FOLDER
from upvit_core.planning.budget import Budget
from upvit_core.planning.budget_depth import best_over_depth
from upvit_core.planning.curves import Widths
from upvit_core.planning.depth import plan_depth
from upvit_core.planning.widths import (
    check_widths,
    nearest_widths,
    parse_widths,
    plan_from_widths,
    whole_widths,
    widths_of,
    write_widths,
)
from upvit_core.profiling.macs import count_macs
from upvit_core.records.block_removals import BlockRemovals
from upvit_core.records.known_shapes import deit_shape
from upvit_core.records.scores import ImportanceScores, expected_widths

BASE = deit_shape("base")


def test_text_and_back() -> None:
    assert write_widths(widths_of(deit_shape("small"))) == "384:6x384x1536*12"
    assert parse_widths("384:6x384x1536*12", BASE) == widths_of(deit_shape("small"))
    uneven = Widths(500, ((12, 120, 7), *((6, 60, 3072),) * 10, (1, 1, 1)))
    assert write_widths(uneven) == "500:12x120x7,6x60x3072*10,1x1x1"
    assert parse_widths(write_widths(uneven), BASE) == uneven


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("", "no list of widths"),
        ("384", "no list of widths"),
        ("384:6x384*12", "no list of widths"),
        ("384:6x384x1536*99999999", "no list of widths"),
        ("384:6x384x1536", "for 1 blocks"),
        ("0:6x384x1536*12", "1 to 768"),
        ("769:6x384x1536*12", "1 to 768"),
        ("384:5x385x1536*12", "cannot be merged into 5"),
        ("384:6x385x1536*12", "not 385"),
        ("384:6x774x1536*12", "not 774"),
        ("384:6x0x1536*12", "not 0"),
        ("384:6x384x0*12", "1 to 3072"),
    ],
)
def test_what_a_model_cannot_have_is_named(text: str, part: str) -> None:
    with pytest.raises(PlanError, match=part):
        parse_widths(text, BASE)


number = st.integers(-5, 5000)


@given(
    st.integers(-5, 2000),
    st.lists(st.tuples(number, number, number), min_size=12, max_size=12),
    st.sampled_from([1, 8, 16]),
)
def test_nearest_widths_are_legal_and_change_nothing_that_is(
    residual: int, blocks: list[tuple[int, int, int]], round_to: int
) -> None:
    found = nearest_widths(Widths(residual, tuple(blocks)), BASE, round_to)
    check_widths(found, BASE)
    assert nearest_widths(found, BASE, round_to) == found
    assert all(ffn % round_to == 0 and attention % round_to == 0 for _, attention, ffn in found.blocks)


def test_the_plan_keeps_the_best_channels_of_those_widths() -> None:
    rng = np.random.default_rng(0)
    values = {key: rng.random(width) for key, width in expected_widths(BASE).items()}
    scores = ImportanceScores(values=values, criterion="made up", unit="nats", shape=BASE, images=1)
    plan = plan_from_widths(scores, "384:6x384x1536*11,12x120x64")
    assert [len(b.ffn.keep) for b in plan.blocks] == [1536] * 11 + [64]
    assert plan.blocks[11].attention.heads == 12
    assert set(plan.blocks[11].ffn.keep) == set(np.argsort(-values["ffn.11"])[:64].tolist())
    assert plan.requested["widths"] == "384:6x384x1536*11,12x120x64"


def test_whole_widths_make_a_shallower_plan_again() -> None:
    record = ImportanceScores.load(DEMO_FOLDER / "scores.safetensors")
    removals = BlockRemovals.load(DEMO_FOLDER / "blocks.json")
    budget = Budget(macs=0.3 * count_macs(record.shape))
    _, every = best_over_depth(record, removals, budget, heads=3, round_to=8)
    assert len(every) >= 4
    for choice in every:
        plan = choice.best.plan
        widths = whole_widths(plan, 8)
        again = plan_from_widths(record, write_widths(widths))
        again = plan_depth(again, removals, choice.depth) if choice.depth < 6 else again
        assert (again.residual, again.blocks) == (plan.residual, plan.blocks)
        assert all(ffn % 8 == 0 for _, _, ffn in widths.blocks)
