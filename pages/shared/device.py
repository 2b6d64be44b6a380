"""This device: its calibration behind a button, and what that lets the page estimate, with its measured error."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import streamlit as st

from pages.shared import jobs, memory, words
from pages.shared.opened import Opened
from upvit_core.errors import CalibrationError
from upvit_core.models.judge import judge_of
from upvit_core.models.shape import ModelShape
from upvit_core.profiling.calibration import Calibration, default_path, newest
from upvit_core.profiling.latency import estimate_latency, latency_of

KEY = "calibrate this device"
BATCHES = (1, 4, 8, 16, 32, 64, 128)
SECONDS = 45.0


@dataclass(frozen=True)
class Progress:
    """Seconds done of a calibration, in the form that jobs read."""

    done: float
    total: float
    unit: str = "s"

    @property
    def share(self) -> float:
        return self.done / self.total

    @property
    def seconds_left(self) -> float:
        return self.total - self.done


def calibration(shape: ModelShape) -> Calibration | None:
    """This device's for models like `shape`; the newest one until torch is loaded and can name the device.

    None: not calibrated.
    """
    found = _file(shape)
    return _read(*found) if found is not None else None


def _file(shape: ModelShape) -> tuple[str, int] | None:
    """Path and time of the calibration, where there is one."""
    path = _own_path(shape) if memory.loaded() else newest("float32", shape)
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
        return Calibration.load(path)
    except CalibrationError:
        return None


def start(shape: ModelShape) -> jobs.Job:
    """The job that times this device, checks the estimates on plans it has not seen, and keeps both."""

    def work(report: jobs.Report) -> Calibration:
        import torch

        from upvit_core.profiling.held_out import calibrate_and_check

        began = time.monotonic()

        def progress(done: float, total: float) -> None:
            spent = time.monotonic() - began
            done = max(done, 1e-3)
            report(Progress(spent, spent + (total - done) * max(1.0, spent / done)))

        with torch.inference_mode():
            known = calibrate_and_check(device=_device(), seconds=SECONDS, shape=shape, progress=progress)
        known.save(_own_path(shape))
        return known

    return jobs.start(KEY, work, "Calibrating this device", again=True)


def batch_of(model: Opened) -> int:
    """The batch size for which time and memory are told."""
    default = 32 if model.shape.img_size[0] < 100 else 8
    value = str(st.session_state.get("batch") or st.query_params.get("batch") or default)
    return int(value) if value in map(str, BATCHES) else default


def panel(model: Opened) -> None:
    """The button "Calibrate this device", what it found, and the batch size; progress takes the button's place."""
    job = jobs.find(KEY)
    with st.container(key="slot-device"):
        if job is not None and job.active:
            jobs.progress(job)
            return
        known = calibration(model.shape)
        label = "This device" if known else "Calibrate this device"
        with st.popover(label, icon=":material/timer:", width="stretch", help="Time and memory on this machine."):
            if job is not None and job.state == "failed":
                st.error(job.error)
            st.markdown(about(known))
            st.session_state.setdefault("batch", batch_of(model))
            st.selectbox(
                f"{judge_of(model.shape).items.capitalize()} in a batch", BATCHES, key="batch", bind="query-params"
            )
            st.button(
                "Calibrate again" if known else "Calibrate this device", key="calibrate", on_click=start,
                args=(model.shape,), type="secondary" if known else "primary", icon=":material/timer:",
                help="Times linear layers, attention, norms and the rest over a grid of sizes for about a minute, then "
                "checks the estimates on random plans.",
            )  # fmt: skip


def about(known: Calibration | None) -> str:
    if known is None:
        return (
            "**Not calibrated.** Estimates of time need about a minute of measurements on this machine; until then "
            "only parameters, MACs and memory are told. Better with nothing else running."
        )
    threads = f"{known.threads} thread{'s' if known.threads != 1 else ''}"
    told = f"**{known.device}**, {threads}, {known.dtype}, torch {known.versions.get('torch', '?')}; {known.date}."
    if known.error is not None:
        error = known.error
        told += (
            f"  \nSpeed-ups were estimated within {words.percent(error.median_error, 1)} (median; worst "
            f"{words.percent(error.worst_error)}) of what was measured on {error.plans} cases not calibrated on; rank "
            f"correlation {error.correlation:.3f}."
        )
    return told


def error_words(known: Calibration) -> str:
    """`± 5.7 %`, the median error of speed-ups measured on this device."""
    return f"± {words.percent(known.error.median_error, 1)}" if known.error is not None else "error not measured"


def latency(model: Opened) -> Any:
    """The estimate that a latency budget needs, for plans of this model; None without calibration."""
    known = calibration(model.shape)
    return latency_of(model.shape, batch_of(model), known) if known is not None else None


def milliseconds(shape: ModelShape, batch: int) -> float | None:
    """Estimated; None without calibration."""
    found = _file(shape)
    return _estimated(shape, batch, *found) if found is not None else None


@lru_cache(maxsize=2000)
def _estimated(shape: ModelShape, batch: int, path: str, stamp: int) -> float | None:
    known = _read(path, stamp)
    return None if known is None else estimate_latency(shape, batch, known)
