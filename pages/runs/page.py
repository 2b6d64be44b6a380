"""Runs: thinner models that learn from the original, live; compare, steer and download them."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from pages.runs import both_bases, live_charts, table
from pages.services import folders, launch, recipes, run_data, scoring, slider_state
from pages.services.session import session
from pages.widgets import charts, frame, progress, run_actions
from pages.widgets.plain import plain
from upvit_core.figures.runs import Quantity, RunCurve, judged_by, speed_table, step_table
from upvit_core.records.task import task_of_rows
from upvit_core.runs.commands import commands
from upvit_core.runs.folder import RunSummary
from upvit_core.runs.spec import RESUMABLE
from upvit_core.runs.store import RunStore

REFRESH = "2s"
TESTED_ON, ONE_RUN = "tested-on", "one-run"  # keys of widgets
SHOWN = 10
LISTED = 12
LOG_LINES = 14
STYLE = """<style>
[class*="st-key-run-"] { gap: 0.1rem; }
.run { margin-bottom: 0.35rem; }
.run .words { font-size: 0.92rem; opacity: 0.9; font-variant-numeric: tabular-nums; }
.run .track { height: 7px; border-radius: 4px; background: rgba(128, 136, 148, 0.28); overflow: hidden; }
.run .done { height: 100%; border-radius: 4px; }
</style>"""


def shown_key(run_id: str) -> str:
    return f"show-{run_id}"


@dataclass
class Slots:
    """Empty places on the page that are filled again and again while runs are active."""

    bars: dict[str, DeltaGenerator] = field(default_factory=dict)
    devices: DeltaGenerator | None = None
    log: DeltaGenerator | None = None
    log_of: str = ""


def run_list(store: RunStore, summaries: Sequence[RunSummary], slots: Slots) -> list[RunSummary]:
    """Draw the runs, newest first, with state and progress bar; returns the ticked ones."""
    label, colour = run_data.names(summaries), run_data.colours(summaries)
    chosen = []
    every = st.toggle(f"Show all {len(summaries)}", key="every-run") if len(summaries) > LISTED else False
    for place, summary in enumerate(summaries if every else summaries[:LISTED]):
        st.session_state.setdefault(shown_key(summary.id), place < SHOWN)
        with st.container(key=f"run-{summary.id}"):
            with st.container(horizontal=True, vertical_alignment="center", horizontal_alignment="distribute"):
                if st.checkbox(plain(label[summary.id]), key=shown_key(summary.id)):
                    chosen.append(summary)
                run_actions.button_of(store, summary)
            if summary.state.is_active:
                slots.bars[summary.id] = st.empty()
            else:
                st.html(bar(summary, colour[summary.id]))
            if summary.state.state in RESUMABLE:
                st.caption(plain(summary.reason))
            elif summary.state.is_active:
                if summary.state.note:
                    st.caption(plain(summary.state.note))
                if failure := run_actions.failed_stop(summary.id):
                    st.warning(plain(failure))
    slots.devices = st.empty()
    return chosen


def bar(summary: RunSummary, colour: str) -> str:
    """HTML of the state over a progress bar in the run's colour."""
    text = run_data.state_words(summary.state, stopping=run_actions.stopping(summary.id))
    percent = round(100 * summary.state.progress)
    return (
        f'<div class="run"><div class="words">{escape(text)}</div><div class="track" role="progressbar" '
        f'aria-label="{escape(text)}" aria-valuenow="{percent}" aria-valuemin="0" aria-valuemax="100">'
        f'<div class="done" style="width: {percent}%; background: {colour}"></div></div></div>'
    )


def _tested_on(sources: Sequence[str]) -> str:
    """The control that chooses among runs of different data."""
    if st.session_state.get(TESTED_ON) not in sources:
        st.session_state[TESTED_ON] = sources[0]
    chosen = st.segmented_control(
        "Tested on",
        sources,
        format_func=lambda data: plain(Path(data).name or data),
        required=True,
        wrap=True,
        key=TESTED_ON,
        label_visibility="collapsed",
        help="Runs on different images or texts are tested on different ones, so their results do not compare.",
    )
    return chosen or ""


def pictures(store: RunStore, curves: Sequence[RunCurve], imagenet: bool) -> live_charts.View:
    """Draw the charts with their controls; returns the choices."""
    of = ""
    with st.container(horizontal=True):
        if len(sources := list(dict.fromkeys(curve.data for curve in curves))) > 1:  # the newest run's first
            of = _tested_on(sources)
        tip = "Teacher and student are measured in turns, so their ratio does not depend on the machine's other work."
        relative = st.toggle("Relative to the teacher", key="relative-speed", help=tip)
        tip = "Titan Xp, batch 32: another device, so compare shapes of curves, not speeds."
        published = imagenet and st.toggle("Published points", key="published-points", help=tip)
    live_charts.charts(store, curves)
    drawn = [curve for curve in curves if not of or curve.data == of]
    task = judged_by(curve.points for curve in drawn)
    tables: dict[str, tuple[str, Quantity]] = {"loss": ("Loss", "loss"), "top1": (task.name, task.key)}
    if any(row.get("features") is not None for curve in drawn for row in curve.points.train):
        tables["loss-feature"] = ("Last feature", "features")
    with st.container(horizontal=True):
        charts.table_button(speed_table(drawn, relative=relative), "speed", "Speed (CSV)")
        for key, (name, quantity) in tables.items():
            charts.table_button(step_table(drawn, quantity), key, f"{name} (CSV)")
    return live_charts.View(relative, published, of)


