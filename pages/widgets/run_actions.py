"""What can be done with a run: cancel, resume, a baseline beside it, download, export, the command line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import streamlit as st

from pages.services import jobs, limits, run_data
from pages.services.reports import HELP
from pages.services.session import session
from pages.widgets import progress
from upvit_core.errors import RunError, UPViTError
from upvit_core.files import zipped
from upvit_core.records.task import Task
from upvit_core.runs.devices import Device, devices
from upvit_core.runs.executors import executor_for
from upvit_core.runs.folder import Run, RunSummary
from upvit_core.runs.memory_check import gigabytes
from upvit_core.runs.queue import devices_of
from upvit_core.runs.spec import RESUMABLE
from upvit_core.runs.store import RunStore

USER = "a user of the studio"


def button_of(store: RunStore, summary: RunSummary) -> None:
    """Pause and Cancel for an active run, Resume for one that stopped."""
    if summary.state.is_active:
        stopping = is_stopping(summary.id) or is_pausing(summary.id)
        if st.button(
            "Pause", key=f"pause-{summary.id}", disabled=stopping,
            help="Saves after the current step and gives the device to the next run; Resume goes on from there.",
        ):  # fmt: skip
            jobs.start(_pause_key(summary.id), lambda report: store.pause(summary.id, by=USER), "Pausing", again=True)
            st.rerun()
        if st.button("Cancel", key=f"cancel-{summary.id}", disabled=stopping):
            session().cancelling = summary.id
            st.rerun()
    elif (
        summary.state.state in RESUMABLE
        and summary.spec is not None
        and st.button("Resume", key=f"resume-{summary.id}")
    ):
        try:
            run = store.resume(summary.id)
            executor_for(store, run.spec).submit(run)
        except RunError as error:
            session().message = str(error)
        st.rerun()


def confirm_cancelling(store: RunStore) -> None:
    """The dialog that asks before a run is stopped, where that was asked for."""
    run_id = session().cancelling
    if run_id is None:
        return
    name = run_data.names(store.list()).get(run_id, run_id)

    def forget() -> None:
        session().cancelling = None

    @st.dialog("Cancel this run?", on_dismiss=forget)
    def ask() -> None:
        st.markdown(
            f"**{name}** stops after its current step. Its last checkpoint stays, and Resume goes on from there."
        )
        with st.container(horizontal=True):
            if st.button("Cancel the run", type="primary", key="cancel-yes"):
                jobs.start(_cancel_key(run_id), lambda report: store.cancel(run_id, by=USER), "Cancelling", again=True)
                forget()
                st.rerun()
            if st.button("Let it go on", key="cancel-no"):
                forget()
                st.rerun()

    ask()


def is_stopping(run_id: str) -> bool:
    job = jobs.find(_cancel_key(run_id))
    return job is not None and job.active


def is_pausing(run_id: str) -> bool:
    job = jobs.find(_pause_key(run_id))
    return job is not None and job.active


def _pause_key(run_id: str) -> str:
    return f"pause run {run_id}"


def _cancel_key(run_id: str) -> str:
    return f"cancel run {run_id}"


def baseline_button(store: RunStore, run: Run) -> None:
    """The same shape with fresh weights, for as many steps: what pruning is to be compared with."""
    if st.button(
        "Baseline from scratch", icon=":material/casino:", key=f"scratch-{run.id}", width="stretch",
        help="Trains the same shape from fresh weights with the same settings, to see what pruned weights are worth.",
    ):  # fmt: skip
        settings = run.spec.settings.model_copy(update={"from_scratch": True})
        name = f"{run.spec.name} from scratch"[:200]
        mine = session().owner
        spec = run.spec.model_copy(
            update={"settings": settings, "name": name, "group": "", "owner": mine, "priority": 0, "created": 0}
        )
        try:
            limits.check_room(store, mine)
            executor_for(store, spec).submit(store.create(spec))
        except UPViTError as error:
            session().message = str(error)
        st.rerun()


PRIORITIES = {2: "first", 1: "sooner", 0: "in turn", -1: "later", -2: "last"}


def priority_box(store: RunStore, summary: RunSummary) -> None:
    """The place of a waiting run in its queue."""
    key = f"priority-{summary.id}"
    st.session_state.setdefault(key, summary.priority)

    def changed() -> None:
        try:
            store.prioritise(summary.id, st.session_state[key])
        except RunError as error:
            session().message = str(error)

    st.selectbox(
        "Goes", list(PRIORITIES), format_func=PRIORITIES.__getitem__, key=key, on_change=changed,
        help="Runs that wait for one device: higher first, then browser sessions take turns, then first come.",
    )  # fmt: skip


@st.cache_data(ttl=5, show_spinner=False)
def device_list() -> list[Device]:
    return devices()


def device_lines(summaries: Sequence[RunSummary]) -> None:
    """Devices with the memory in use, and the run that has each."""
    going = [s for s in summaries if s.spec is not None and s.state.state == "running"]
    has = {device: s.name for s in going if s.spec is not None for device in devices_of(s.spec)}
    for device in device_list():
        busy = f" · {has[device.name]}" if device.name in has else " · free"
        st.caption(
            f"{device.label}: {gigabytes(device.used)} of {gigabytes(device.total)} memory in use{busy}",
        )


def downloads(run: Run, task: Task) -> None:
    """The distilled folder, and ONNX made and checked on request; of a language model the folder alone."""
    library = "timm opens it as local-dir:FOLDER" if task.has_classes else "transformers opens it"
    st.download_button(
        "Download the folder", data=lambda: zipped(run.model, run.id), file_name=f"{run.id}.zip", type="primary",
        mime="application/zip", icon=":material/download:", on_click="ignore", key=f"folder-{run.id}", width="stretch",
        help=f"config.json, model.safetensors and plan.json. {library} where all blocks are alike, this studio opens "
        "every one.",
    )  # fmt: skip
    key, target = f"onnx {run.folder}", run.folder / "model.onnx"
    job = jobs.find(key)
    export = progress.show(job)
    if export is not None and target.exists():
        st.download_button(
            "Download ONNX", data=target.read_bytes, file_name=f"{run.id}.onnx", mime="application/octet-stream",
            icon=":material/download:", on_click="ignore", key=f"onnx-file-{run.id}", width="stretch",
            help=f"Checked with onnxruntime {export['onnxruntime']}: logits differ by at most "
            f"{export['max_abs_difference']:.1e} on {export['checked_images']} images.",
        )  # fmt: skip
    elif (job is None or export is not None) and st.button(
        "Make ONNX", icon=":material/ios_share:", key=f"onnx-make-{run.id}", width="stretch",
        disabled=not task.has_classes,
        help=None if task.has_classes else "ONNX is made of models of images; this one is handed on as its folder.",
    ):  # fmt: skip
        jobs.start(key, lambda report: _export(run, target, report), "ONNX", again=True)
        st.rerun()


def _export(run: Run, target: Path, report: jobs.Report) -> dict[str, Any]:
    report.step("reading the weights", 0.1)
    from upvit_core.export import export_onnx
    from upvit_core.models.checkpoint import load_model

    loaded = load_model(str(run.model))
    report.step("exporting and checking", 0.3)
    return export_onnx(loaded.model, loaded.shape, target)


def said() -> None:
    """What an action had to say, once."""
    if message := session().message:
        session().message = ""
        st.error(message)


def get(store: RunStore, run_id: str) -> Run | None:
    try:
        return store.get(run_id)
    except UPViTError:
        return None


def run_button(store: RunStore, run: Run) -> None:
    def write() -> str:
        from upvit_core.report import run_report

        return run_report(store, run.id)

    st.download_button(
        "Report", data=write, file_name=f"{run.id}.html", mime="text/html", icon=":material/article:",
        on_click="ignore", key=f"report-{run.id}", width="stretch", help=HELP,
    )  # fmt: skip
