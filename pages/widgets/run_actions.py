"""Actions on runs: pause, cancel, resume, a baseline from scratch, priority, downloads, the report."""

from collections.abc import Callable, Sequence
from typing import Any

import streamlit as st

from pages.services import host, jobs, launch, limits, run_data
from pages.services.reports import HELP
from pages.services.session import session
from pages.widgets import onnx_files
from pages.widgets.plain import plain
from upvit_core.errors import RunError, UPViTError
from upvit_core.files import zipped
from upvit_core.records.task import Task
from upvit_core.runs.devices import Device, devices
from upvit_core.runs.folder import Request, Run, RunSummary
from upvit_core.runs.memory_check import gigabytes
from upvit_core.runs.queue import devices_of
from upvit_core.runs.spec import RESUMABLE
from upvit_core.runs.store import RunStore

USER = "a user of the studio"
STOPPING: dict[Request, str] = {"cancel": "stopping", "pause": "pausing"}


def may_steer(summary: RunSummary) -> bool:
    """True if this session may stop, resume, rename or delete a run."""
    return host.may_steer(summary.spec.owner if summary.spec is not None else "", limits.limits())


def button_of(store: RunStore, summary: RunSummary) -> None:
    """Pause and Cancel for an active run, Resume for one that stopped; nothing for whoever may not."""
    if not may_steer(summary):
        return
    if summary.state.is_active:
        text = "Saves after the current step and gives the device to the next run; Resume goes on from there."
        now = stopping(summary.id)
        if st.button("Pause", key=f"pause-{summary.id}", disabled=bool(now), help=text):
            _stop(store, summary.id, "pause")
            st.rerun()
        if st.button("Cancel", key=f"cancel-{summary.id}", disabled=now == STOPPING["cancel"]):
            session().asking = "cancel", summary.id
            st.rerun()
    elif (
        summary.state.state in RESUMABLE
        and summary.spec is not None
        and st.button("Resume", key=f"resume-{summary.id}")
    ):
        try:
            launch.resume(store, summary.id)
        except UPViTError as error:
            session().message = str(error)
        st.rerun()


def more_of(store: RunStore, summary: RunSummary) -> None:
    """Actions that are seldom wanted: another name, and to delete a run that is not active."""
    if not may_steer(summary):
        return
    key = f"rename-{summary.id}"

    def renamed() -> None:
        try:
            store.rename(summary.id, st.session_state[key])
        except UPViTError as error:
            session().message = str(error)

    with st.popover("", icon=":material/more_horiz:", help="Rename, delete"):
        st.text_input("Name", summary.name, max_chars=200, key=key, on_change=renamed)
        off, tip = summary.state.is_active, "Cancel it first." if summary.state.is_active else None
        if st.button("Delete…", icon=":material/delete:", key=f"delete-{summary.id}", disabled=off, help=tip):
            session().asking = "delete", summary.id
            st.rerun()


ASKED = {
    "cancel": ("Cancel this run?", "stops after its current step. Its last checkpoint stays, and Resume goes on from "
               "there.", "Cancel the run", "Let it go on"),
    "delete": ("Delete this run?", "is deleted with its weights, curves and log, for good.", "Delete the run",
               "Keep it"),
}  # fmt: skip


def confirm(store: RunStore) -> None:
    """The dialog that asks before a run is stopped or deleted, where that was asked for."""
    action, run_id = session().asking or ("", "")
    summary = next((s for s in store.list() if s.id == run_id), None)
    if action not in ASKED or summary is None or not may_steer(summary):
        return
    title, effect, yes, no = ASKED[action]
    name = run_data.names(store.list()).get(run_id, run_id)

    def forget() -> None:
        session().asking = None

    @st.dialog(title, on_dismiss=forget)
    def ask() -> None:
        st.markdown(f"**{plain(name)}** {effect}")
        with st.container(horizontal=True):
            if st.button(yes, type="primary", key=f"{action}-yes"):
                _done(store, action, run_id)
                forget()
                st.rerun()
            if st.button(no, key=f"{action}-no"):
                forget()
                st.rerun()

    ask()


def _done(store: RunStore, action: str, run_id: str) -> None:
    if action == "cancel":
        _stop(store, run_id, "cancel")
        return
    try:
        store.remove(run_id)
    except UPViTError as error:
        session().message = str(error)


