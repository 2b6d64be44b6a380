"""TODO."""

from __future__ import annotations

import streamlit as st

from pages.services import jobs
from pages.services.device import BATCHES, KEY, batch_of, calibration, start
from pages.services.open_model import OpenModel
from pages.widgets import progress
from upvit_core import units
from upvit_core.profiling.calibration import Calibration
from upvit_core.records.task import task_of


def panel(model: OpenModel) -> None:
    """The button "Calibrate this device", what it found, and the batch size; progress takes the button's place."""
    job = jobs.find(KEY)
    with st.container(key="slot-device"):
        if job is not None and job.active:
            progress.progress(job)
            return
        known = calibration(model.shape)
        label = "This device" if known else "Calibrate this device"
        with st.popover(label, icon=":material/timer:", width="stretch", help="Time and memory on this machine."):
            if job is not None and job.state == "failed":
                st.error(job.error)
            st.markdown(about(known))
            st.session_state.setdefault("batch", batch_of(model))
            st.selectbox(
                f"{task_of(model.shape).batch_items.capitalize()} in a batch", BATCHES, key="batch", bind="query-params"
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
            f"  \nSpeed-ups were estimated within {units.percent(error.median_error, 1)} (median; worst "
            f"{units.percent(error.worst_error)}) of what was measured on {error.plans} cases not calibrated on; rank "
            f"correlation {error.correlation:.3f}."
        )
    return told
