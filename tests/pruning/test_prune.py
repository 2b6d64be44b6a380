"""A student made again from the plan beside it."""

import json
from pathlib import Path

import numpy as np
import pytest

from tests.support.verbs import call
from upvit_core.errors import PlanError, ScoresError
from upvit_core.models.checkpoint import load_model
from upvit_core.records.plan import PruningPlan
from upvit_core.records.scores import ImportanceScores


@pytest.mark.parametrize("basis", ["channels", "directions"])
def test_a_student_is_made_again_from_its_plan_bit_for_bit(basis: str, tmp_path: Path) -> None:
    scores, plan = "assets/demo/scores.safetensors", tmp_path / "plan.json"
    ratios = ("--residual", 0.75, "--attention", 0.75, "--ffn", 0.75)
    call("plan", scores, *ratios, "--basis", basis, "--out", plan)
    first, second, other = (tmp_path / name for name in ("first", "second", "other"))
    call("prune", "demo", plan, "--repair", "--data", "demo", "--images", 40, "--seed", 3, "--out", first)
    record = PruningPlan.load(first / "plan.json")
    assert record.digest == PruningPlan.load(plan).digest
    assert (record.basis, record.shape_after.embed_dim) == (basis, 24)
    assert record.fitted is not None
    assert record.fitted.repair
    assert record.fitted.metric == ("reading" if basis == "directions" else "")
    assert (record.fitted.images, record.fitted.seed, len(record.fitted.digest)) == (40, 3, 16)

    call("prune", "demo", first / "plan.json", "--data", "demo", "--out", second)
    weights = [(folder / "model.safetensors").read_bytes() for folder in (first, second)]
    assert weights[0] == weights[1]
    assert (first / "plan.json").read_text() == (second / "plan.json").read_text()

    if basis == "directions":  # takes a while, and is the same
        return
    call("prune", "demo", first / "plan.json", "--data", "demo", "--images", 40, "--seed", 4, "--out", other)
    assert (other / "model.safetensors").read_bytes() != weights[0]
    assert json.loads((other / "plan.json").read_text())["fitted"]["seed"] == 4


def test_a_plan_refuses_other_images_than_it_was_fitted_to() -> None:
    from upvit_core.planning.ratios import Ratios, plan_uniform
    from upvit_core.pruning.prune import cut
    from upvit_core.records.plan import Fitted

    fitted = Fitted(repair=True, data="another set", digest="0" * 16, images=40, seed=0)
    scores = ImportanceScores.load("assets/demo/scores.safetensors")
    plan = plan_uniform(scores, Ratios(residual=0.75)).model_copy(update={"fitted": fitted})
    with pytest.raises(PlanError, match="fitted to 40 images of another set with digest 0000000000000000"):
        cut(load_model("demo"), plan, data="demo")


def test_directions_are_scored_and_planned_by_the_same_verbs(tmp_path: Path) -> None:
    scores, plan = tmp_path / "scores.safetensors", tmp_path / "plan.json"
    halves = ("--residual", 0.5, "--attention", 0.5, "--ffn", 0.5)
    call("score", "demo", "--data", "demo", "--basis", "directions", "--images", 20, "--out", scores)
    call("plan", scores, *halves, "--basis", "directions", "--out", plan)
    record, made = ImportanceScores.load(scores), PruningPlan.load(plan)
    assert (record.basis, record.images, record.notes["metric"]) == ("directions", 20, "reading")
    assert made.residual.keep == tuple(range(48))
    assert set(made.blocks[2].ffn.keep) == set(np.argsort(-record.ffn(2))[:192].tolist())
    with pytest.raises(PlanError, match="scores of directions"):
        call("plan", scores, "--residual", 0.5, "--out", plan)
    with pytest.raises(ScoresError, match="not by 'l1'"):
        call("score", "demo", "--basis", "directions", "--criterion", "l1", "--out", scores)
