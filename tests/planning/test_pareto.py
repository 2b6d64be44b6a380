"""The front: dominated plans against the definition, written as loops."""

import numpy as np
import pytest

from tests.support.planning import Steps, scores
from upvit_core.errors import PlanError
from upvit_core.planning.curves import predicted_loss
from upvit_core.planning.pareto import _area, candidate_plans, dominated, most_gain, pareto_rows
from upvit_core.profiling.macs import count_macs, count_parameters


def test_dominated_is_as_defined() -> None:
    rng = np.random.default_rng(0)
    values = rng.integers(0, 5, (40, 3))
    expected = [
        any(all(other[i] <= row[i] for i in range(3)) and any(other[i] < row[i] for i in range(3)) for other in values)
        for row in values
    ]
    assert dominated(values).tolist() == expected
    assert not dominated(np.array([[1, 2], [1, 2]])).any(), "equals do not beat each other"
    assert dominated(np.zeros((0, 2))).tolist() == []


def covered(points: np.ndarray, worst: tuple[float, float], cells: int = 400) -> float:
    """The area that points dominate up to `worst`, by counting the cells of a grid."""
    x, y = ((np.arange(cells) + 0.5) / cells * end for end in worst)
    inside = (points[:, 0, None, None] <= x[:, None]) & (points[:, 1, None, None] <= y)
    return float(inside.any(0).mean() * worst[0] * worst[1])


def test_what_is_chosen_next_adds_the_largest_area() -> None:
    rng, worst = np.random.default_rng(0), (1.0, 10.0)
    for _ in range(20):
        front = np.column_stack([rng.uniform(0.3, 1, 4), rng.uniform(0, 9, 4)])
        candidates = np.column_stack([rng.uniform(0.1, 1, 6), rng.uniform(0, 12, 6)])
        known, left = front, list(range(6))
        for row in most_gain(front, *candidates.T, np.zeros(6), worst):
            gains = {n: covered(np.vstack([known, candidates[n]]), worst) - covered(known, worst) for n in left}
            assert gains[row] > max(gains.values()) - 0.06
            known = np.vstack([known, candidates[row]])
            left.remove(row)
        added = [covered(np.vstack([known, candidates[n]]), worst) - covered(known, worst) for n in left]
        assert len(left) == 3 or max(added) < 0.06, "the rest adds nothing"


def test_of_two_equal_hopes_the_less_certain_may_gain_more() -> None:
    front, costs, losses = np.array([[0.5, 1.0]]), np.array([0.5, 0.5]), np.array([1.2, 1.2])
    assert most_gain(front, costs, losses, np.array([0.0, 1.0]), (1.0, 10.0))[0] == 1
    drawn = 1.2 + np.random.default_rng(0).normal(size=100_000)
    assert _area(front, 0.5, drawn, (1.0, 10.0)) == pytest.approx(0.5 * np.clip(1.0 - drawn, 0, None).mean())


def test_rows_say_what_plans_cost() -> None:
    record = scores()
    plans = candidate_plans(record, shares=(0.8, 0.5, 0.01))
    rows = pareto_rows(record, plans, latency=Steps(), axes=("macs", "predicted"))
    assert len(rows) == len(plans) == 9, "1 % of the MACs cannot be reached"
    for row in rows:
        after = row.plan.shape_after
        assert (row.params, row.macs) == (count_parameters(after), count_macs(after))
        assert row.latency_ms == pytest.approx(Steps().of(after))
        assert row.predicted == predicted_loss(record, row.plan)
        assert row.stock == after.is_uniform
        worse = [o for o in rows if o.macs <= row.macs and o.predicted <= row.predicted and o is not row]
        assert row.dominated == any((o.macs, o.predicted) != (row.macs, row.predicted) for o in worse)
    assert [row.macs for row in rows] == sorted(row.macs for row in rows)
    assert not any(row.dominated for row in rows if row.name.startswith("best"))


def test_latency_needs_an_estimate() -> None:
    record = scores()
    plain = pareto_rows(record, candidate_plans(record, shares=(0.5,)))
    assert all(row.latency_ms is None for row in plain)
    with pytest.raises(PlanError, match="calibrat"):
        pareto_rows(record, [], axes=("latency_ms", "predicted"))
