"""A map on the command line: made, gone on with, and what plan and front take from it."""

from pathlib import Path

import pytest

from tests.mapping.test_grow import demo
from tests.support.verbs import call
from upvit_core.errors import MapError
from upvit_core.mapping.choose import measured_best, rank
from upvit_core.mapping.cost import expected_cost
from upvit_core.mapping.surrogate import Surrogate
from upvit_core.paths import DEMO_FOLDER
from upvit_core.planning.budget import Budget, best_plan
from upvit_core.profiling.macs import count_macs
from upvit_core.records.map import Map
from upvit_core.records.plan import PruningPlan
from upvit_core.records.scores import ImportanceScores

SCORES = DEMO_FOLDER / "scores.safetensors"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    out = tmp_path_factory.mktemp("map") / "map.json"
    arguments = ("map", "demo", "--data", "demo", "--scores", SCORES, "--images", 20, "--out", out)
    assert call(*arguments, "--cuts", 8)["cuts"] == 8
    return out, call(*arguments, "--cuts", 12)


def test_it_goes_on_and_tells_what_it_costs(made) -> None:
    out, said = made
    record = Map.load(out)
    assert said["cuts"] == len(record.cuts) == 12
    assert said["left_out_kl"] == record.errors[-1].kl > 0
    assert said["seconds_a_cut_expected"] > 0
    assert 4 < said["memory_mib_expected"] < 400
    with pytest.raises(MapError, match="another model"):
        call("map", "demo", "--data", "demo", "--scores", SCORES, "--images", 21, "--out", out)


def test_plan_and_front_say_what_to_expect(made, tmp_path: Path) -> None:
    ratios = ("--residual", 0.25, "--attention", 0.5, "--ffn", 0.5, "--snap")
    said = call("plan", SCORES, *ratios, "--map", made[0], "--out", tmp_path / "p.json")
    assert 0 < said["kl_low"] <= said["kl_estimated"] <= said["kl_high"]
    assert 0 <= said["top1_low"] <= said["top1_estimated"] <= said["top1_high"] <= 100
    rows = call("front", SCORES, "--map", made[0])["front"]
    assert all({"kl_estimated", "top1_estimated"} <= row.keys() or "kl_measured" in row for row in rows)
    assert all(0 <= row["score_removed_percent"] <= 100 for row in rows)
    with pytest.raises(MapError, match="of channels and the plan of directions"):
        call("plan", SCORES, *ratios, "--basis", "directions", "--map", made[0], "--out", tmp_path / "p.json")


def test_a_measured_plan_is_told_as_measured(made, tmp_path: Path) -> None:
    record = Map.load(made[0])
    cut = next(c for c in record.cuts if len({*c.heads.values()}) == 1 and c.widths["ffn.0"] == c.widths["ffn.1"])
    block = "x".join(str(n) for n in (cut.heads[0], cut.widths["attention.0"], cut.widths["ffn.0"]))
    widths = f"{cut.widths['residual']}:{block}*6"
    said = call("plan", SCORES, "--widths", widths, "--map", made[0], "--out", tmp_path / "p.json")
    assert PruningPlan.load(tmp_path / "p.json").digest == cut.plan
    assert (said["kl_measured"], said["top1_measured"]) == (cut.kl, cut.top1)


def test_a_budget_keeps_the_solvers_choice_unless_the_map_is_sure(made, tmp_path: Path) -> None:
    scores, surrogate = ImportanceScores.load(SCORES), Surrogate(Map.load(made[0]))
    limit = Budget(macs=0.4 * count_macs(scores.shape))
    ranked = rank(surrogate, scores, lambda these: best_plan(these, limit))
    found, own, best = ranked.estimates, 0, ranked.best
    assert ranked.plans[own].plan == best_plan(scores, limit).plan
    assert len(ranked.plans) > 4
    assert all(plan.macs <= limit.macs and plan.plan.scores_digest == scores.digest for plan in ranked.plans)
    assert all(plan.predicted >= ranked.plans[own].predicted - 1e-12 for plan in ranked.plans)
    assert best == own or found.kl_high[best] < found.kl_low[own]
    taken, cuts = measured_best(demo(20), ranked)
    assert cuts[0].plan == ranked.plans[0].plan.digest
    assert min(cuts, key=lambda cut: cut.kl).plan == taken.plan.digest
    said = call("plan", SCORES, "--budget", f"macs={limit.macs}", "--map", made[0], "--out", tmp_path / "p.json")
    assert PruningPlan.load(tmp_path / "p.json").digest == ranked.plans[best].plan.digest
    assert said["solvers_own_choice"] is (best == own)


def test_the_cost_counts_evaluation_and_repair() -> None:
    plain, repaired = (expected_cost(demo(100, repair=repair, fitted_to=50), 1e-9) for repair in (False, True))
    whole = count_macs(demo(1).loaded.shape)
    assert 0.1 * 100 * whole < 1e9 * plain.seconds < 100 * whole
    assert 1e9 * (repaired.seconds - plain.seconds) == pytest.approx(4 * 50 * whole)
    assert repaired.memory > plain.memory
