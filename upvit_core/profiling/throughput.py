"""Images per second, measured: warm-up, synchronised, several repeats; models to compare take turns in one run."""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from statistics import median, quantiles
from typing import TypedDict, Unpack

import torch
from torch import Tensor, nn

from upvit_core.profiling.calibration import processor_name

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
Clock = Callable[[], float]
CLOCKS: Mapping[str, Clock] = {"wall": time.perf_counter, "cpu": time.thread_time}


@dataclass(frozen=True)
class Throughput:
    """Median of images per second over `repeats` timed passes, with the quartiles as spread.

    `samples` holds every repeat; with `dtype` other than float32 the pass runs under autocast. `threads` is the number
    of CPU threads within an operation.
    """

    images_per_s: float
    low: float
    high: float
    samples: tuple[float, ...]
    batch_size: int
    dtype: str
    device: str
    threads: int

    @property
    def repeats(self) -> int:
        return len(self.samples)


@dataclass(frozen=True)
class SpeedUp:
    """Time of the first model over that of the second: median and quartiles of the ratios of neighbouring passes."""

    first: Throughput
    second: Throughput
    ratio: float
    low: float
    high: float


class Timing(TypedDict, total=False):
    """Options of `measure`."""

    dtype: str
    warmup: int
    repeats: int
    seconds: float | None
    progress: Callable[[int, int], None] | None
    clock: Clock


def device_name(device: torch.device | str) -> str:
    """Name of the GPU, or of the processor."""
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return processor_name()


def usual_dtype(device: str) -> str:
    """The number type in which models are run on this device: on a GPU bfloat16, or float16 where it has none."""
    if not device.startswith("cuda"):
        return "float32"
    return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float16"


def measure(
    models: Sequence[nn.Module],
    images: Tensor,
    *,
    dtype: str = "float32",
    warmup: int = 2,
    repeats: int = 10,
    seconds: float | None = None,
    progress: Callable[[int, int], None] | None = None,
    clock: Clock = time.perf_counter,
) -> list[Throughput]:
    """Throughput of each model on the same batch (B, C, H, W), on the batch's device; the models take turns.

    At least three and at most `repeats` rounds, fewer where `seconds` are over. Modes of the models are restored.
    `progress` receives rounds done and rounds at most; raise `Cancelled` in it to stop.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, not {dtype!r}.")
    if repeats < 1 or warmup < 0:
        raise ValueError(f"repeats must be at least 1 and warmup at least 0, not {repeats} and {warmup}.")
    modes = [model.training for model in models]
    samples: list[list[float]] = [[] for _ in models]
    try:
        for model in models:
            model.eval()
        with torch.inference_mode(), autocast(images.device, dtype):
            for _ in range(warmup):
                for model in models:
                    seconds_of(partial(model, images), images.device, clock)
            began = clock()
            for done in range(repeats):
                if seconds is not None and done >= 3 and clock() - began > seconds:
                    break
                for model, rates in zip(models, samples, strict=True):
                    rates.append(len(images) / seconds_of(partial(model, images), images.device, clock))
                if progress is not None:
                    progress(done + 1, repeats)
    finally:
        for model, mode in zip(models, modes, strict=True):
            model.train(mode)
    name, threads = device_name(images.device), torch.get_num_threads()
    return [Throughput(*_spread(r), tuple(r), len(images), dtype, name, threads) for r in samples]


def compare(first: nn.Module, second: nn.Module, images: Tensor, **timing: Unpack[Timing]) -> SpeedUp:
    """Measure two models in turns, so that both see the same load of the machine."""
    a, b = measure([first, second], images, **timing)
    ratio, low, high = _spread([y / x for x, y in zip(a.samples, b.samples, strict=True)])
    return SpeedUp(a, b, ratio, low, high)


def autocast(device: torch.device, dtype: str) -> AbstractContextManager[object]:
    """Forward passes in the number type of that name."""
    return nullcontext() if dtype == "float32" else torch.autocast(device.type, DTYPES[dtype])


def seconds_of(run: Callable[[], object], device: torch.device, clock: Clock) -> float:
    """Seconds of a run, with the device idle before and after."""
    _synchronise(device)
    start = clock()
    run()
    _synchronise(device)
    return clock() - start


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _spread(values: Sequence[float]) -> tuple[float, float, float]:
    """Median, first and third quartile."""
    if len(values) == 1:
        return values[0], values[0], values[0]
    low, _, high = quantiles(values, n=4, method="inclusive")
    return median(values), low, high
