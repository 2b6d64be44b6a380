"""Tests of what-ifs: one rule from settings to a plan, and words that name the settings."""

from dataclasses import replace

import numpy as np
import pytest

from tests.support.planning import scores
from upvit_core.errors import PlanError
from upvit_core.planning.ratios import Ratios, plan_uniform
from upvit_core.planning.what_if import WhatIf
from upvit_core.records.known_shapes import pvt_shape
from upvit_core.records.scores import ImportanceScores

HALF = WhatIf(50, 50, 3, 50)
ASKED = {
    "50/50/50 %, 3 heads": HALF,
    "50/50/50 %": WhatIf(50, 50, None, 50),
    "10/20/30 %, 1 head, isomorphic, multiples of 8": WhatIf(10, 20, 1, 30, allocation="isomorphic", round_to=8),
    "50/50/50 %, 3 heads, directions, repaired": replace(HALF, basis="directions", repair=True),
}


@pytest.fixture(scope="module")
def pyramid() -> ImportanceScores:
    rng, shape = np.random.default_rng(0), pvt_shape("b0", img_size=(64, 64), num_classes=10)
    return ImportanceScores({g.key: rng.random(g.width) for g in shape.groups}, "kl", "nats", shape)


@pytest.mark.parametrize("words", ASKED)
def test_a_plan_keeps_the_words_of_its_settings(words: str) -> None:
    asked = ASKED[words]
    plan = asked.plan(scores())
    again = WhatIf.from_request(plan.requested, basis=plan.basis, repair=asked.repair)
    assert again is not None
    assert asked.words == again.words == words
    assert again.plan(scores()).digest == plan.digest


def test_the_reduction_is_a_slider_too(pyramid: ImportanceScores) -> None:
    asked = WhatIf(50, 40, None, 80, reduction=20)
    plan = asked.plan(pyramid)
    again = WhatIf.from_request(plan.requested, basis="channels", repair=False)
    assert again == asked
    assert asked.words == "50/40/80/20 %"
    assert asked.slider_values != replace(asked, reduction=30).slider_values
    shared = replace(asked, reduction=50).plan(pyramid)
    assert shared.digest == replace(asked, reduction=None).plan(pyramid).digest


@pytest.mark.parametrize(
    "requested",
    [{}, {"preset": "deit_small"}, {"widths": "9:1x1x1"}]
    + [{"residual": 0.5, "attention": wrong, "ffn": 0.5} for wrong in (None, 1.5, float("nan"))],
)
def test_other_plans_have_no_settings(requested: dict[str, object]) -> None:
    assert WhatIf.from_request(requested, basis="channels", repair=False) is None


def test_what_the_model_rules_out_is_left_out_by_plan_and_refused_by_plan_widths(pyramid: ImportanceScores) -> None:
    asked = replace(HALF, heads=None, basis="directions", allocation="global", round_to=8)
    assert asked.plan(pyramid).digest == plan_uniform(pyramid, Ratios.equal(0.5), snap=True).digest
    with pytest.raises(PlanError, match="has stages"):
        asked.plan_widths(pyramid)
    with pytest.raises(PlanError, match="heads do not divide"):
        WhatIf(45, 0, None, 0).plan_widths(scores(), snap=False)


@pytest.mark.parametrize("share", [0.3, 0.29, 0.07, 0.333, 0.123456, 0.1234567])
def test_shares_are_the_same_in_percent(share: float) -> None:
    percent = Ratios.equal(share).percents["ffn"]
    assert percent / 100 == pytest.approx(share, rel=1e-15, abs=0)
    assert f"{percent:g}" == f"{100 * share:g}"
