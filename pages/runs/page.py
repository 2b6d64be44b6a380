"""Runs: thinner models that learn from the original, live; compare, steer and download them."""

from collections.abc import Sequence
from html import escape
from pathlib import Path

import streamlit as st

from pages.runs import cards, live_charts, new_run, same_images, table
from pages.services import folders, run_data
from pages.services.open_model import OpenModel
from pages.services.session import session
from pages.widgets import by_class, charts, frame, run_actions
from pages.widgets.plain import plain
from upvit_core.figures.runs import Quantity, RunCurve, judged_by, speed_table, step_table
from upvit_core.records.task import IMAGES, task_of_rows
from upvit_core.runs.commands import commands
from upvit_core.runs.folder import Run, RunSummary
from upvit_core.runs.spec import RESUMABLE
from upvit_core.runs.store import RunStore

TESTED_ON, ONE_RUN = "tested-on", "one-run"  # keys of widgets
LOG_LINES = 14
STYLE = Path(__file__).with_name("style.css")


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


def choices(curves: Sequence[RunCurve], expected: dict[str, tuple[float, float]], imagenet: bool) -> live_charts.View:
    """Draw the controls of the charts, where there is a choice; returns it."""
    of, published = "", False
    with st.container(horizontal=True):
        if len(sources := list(dict.fromkeys(curve.data for curve in curves))) > 1:  # the newest run's first
            of = _tested_on(sources)
        if imagenet:
            tip = "Speed-ups as published, on a Titan Xp at batch 32: another device."
            published = st.toggle("Published points", key="published-points", help=tip)
    return live_charts.View(published, expected, of)


def step_button(drawn: Sequence[RunCurve], name: Quantity) -> None:
    """A button that downloads what a chart over steps shows."""
    titles = {"loss": "Loss", "features": "Last feature", "top1": "Top-1", "perplexity": "Perplexity"}
    charts.table_button(step_table(drawn, name), name, f"{titles[name]} (CSV)")


def pictures(store: RunStore, summaries: Sequence[RunSummary], chosen: Sequence[RunSummary]) -> live_charts.View:
    """Draw accuracy over epochs, accuracy against speed, and the same images before and after; returns the choices."""
    curves = run_data.curves(store, chosen, summaries)
    shapes = [run_data.shape_of(store, s.id, s.spec) for s in chosen if s.spec is not None]
    forecasts = {s.id: run_data.expected(store, s, summaries) for s in chosen}
    expected = {run_id: (f.low, f.high) for run_id, f in forecasts.items() if f is not None}
    imagenet = any(shape is not None and shape.num_classes == 1000 for shape in shapes)
    task = judged_by(curve.points for curve in curves)
    sizes = sorted({row["images"] for curve in curves for row in curve.points.evals[:1] if row.get("images")})
    name = "Right answers" if task is IMAGES else task.name
    tested = f"{' or '.join(f'{size:,}' for size in sizes)} test {task.samples}" if sizes else "nothing is measured yet"
    st.html(f'<h3 class="part">{name} while learning</h3><p class="quiet">{tested}; dashed: the original</p>')
    view = choices(curves, expected, imagenet)
    live_charts.send(store, curves)
    live_charts.chart("task", 400)
    drawn = [curve for curve in curves if not view.of or curve.data == view.of]
    step_button(drawn, task.key)
    with st.container(key="speed-and-images"):
        left, right = st.columns([0.46, 0.54], gap="medium")
    with left:
        name = "Accuracy" if task is IMAGES else task.name
        st.html(f'<h3 class="part">{name} against speed</h3>')
        live_charts.chart("speed", 320)
        charts.table_button(speed_table(drawn), "speed", "Speed (CSV)")
    with right:
        examples(store, chosen, run_data.names(summaries))
    return view


def examples(store: RunStore, chosen: Sequence[RunSummary], label: dict[str, str]) -> None:
    """Draw the images of the run in focus, again while it goes on."""
    run = in_focus(store, chosen)
    if run is None:
        return
    active = store.state(run.id).is_active
    st.html(f'<h3 class="part">The same images, before and after</h3><p class="quiet">{escape(label[run.id])}</p>')
    st.fragment(lambda: same_images.draw(run), run_every=cards.REFRESH if active else None)()


