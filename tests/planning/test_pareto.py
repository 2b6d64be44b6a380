"""The front: dominated plans against the definition, written as loops."""

import numpy as np
import pytest

from tests.support.planning import Steps, scores
from upvit_core.errors import PlanError
from upvit_core.planning.curves import predicted_loss
from upvit_core.planning.pareto import candidate_plans, dominated, pareto_rows
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
