from typing import Any

import pytest
import torch
from torch import Tensor, nn

from upvit_core.errors import Cancelled
from upvit_core.profiling import throughput
from upvit_core.profiling.throughput import compare, measure


class HandClock:
    """A clock that moves only when a model moves it."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Sleeper(nn.Module):
    """Takes a known time a batch by its clock."""

    def __init__(self, seconds: float, clock: HandClock, calls: list[str] | None = None, name: str = "a"):
        super().__init__()
        self.seconds, self.clock, self.calls, self.name = seconds, clock, calls, name

    def forward(self, x: Tensor) -> Tensor:
        assert not self.training
        assert not torch.is_grad_enabled()
        self.clock.now += self.seconds
        if self.calls is not None:
            self.calls.append(self.name)
        return x


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


def test_rates_are_images_over_seconds_and_models_take_turns(clock: HandClock) -> None:
    calls: list[str] = []
    slow, fast = Sleeper(0.5, clock, calls, "slow"), Sleeper(0.125, clock, calls, "fast")
    result = compare(slow.train(), fast, torch.zeros(8, 1, 2, 2), warmup=1, repeats=5, clock=clock)
    assert result.first.samples == (16.0,) * 5
    assert result.second.samples == (64.0,) * 5
    assert (result.ratio, result.low, result.high) == (4.0, 4.0, 4.0)
    assert calls == ["slow", "fast"] * 6
    assert slow.training
    assert result.first.batch_size == 8
    assert result.first.threads == torch.get_num_threads()
    assert result.first.device


def test_the_ratio_is_that_of_neighbouring_passes(clock: HandClock) -> None:
    """A load that slows both models in the same rounds does not change their ratio."""

    class Loaded(Sleeper):
        def forward(self, x: Tensor) -> Tensor:
            self.seconds *= 2
            return super().forward(x)

    result = compare(Loaded(0.3, clock), Loaded(0.1, clock), torch.zeros(4, 1), warmup=0, repeats=6, clock=clock)
    assert result.ratio == pytest.approx(3)
    assert result.low == pytest.approx(result.high)
    assert result.first.low < result.first.images_per_s < result.first.high


def test_median_and_quartiles() -> None:
    assert throughput._spread([5.0, 1.0, 3.0, 2.0, 4.0]) == (3.0, 2.0, 4.0)
    assert throughput._spread([7.0]) == (7.0, 7.0, 7.0)


def test_time_limit_keeps_three_rounds(clock: HandClock) -> None:
    (result,) = measure([Sleeper(10, clock)], torch.zeros(2, 1), repeats=50, seconds=1, clock=clock)
    assert result.repeats == 3


def test_cancelling_restores_the_mode(clock: HandClock) -> None:
    model = Sleeper(1, clock).train()

    def stop(done: int, most: int) -> None:
        raise Cancelled("enough")

    with pytest.raises(Cancelled):
        measure([model], torch.zeros(2, 1), progress=stop, clock=clock)
    assert model.training


@pytest.mark.parametrize("arguments", [{"dtype": "int8"}, {"repeats": 0}, {"warmup": -1}])
def test_illegal_arguments_are_named(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(arguments))):
        measure([nn.Identity()], torch.zeros(1), **arguments)


def test_a_real_model_is_measured() -> None:
    (result,) = measure([nn.Linear(4, 4)], torch.zeros(8, 4), repeats=3)
    assert 0 < result.low <= result.images_per_s <= result.high
    assert len(result.samples) == 3