def one_run(store: RunStore, summaries: Sequence[RunSummary], slots: Slots) -> None:
    """Draw the log of one run, its downloads and its actions."""
    label = run_data.names(summaries)
    readable = [summary.id for summary in summaries if summary.spec is not None]
    if not readable:
        return
    active = next((s.id for s in summaries if s.state.state == "running"), readable[0])
    if st.session_state.get(ONE_RUN) not in readable:
        st.session_state[ONE_RUN] = active
    run_id = st.selectbox("One run", readable, format_func=label.__getitem__, key=ONE_RUN)
    run = run_actions.find_run(store, run_id)
    if run is None:
        return
    summary = next(s for s in summaries if s.id == run_id)
    state = summary.state
    left, right = st.columns([0.68, 0.32])
    with left:
        if state.state in RESUMABLE:
            st.warning(plain(summary.reason))
        if state.note:
            st.info(plain(state.note), icon=":material/info:")
        if state.place:
            st.caption(plain(state.place))
        slots.log, slots.log_of = st.empty(), run_id
    with right:
        if state.state == "queued":
            run_actions.priority_box(store, next(s for s in summaries if s.id == run_id))
        if run.model.is_dir():
            run_actions.download_buttons(run, task_of_rows(run_data.rows()(store, run_id)))
        if not run.spec.settings.from_scratch:
            run_actions.baseline_button(store, run)
        run_actions.report_button(store, run)
        with st.popover("Copy command", icon=":material/terminal:", width="stretch"):
            st.code(commands(run), language=None, wrap_lines=True, width=560)
        with st.popover("Settings", icon=":material/tune:", width="stretch"):
            st.json(run.spec.model_dump(exclude={"plan"}, exclude_none=True), expanded=1)


def structure(store: RunStore, summaries: Sequence[RunSummary], drawn: Sequence[str]) -> object:
    """The data that the page's structure depends on; while it stays equal, `tick` need only update parts."""
    active = [s.id for s in summaries if s.state.is_active]
    stopping = [(run_actions.stopping(run_id), run_actions.failed_stop(run_id)) for run_id in active]
    points = [run_data.rows().known(store, run) for run in drawn]
    return (
        [(s.id, s.state.state, s.state.error, s.state.note, s.state.place, s.priority) for s in summaries],
        stopping,
        [(len(known.evals), known.marks, judged_by([known])) for known in points],
    )


def body(store: RunStore) -> None:
    """Draw the page; `tick` updates what changes while runs are active, the rest is drawn again on user actions."""
    summaries, slots = store.list(), Slots()
    if session().active_runs != any(s.state.is_active for s in summaries):
        st.rerun()
    run_actions.show_message()
    left, right = st.columns([0.29, 0.71], gap="medium")
    with left:
        chosen = run_list(store, summaries, slots)
    drawn = [s.id for s in chosen[:SHOWN] if s.spec is not None]
    with right:
        curves = run_data.curves(store, chosen[:SHOWN], summaries)
        shapes = [run_data.shape_of(store, s.id, s.spec) for s in chosen if s.spec is not None]
        view = pictures(store, curves, any(shape is not None and shape.num_classes == 1000 for shape in shapes))
        both_bases.panel(store, chosen[:SHOWN], curves)
    if len(chosen) > SHOWN:
        st.caption(f"{len(chosen)} runs are ticked; the newest {SHOWN} of them are drawn.")
    table.table(store, chosen, summaries)
    one_run(store, summaries, slots)
    built = structure(store, summaries, drawn)

    def tick() -> None:
        now = store.list()
        going = {s.id for s in now if s.state.is_active}
        live_charts.feed(store, view, going)
        if structure(store, now, drawn) != built:
            st.rerun()
        colour = run_data.colours(now)
        for summary in now:
            if summary.id in slots.bars:
                slots.bars[summary.id].html(bar(summary, colour[summary.id]))
        if slots.devices is not None:
            with slots.devices.container():
                run_actions.device_lines(now)
        if slots.log is not None:
            text = "\n".join(store.tail_log(slots.log_of, LOG_LINES))
            slots.log.code(text or "Nothing is logged yet.", language=None, height=300)

    active = any(s.state.is_active for s in summaries)
    st.fragment(tick, run_every=REFRESH if active else None)()


def nothing_yet() -> None:
    """Draw the empty page: its purpose, and a button that starts the first run."""
    text = "Each thinner model that learns from its original will be a point here: its speed and its accuracy."
    frame.awaited(text, icon=":material/model_training:")
    model = frame.current()
    scores = scoring.current(model)
    now = slider_state.current(model.shape)
    if model.can_measure and scores is not None:
        planned, finding = scoring.for_planning(model, scores, now)
        progress.show(finding)
        label, icon, off = f"Distil {plain(model.name)} at {now.words}", ":material/play_arrow:", planned is None
        if st.button(label, type="primary", icon=icon, key="first-run", disabled=off):
            launch.start_runs(model, scores, [now], recipes.requested_training(model))
            frame.go_to_runs()
    else:
        st.markdown("Open a model with weights and scores first, then choose a plan.")
    frame.page_link("pages/tradeoff/page.py", "Choose a plan on Trade-off")


with frame.page(
    "Runs",
    "Thinner models learning from the original: how fast, how accurate, live.",
    "Loss: cross-entropy on the labels plus α times the KL divergence from the original's answer (Eq. 2 of the "
    "letter). A run is a separate process: it goes on when this page is closed.",
):
    store = RunStore(folders.runs())
    summaries = store.list()
    if summaries:
        st.html(STYLE)
        session().active_runs = any(summary.state.is_active for summary in summaries)
        st.fragment(body)(store)
        run_actions.confirm_cancelling(store)
        frame.current()
    else:
        nothing_yet()