def classes(store: RunStore, chosen: Sequence[RunSummary], label: dict[str, str]) -> None:
    """Draw what the run in focus gets wrong, class by class; nothing if it has no answers by class."""
    run = in_focus(store, chosen)
    if run is not None and (answered := run.answered) is not None:
        st.html(f'<h3 class="part">Class by class</h3><p class="quiet">{escape(label[run.id])}, latest evaluation</p>')
        by_class.draw(answered.by_class, answered.names, same_images.flipped(run.answers))


def in_focus(store: RunStore, chosen: Sequence[RunSummary]) -> Run | None:
    run_id = focus([s.id for s in chosen if s.spec is not None], chosen)
    return run_actions.find_run(store, run_id) if run_id else None


def focus(readable: Sequence[str], summaries: Sequence[RunSummary]) -> str | None:
    """The run that is shown in detail: the one that was chosen, else one that runs, else the newest."""
    kept = st.session_state.get(ONE_RUN)
    if kept in readable or not readable:
        return kept if kept in readable else None
    return next((s.id for s in summaries if s.id in readable and s.state.state == "running"), readable[0])


def losses(curves: Sequence[RunCurve]) -> None:
    """Draw the losses of training, and of the last feature where there is one."""
    features = any(row.get("features") is not None for curve in curves for row in curve.points.train)
    names: list[Quantity] = ["loss", "features"] if features else ["loss"]
    for place, name in zip(st.columns(len(names)), names, strict=True):
        with place:
            live_charts.chart(name, 240)
            step_button(curves, name)


def log(store: RunStore, run_id: str) -> None:
    """Draw the end of a run's log."""
    text = "\n".join(store.tail_log(run_id, LOG_LINES))
    st.code(text or "Nothing is logged yet.", language=None, height=300)


def one_run(store: RunStore, summaries: Sequence[RunSummary]) -> None:
    """Draw the log of one run, its downloads and its actions."""
    label = run_data.names(summaries)
    readable = [summary.id for summary in summaries if summary.spec is not None]
    if not readable:
        return
    st.session_state[ONE_RUN] = focus(readable, summaries)
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
        st.fragment(lambda: log(store, run_id), run_every=cards.REFRESH if state.is_active else None)()
    with right:
        if state.state == "queued" and run_actions.may_steer(summary):
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


def body(store: RunStore, model: OpenModel) -> None:
    """Draw the page. Each part that follows a run is drawn in a place of its own; the page anew on user actions, and
    when runs begin, end, or are measured."""
    summaries = store.list()
    if session().active_runs != any(s.state.is_active for s in summaries):
        st.rerun()
    run_actions.show_message()
    left, right = st.columns([0.27, 0.73], gap="medium")
    chosen = cards.chosen(summaries)
    shown = chosen[: cards.SHOWN]
    drawn = [s.id for s in shown if s.spec is not None]
    with left:
        new_run.button()
        cards.draw(store, summaries)
    with right:
        view = pictures(store, summaries, shown)
    if len(chosen) > cards.SHOWN:
        st.caption(f"{len(chosen)} runs are ticked; the newest {cards.SHOWN} of them are drawn.")
    table.table(store, chosen, summaries)
    classes(store, shown, run_data.names(summaries))
    losses(run_data.curves(store, shown, summaries))
    one_run(store, summaries)
    built = structure(store, summaries, drawn)

    def tick() -> None:
        now = store.list()
        live_charts.feed(store, view, {s.id for s in now if s.state.is_active})
        if structure(store, now, drawn) != built:
            st.rerun()
        run_actions.device_lines(now)

    active = any(s.state.is_active for s in summaries)
    with left:
        st.fragment(tick, run_every=cards.REFRESH if active else None)()


def nothing_yet(store: RunStore, model: OpenModel) -> None:
    """Draw the empty page: its purpose, and a button that starts the first run."""
    text = "Each thinner model that learns from its original will be a curve here, and a point: how fast, how accurate."
    frame.awaited(text, icon=":material/model_training:")
    new_run.button()


with frame.page(
    "Runs",
    "Thinner models learning from the original: how accurate, how fast, live.",
    "Loss: cross-entropy on the labels plus α times the KL divergence from the original's answer (Eq. 2 of the "
    "letter). A run is a separate process: it goes on when this page is closed.",
):
    store = RunStore(folders.runs())
    summaries = store.list()
    model = frame.current()
    st.html(STYLE)
    if summaries:
        session().active_runs = any(summary.state.is_active for summary in summaries)
        st.fragment(body)(store, model)
        run_actions.confirm(store)
    else:
        nothing_yet(store, model)
    new_run.dialog(store, model)
