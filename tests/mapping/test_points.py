"""Points of cuts against plans: what is lost by width, and what features say."""

import numpy as np
import pytest

from tests.support.planning import SHAPE, scores
from upvit_core.mapping.points import LEAST_LOST, Worth, features
from upvit_core.planning.ratios import plan_uniform, uniform_widths
from upvit_core.records.basis import Basis
from upvit_core.records.ratios import Ratios


@pytest.mark.parametrize("basis", Basis)
@pytest.mark.parametrize("heads", [6, 2])
def test_a_point_by_widths_is_that_of_the_plan(basis: Basis, heads: int) -> None:
    ratios, worth = Ratios(0.5, 0.25, 0.7), Worth(scores(), basis)
    plan = plan_uniform(scores(), ratios, heads=heads, snap=True, basis=basis)
    widths, counts = uniform_widths(SHAPE, ratios, heads=heads, snap=True)
    by_plan, by_widths = worth.of(plan), worth.at(widths, counts)
    assert (by_plan.widths, by_plan.heads) == (by_widths.widths, by_widths.heads)
    assert by_widths.lost == pytest.approx(by_plan.lost)


def test_features_by_hand() -> None:
    record = scores()
    plan = plan_uniform(record, Ratios(ffn=0.5), heads=3)
    values = [np.sort(record.ffn(b)) for b in range(3)]
    lost = sum(v[: len(v) // 2].sum() for v in values) / sum(v.sum() for v in record.values.values())
    nothing = np.log(LEAST_LOST)
    row = features([Worth(record).of(plan)], SHAPE)[0]
    expected = [0, 0, 0.5, 1, np.log(LEAST_LOST + lost), nothing, nothing, np.log(LEAST_LOST + lost)]
    np.testing.assert_allclose(row, expected, atol=1e-12)
