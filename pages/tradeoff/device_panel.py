"""The panel of this device: its calibration behind a button, and the batch size of estimates."""

import streamlit as st

from pages.services import device, jobs
from pages.services.open_model import OpenModel
from pages.widgets import progress
from pages.widgets.plain import plain
from upvit_core import units
from upvit_core.profiling.calibration import Calibration

NOT_ESTIMATED = (
    "**The time of this model cannot be estimated**, only measured; calibration is for plain ViTs, PVTv2, GPT-2."
)


def device_panel(model: OpenModel) -> None:
    """Draw the panel; while the device is calibrated, the progress takes its place."""
    job = jobs.find(device.KEY)
    with st.container(key="slot-device"):
        if job is not None and job.active:
            progress.show(job)
            return
        known = device.calibration(model.shape)
        progress.show(job)
        estimated = device.is_estimated(model.shape)
        st.markdown(calibration_text(known) if estimated else NOT_ESTIMATED)
        st.session_state.setdefault(device.BATCH, device.batch_of(model))
        items = model.task.batch_items.capitalize()
        st.selectbox(f"{items} in a batch", device.BATCHES, key=device.BATCH, bind="query-params")
        if estimated and st.button(
            "Calibrate again" if known else "Calibrate this device",
            key="calibrate",
            icon=":material/timer:",
            help="Times linear layers, attention, norms and the rest over a grid of sizes for about a minute, then "
            "checks the estimates on random plans.",
        ):
            device.start_calibration(model.shape)
            st.rerun()


def calibration_text(known: Calibration | None) -> str:
    if known is None:
        return (
            "**Not calibrated.** Estimates of time need about a minute of measurements on this machine; until then "
            "only parameters, MACs and memory are shown. Better with nothing else running."
        )
    threads = f"{known.threads} thread{'s' if known.threads != 1 else ''}"
    kind, version = plain(known.dtype), plain(known.versions.get("torch", "?"))
    text = f"**{plain(known.device)}**, {threads}, {kind}, torch {version}; {plain(known.date)}."
    if known.error is not None:
        error = known.error
        text += (
            f"  \nSpeed-ups were estimated within {units.percent(error.median_error, 1)} (median; worst "
            f"{units.percent(error.worst_error)}) of what was measured on {error.plans} cases not calibrated on; rank "
            f"correlation {error.correlation:.3f}."
        )
    return text
