from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from tests.support.made_runs import made_store
from upvit_core.runs.forecast import FEWEST, T90, Outcome, forecast, kinds, outcome_of, outcomes, recipe_of
from upvit_core.runs.store import RunStore
from upvit_core.training.settings import PRESETS


def top1(kl: float, noise: float = 0.0) -> float:
    """Points short of 91 %: 3 at a KL of 1, a seventh of that at 1e-3."""
    return 91.0 - float(np.sinh(np.arcsinh(3) + 0.2 * np.log(kl) + noise))


def runs(count: int, noise: float = 0.15, seed: int = 0) -> list[Outcome]:
    rng = np.random.default_rng(seed)
    kl = np.exp(rng.uniform(-4, 1, count))
    return [Outcome(str(n), k, 91.0, top1(k, noise * rng.normal())) for n, k in enumerate(kl)]


def test_the_band_is_the_prediction_interval_of_ordinary_least_squares() -> None:
    known = runs(9)
    x, y = np.log([o.kl for o in known]), np.arcsinh([91.0 - o.top1 for o in known])
    at = float(np.median(x))
    line = stats.linregress(x, y)
    residual = y - (line.intercept + line.slope * x)
    error = np.sqrt((residual**2).sum() / 7 * (1 + 1 / 9 + (at - x.mean()) ** 2 / ((x - x.mean()) ** 2).sum()))
    found = forecast(known, float(np.exp(at)), 4)
    assert found is not None
    middle, half = line.intercept + line.slope * at, stats.t.ppf(0.9, 7) * error
    assert found.middle == pytest.approx(91 - np.sinh(middle))
    low, high = (np.arcsinh(91 - end) for end in (found.high, found.low))
    assert (middle - low, high - middle) == pytest.approx((half, half), rel=1e-3)
    assert (found.runs, found.epochs) == (9, 4)


def test_quantiles() -> None:
    assert pytest.approx(stats.t.ppf(0.9, np.arange(1, len(T90) + 1)), abs=6e-4) == T90


def test_the_band_holds_four_of_five_new_runs() -> None:
    inside = 0
    for seed in range(300):
        *known, new = runs(13, seed=seed)
        known[0], known[1] = Outcome("low", 1e-3, 91.0, top1(1e-3)), Outcome("high", 4.0, 91.0, top1(4.0))
        found = forecast(known, new.kl, 4)
        assert found is not None
        inside += found.low <= new.top1 <= found.high
    assert 0.75 <= inside / 300 <= 0.9


def test_what_is_near_the_teacher_is_forecast_near_it_and_not_far_above() -> None:
    near = [
        Outcome(str(n), kl, 91.0, 91.0 + gain)
        for n, (kl, gain) in enumerate([(0.004, 0.2), (0.01, -0.1), (0.02, -0.4)])
    ]
    far = [Outcome("far", kl, 91.0, top) for kl, top in ((0.5, 88.0), (1.0, 85.0), (2.0, 80.0))]
    found = forecast(near + far, 0.009, 4)
    assert found is not None
    assert found.middle == pytest.approx(91.0, abs=0.5)
    assert found.high < 92.5
    wide = forecast(near + far, 1.5, 4)
    assert wide is not None
    assert wide.high - wide.low > 3 * (found.high - found.low)


def test_nothing_is_forecast_from_too_few_runs_or_beyond_them() -> None:
    known = runs(FEWEST)
    middle = float(np.exp(np.median(np.log([o.kl for o in known]))))
    assert forecast(known, middle, 4) is not None
    assert forecast(known[:-1], middle, 4) is None
    assert forecast(known, max(o.kl for o in known) * 1.1, 4) is None
    assert forecast(known, 0.0, 4) is None
    assert forecast([known[0]] * 6, known[0].kl, 4) is None


def test_a_run_without_one_of_its_numbers_is_left_out() -> None:
    rows = [
        {"phase": "teacher", "top1": 92.0}, {"phase": "surgery", "top1": 30.0, "kl_teacher": 1.5},
        {"phase": "train", "loss": 1.0}, {"phase": "eval", "top1": 80.0}, {"phase": "final", "top1": 85.0},
    ]  # fmt: skip
    assert outcome_of("a", rows) == Outcome("a", 1.5, 92.0, 85.0)
    assert all(outcome_of("a", rows[:n] + rows[n + 1 :]) is None for n in (0, 1))
    assert outcome_of("a", rows[:3]) is None


def test_only_finished_runs_of_the_same_kind_count(tmp_path: Path) -> None:
    store = RunStore(tmp_path / "runs")
    made_store(store.root)
    done = [s for s in store.list() if s.state.state == "done" and s.spec and not s.spec.settings.from_scratch]
    spec = done[0].spec
    assert spec is not None
    same = [s for s in done if s.spec and s.spec.epochs == spec.epochs and s.spec.teacher == spec.teacher]
    assert len(outcomes(store, spec.teacher, spec.data, spec.epochs)) == len(same)
    assert outcomes(store, "another", spec.data, spec.epochs) == []
    kind = (spec.epochs, recipe_of(spec.settings))
    assert kind in kinds(store, spec.teacher, spec.data)
    alike = [s for s in same if s.spec and recipe_of(s.spec.settings) == kind[1]]
    assert len(outcomes(store, spec.teacher, spec.data, *kind)) == len(alike)


def test_a_recipe_is_what_trains_not_where_or_when() -> None:
    one = PRESETS["demo"]
    assert recipe_of(one) == recipe_of(one.model_copy(update={"seed": 7, "threads": 2, "checkpoint_minutes": 9.0}))
    assert len({recipe_of(preset) for preset in PRESETS.values()}) == len(PRESETS)
