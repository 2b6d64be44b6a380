"""Estimates against a made-up model whose KL and top-1 are known at every cut."""

from collections.abc import Callable

import numpy as np
import pytest

from tests.records.test_map import made, measured
from tests.support.planning import scores
from upvit_core.errors import MapError
from upvit_core.mapping.design import Design
from upvit_core.mapping.grow import Goal, with_errors
from upvit_core.mapping.knobs import importance
from upvit_core.mapping.points import Worth, features
from upvit_core.mapping.surrogate import FEWEST, Calibration, Surrogate
from upvit_core.planning.what_if import WhatIf
from upvit_core.records.map import LeaveOneOut, Map, MeasuredCut

Truth = Callable[[MeasuredCut], tuple[float, float]]


def truth(cut: MeasuredCut) -> tuple[float, float]:
    """Damages of the components add up to 2 nats at most, and top-1 falls with the KL."""
    residual, attention, ffn, merged, *_ = features([cut], made().shape)[0]
    damage = 6 * residual**3 + attention**2 + 0.5 * ffn**2 + 0.1 * merged + 0.002
    kl = 2 * (1 - np.exp(-damage / 2))
    return kl, 90 * np.exp(-kl)


def map_of(count: int, truth: Truth = truth) -> Map:
    record = made()
    for plan in Design(scores()).plans():
        if len(record.cuts) == count:
            return record
        kl, top1 = truth(measured(plan))
        record = record.with_cut(measured(plan, kl, top1))
    raise AssertionError("the design ended")


def test_estimates_come_near_and_bands_hold_the_truth() -> None:
    surrogate, design, worth, rng = Surrogate(map_of(32)), Design(scores()), Worth(scores()), np.random.default_rng(1)
    positions = zip(rng.integers(5, 80, (60, 3)).tolist(), rng.choice([2, 3, 6], 60).tolist(), strict=True)
    plans = [design.plan_of(WhatIf(r, a, heads, f)) for (r, a, f), heads in positions]
    estimates = surrogate.estimate([worth.of(plan) for plan in plans])
    kl, top1 = np.transpose([truth(measured(plan)) for plan in plans])
    assert np.median(np.abs(estimates.kl / kl - 1)) < 0.05
    assert np.median(np.abs(estimates.value - top1)) < 1.5
    assert np.mean((estimates.kl_low <= kl) & (kl <= estimates.kl_high)) >= 0.7
    assert np.mean((estimates.value_low <= top1) & (top1 <= estimates.value_high)) >= 0.7
    assert estimates.known.all()


@pytest.mark.parametrize(("name", "column"), [("residual", 0), ("ffn", 2), ("heads", 3)])
def test_the_slider_that_alone_matters_is_found(name: str, column: int) -> None:
    def alone(cut: MeasuredCut) -> tuple[float, float]:
        kl = 0.01 + features([cut], made().shape)[0][column]
        return kl, 90 * np.exp(-kl)

    found = importance(Surrogate(map_of(24, alone)), Worth(scores()))
    others = [value for slider, value in found.items() if slider != name]
    assert set(found) == {"residual", "attention", "ffn", "heads"}
    assert found[name] > 5 * max(others)


def test_the_whole_model_and_cuts_beyond_the_map() -> None:
    surrogate, worth, design = Surrogate(map_of(12)), Worth(scores()), Design(scores())
    whole = worth.of(design.plan_of(WhatIf(0, 0, 6, 0)))
    shallow = whole.model_copy(update={"widths": {k: w for k, w in whole.widths.items() if not k.endswith(".2")}})
    estimates = surrogate.estimate([whole, shallow])
    assert (estimates.kl[0], estimates.value[0], estimates.value_high[0]) == (0, 90, 90)
    assert estimates.known.tolist() == [True, False]
    with pytest.raises(MapError, match=f"need {FEWEST}"):
        Surrogate(map_of(FEWEST - 1))
    assert with_errors(map_of(3)).errors == ()


def test_each_cut_is_left_out_of_its_own_estimate() -> None:
    """One spoilt cut is foretold as the others have it, so its own error is large; the median is not moved by it."""
    record, plan = map_of(24), next(Design(scores()).plans(60))
    kl, top1 = truth(measured(plan))
    clean = Surrogate(record.with_cut(measured(plan, kl, top1))).errors
    spoilt = Surrogate(record.with_cut(measured(plan, 5 * kl, top1)))
    logs, _ = spoilt._kl.left_out
    assert abs(np.exp(logs[-1]) / kl - 1) < 0.5
    assert spoilt.errors.cuts == 25
    assert clean.kl < spoilt.errors.kl < 0.3


def test_bands_are_calibrated_near_and_far() -> None:
    logs = np.repeat([-3.0, 1.0], 200)
    rng = np.random.default_rng(0)
    errors = rng.normal(size=400) * np.where(logs < 0, 1.0, 3.0)
    near = Calibration.of(errors, np.zeros(400), np.ones(400), logs).at(np.array([-3.0, 1.0]))
    np.testing.assert_allclose(near, [1.0, 3.0], rtol=0.25)


@pytest.mark.parametrize(
    ("errors", "in_percent", "met"),
    [((0.04, 0.2, 0.5), True, True), ((0.06, 0.2, 0.5), True, False), ((0.04, 0.4, 0.5), True, False),
     ((0.04, 0.2, 0.005), False, True), ((0.04, 0.2, 0.02), False, False)],
)  # fmt: skip
def test_the_goal(errors, in_percent: bool, met: bool) -> None:
    kl, kl_95, value = errors
    assert Goal().is_met(LeaveOneOut(cuts=24, kl=kl, kl_95=kl_95, value=value, value_90=1), in_percent) is met