def _stop(store: RunStore, run_id: str, request: Request) -> None:
    """Ask the worker to stop at once; a thread of its own waits until it has, so that nobody else does."""
    try:
        run = store.ask(run_id, request, USER)
    except RunError as error:
        session().message = str(error)
        return
    key, work = f"{request} run {run_id}", lambda report: store.finish(run, request)
    jobs.start(key, work, STOPPING[request].capitalize(), again=True, apart=True)


def _stops(run_id: str) -> dict[Request, jobs.AnyJob]:
    found = {request: jobs.find(f"{request} run {run_id}") for request in STOPPING}
    return {request: job for request, job in found.items() if job is not None}


def stopping(run_id: str) -> str:
    """`stopping` or `pausing` while an active run's worker is waited for; else empty."""
    return next((STOPPING[request] for request, job in _stops(run_id).items() if job.active), "")


def failed_stop(run_id: str) -> str:
    """The reason for which an active run could not be stopped; empty where nobody tried, or it is tried again."""
    return "" if stopping(run_id) else next((job.error for job in _stops(run_id).values() if job.error), "")


def baseline_button(store: RunStore, run: Run) -> None:
    """Draw the button that trains the same shape from fresh weights, for as many steps, to compare with."""
    text = "Trains the same shape from fresh weights with the same settings, to see what pruned weights are worth."
    icon = ":material/casino:"
    if st.button("Baseline from scratch", icon=icon, key=f"scratch-{run.id}", width="stretch", help=text):
        settings = run.spec.settings.model_copy(update={"from_scratch": True})
        name = f"{run.spec.name} from scratch"[:200]
        changes = {"settings": settings, "name": name, "group": "", "priority": 0, "created": 0}
        try:
            launch.start(store, [run.spec.model_copy(update=changes)])
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

    text = "Runs that wait for one device: higher first, then browser sessions take turns, then first come."
    names = PRIORITIES.__getitem__
    st.selectbox("Goes", list(PRIORITIES), format_func=names, key=key, on_change=changed, help=text)


@st.cache_data(ttl=5, show_spinner=False)
def device_list() -> list[Device]:
    return devices()


def device_lines(summaries: Sequence[RunSummary]) -> None:
    """Devices with the memory in use, and the run that has each."""
    going = [s for s in summaries if s.spec is not None and s.state.state == "running"]
    has = {device: s.name for s in going for device in devices_of(s)}
    for device in device_list():
        busy = f" · {plain(has[device.name])}" if device.name in has else " · free"
        st.caption(f"{plain(device.label)}: {gigabytes(device.used)} of {gigabytes(device.total)} memory in use{busy}")


def download(label: str, data: Callable[[], bytes | str], file_name: str, key: str, text: str, **more: Any) -> None:
    """Draw a download button as wide as its column; the file is made when it is pressed."""
    st.download_button(
        label, data=data, file_name=file_name, key=key, help=text, width="stretch", on_click="ignore", **more
    )


def download_buttons(run: Run, task: Task) -> None:
    """Draw the download of the distilled folder, and of ONNX files, which are made on request."""
    library, icon = "timm opens it as local-dir:FOLDER", ":material/download:"
    if not task.has_classes:
        library = "transformers opens it"
    text = f"config.json, model.safetensors and plan.json. {library} where all blocks are alike, this studio always."
    folder, name = lambda: zipped(run.model, run.id), f"{run.id}.zip"
    download("Download the folder", folder, name, f"folder-{run.id}", text, icon=icon, type="primary")
    onnx_files.buttons(run, task)


def show_message() -> None:
    """Show the error of the last action, once."""
    if message := session().message:
        session().message = ""
        st.error(plain(message))


def find_run(store: RunStore, run_id: str) -> Run | None:
    try:
        return store.get(run_id)
    except UPViTError:
        return None


def report_button(store: RunStore, run: Run) -> None:
    def write() -> str:
        from upvit_core.report import run_report

        return run_report(store, run.id)

    name, icon = f"{run.id}.html", ":material/article:"
    download("Report", write, name, f"report-{run.id}", HELP, icon=icon, mime="text/html")
