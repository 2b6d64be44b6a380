"""The time left of a calibration: told late, true, and never growing, also where a device slows down."""

import itertools

import numpy as np
import pytest

from pages.services.device import Countdown


def test_nothing_is_told_before_three_points_are_timed() -> None:
    countdown = Countdown()
    for now in range(30):  # preparation
        assert countdown.at(0.0, float(now)).seconds_left is None
    for point in (1, 2, 3):
        assert countdown.at(point / 400, 30.0 + point).seconds_left is None
    assert countdown.at(4 / 400, 34.0).seconds_left == pytest.approx(3 * 99)


def test_time_left_is_true_at_an_even_pace_and_never_grows_at_another() -> None:
    even, slowing = Countdown(), Countdown()
    lefts = [even.at(share, 60 * share).seconds_left for share in np.linspace(0, 1, 101)]
    for share, left in list(zip(np.linspace(0, 1, 101), lefts, strict=True))[20:]:
        assert left == pytest.approx(60 * (1 - share), rel=0.3, abs=0.1)
    told = [slowing.at(share, 100 * share**2).seconds_left for share in np.linspace(0.001, 1, 300)]
    known = [left for left in told if left is not None]
    assert len(known) > 290
    assert all(after <= before for before, after in itertools.pairwise(known))
    assert known[-1] == pytest.approx(0, abs=1e-6)
