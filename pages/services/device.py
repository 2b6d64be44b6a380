"""This device: its calibration behind a button, and what that lets the page estimate, with its measured error."""

from __future__ import annotations

import time
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import streamlit as st

from pages.services import compute, imports, jobs
from pages.services.open_model import OpenModel
from pages.services.session import resolve, session
from upvit_core import units
from upvit_core.errors import CalibrationError
from upvit_core.profiling.calibration import Calibration, default_path, newest, processor_name, scope
from upvit_core.profiling.latency import estimate_latency, latency_of
from upvit_core.records.shape import ModelShape

KEY = "calibrate this device"
BATCH = "batch"  # key of the widget, and of the link
BATCHES = (1, 4, 8, 16, 32, 64, 128)
SECONDS = 45.0
GPUS = Path("/proc/driver/nvidia/gpus")


class Countdown:
    """Turns shares done into the form that jobs read; nothing is told of the time until three points are timed, and
    the time left never grows."""

    unit, total = "%", 100.0

    def __init__(self) -> None:
        self.share, self._points, self._began = 0.0, 0, 0.0
        self.seconds_left: float | None = None

    @property
    def done(self) -> float:
        return 100 * self.share

    def at(self, share: float, now: float) -> Countdown:
        """Take in the share that is done at a time in seconds."""
        if share > self.share:
            self._points += 1
            self._began = self._began or now
            self.share = share
        if self._points > 3:
            left = max(now - self._began, 0.0) * (1 - share) / share
            self.seconds_left = left if self.seconds_left is None else min(left, self.seconds_left)
        return self


def is_estimated(shape: ModelShape) -> bool:
    """True if the time of such models can be estimated from a calibration."""
    try:
        return scope(shape) is not None
    except CalibrationError:
        return False


def calibration(shape: ModelShape) -> Calibration | None:
    """This device's for models like `shape`; for any number of threads until torch is loaded and knows it.

    None: not calibrated with this torch, or the time of such models cannot be estimated.
    """
    found = _file(shape)
    return _read(*found) if found is not None else None


def _file(shape: ModelShape) -> tuple[str, int] | None:
    """Path and modification time of the calibration; None if there is none, or time cannot be estimated."""
    if not is_estimated(shape):
        return None
    if imports.loaded():
        path: Path | None = _own_path(shape)
    else:  # only torch can name a GPU
        path = None if GPUS.is_dir() else newest(processor_name(), "float32", shape)
    return (str(path), path.stat().st_mtime_ns) if path is not None and path.is_file() else None


def _own_path(shape: ModelShape) -> Path:
    import torch

    return default_path(_device_name(), "float32", torch.get_num_threads(), shape)


@cache
def _device_name() -> str:
    from upvit_core.profiling.throughput import device_name

    return device_name(_device())


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


@st.cache_resource(max_entries=4, show_spinner=False)
def _read(path: str, stamp: int) -> Calibration | None:
    try:
        known = Calibration.load(path)
    except CalibrationError:
        return None
    return known if known.is_current else None


def start_calibration(shape: ModelShape) -> jobs.Job[Calibration]:
    """The job that calibrates this device and checks the estimates on plans that it has not seen."""
    chosen = session().device

    def work(report: jobs.Report) -> Calibration:
        import torch

        from upvit_core.profiling.held_out import calibrate_and_check

        countdown = Countdown()

        def progress(done: float, total: float) -> None:
            report(countdown.at(done / total, time.monotonic()))

        with torch.inference_mode():
            known = calibrate_and_check(device=compute.device(chosen), seconds=SECONDS, shape=shape, progress=progress)
        known.save(_own_path(shape))
        return known

    return jobs.start(KEY, work, "Calibrating this device", again=True)


def batch_of(model: OpenModel) -> int:
    """The batch size for which time and memory are estimated."""
    most = model.shape.batch_size(32, large=8)
    default = max(size for size in BATCHES if size <= most)
    value = str(resolve(BATCH))
    return int(value) if value in map(str, BATCHES) else default


def error_words(known: Calibration) -> str:
    """`± 5.7 %`, the median error of speed-ups measured on this device."""
    return f"± {units.percent(known.error.median_error, 1)}" if known.error is not None else "error not measured"


def latency(model: OpenModel) -> Any:
    """The estimate that a latency budget needs, for plans of this model; None without calibration."""
    known = calibration(model.shape)
    return latency_of(model.shape, batch_of(model), known) if known is not None else None


def milliseconds(batch: int, *shapes: ModelShape) -> list[float] | None:
    """Estimated time of a batch of each of these shapes of one model; None without calibration."""
    found = _file(shapes[0])
    times = [_estimated(shape, batch, *found) for shape in shapes] if found is not None else []
    return None if not times or None in times else times  # type: ignore[return-value]


@lru_cache(maxsize=2000)
def _estimated(shape: ModelShape, batch: int, path: str, stamp: int) -> float | None:
    known = _read(path, stamp)
    return None if known is None else estimate_latency(shape, batch, known)
