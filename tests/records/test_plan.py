"""Plans as files: what is written, what is refused."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.planning import scores
from upvit_core.errors import PlanError
from upvit_core.planning.ratios import Ratios, plan_uniform
from upvit_core.records.plan import PruningPlan


def test_round_trip(tmp_path) -> None:
    plan = plan_uniform(scores(), Ratios(residual=0.5), heads=2)
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
    content = json.loads(plan_uniform(scores(), Ratios(residual=0.5), heads=3).to_json())
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
