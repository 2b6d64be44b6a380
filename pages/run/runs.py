"""Runs: thinner models that learn from the original, live; start, watch, compare, take away."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import pandas as pd
import streamlit as st

from pages.shared import (
    actions,
    charts,
    frame,
    jobs,
    measured,
    places,
    recipes,
    reports,
    run_actions,
    run_data,
    scoring,
    two_starts,
    whatif,
    words,
)
from upvit_core.figures.evaluations import along, on_all
from upvit_core.figures.runs import RunCurve, judged_by, speed_chart
from upvit_core.figures.step_curves import step_chart
from upvit_core.profiling.macs import count_macs, count_parameters
from upvit_core.runs.commands import commands
from upvit_core.runs.spec import RESUMABLE
from upvit_core.runs.store import RunStore, RunSummary

REFRESH = "2s"
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
FORMATS = {
    "After surgery, %": "%.2f", "Top-1 now, %": "%.2f", "to the teacher": "%+.2f", "to scratch": "%+.2f",
    "Perplexity after surgery": "%.2f", "Perplexity now": "%.2f",
    "KL, nats": "%.4f", "Images/s": "%.0f", "Blocks/s": "%.0f", "× teacher": "%.2f", "Test images": "%d",
    "Test tokens": "%d", "Top-1 on all, %": "%.2f", "Perplexity on all": "%.2f", "All": "%d",
}  # fmt: skip
PERPLEXITY = {"Perplexity after surgery", "Perplexity now", "Test tokens", "Perplexity on all"}
OF_IMAGES = {"After surgery, %", "Top-1 now, %", "to the teacher", "to scratch", "Test images", "Top-1 on all, %"}
ON_ALL = {"Top-1 on all, %", "Perplexity on all", "All"}


def shown_key(run_id: str) -> str:
    return f"show-{run_id}"


def run_list(store: RunStore, summaries: Sequence[RunSummary]) -> list[RunSummary]:
    """Runs, newest first, a state word and a bar each; returns those that are ticked."""
    label, colour = run_data.names(summaries), run_data.colours(summaries)
    chosen = []
    every = st.toggle(f"Show all {len(summaries)}", key="every-run") if len(summaries) > LISTED else False
    for place, summary in enumerate(summaries if every else summaries[:LISTED]):
        st.session_state.setdefault(shown_key(summary.id), place < SHOWN)
        stopping = "stopping" if run_actions.is_stopping(summary.id) else ""
        stopping = stopping or ("pausing" if run_actions.is_pausing(summary.id) else "")
        with st.container(key=f"run-{summary.id}"):
            with st.container(horizontal=True, vertical_alignment="center", horizontal_alignment="distribute"):
                if st.checkbox(label[summary.id], key=shown_key(summary.id)):
                    chosen.append(summary)
                run_actions.button_of(store, summary)
            st.html(
                bar(run_data.state_words(summary.state, stopping=stopping), summary.state.progress, colour[summary.id])
            )
            if summary.state.state == "failed" and summary.state.error:
                st.caption(summary.state.error)
            elif summary.state.is_active and summary.state.note:
                st.caption(summary.state.note)
    run_actions.device_lines(summaries)
    return chosen


def bar(text: str, share: float, colour: str) -> str:
    """A state word over a bar in the run's colour."""
    percent = round(100 * share)
    return (
        f'<div class="run"><div class="words">{escape(text)}</div><div class="track" role="progressbar" '
        f'aria-label="{escape(text)}" aria-valuenow="{percent}" aria-valuemin="0" aria-valuemax="100">'
        f'<div class="done" style="width: {percent}%; background: {colour}"></div></div></div>'
    )


def pictures(curves: Sequence[RunCurve], imagenet: bool) -> None:
    theme = charts.theme()
    told = [curve for curve in curves if curve.evaluations]
    texts = [curve for curve in told if _is_text(curve.rows)]
    with st.container(horizontal=True):
        if 0 < len(texts) < len(told):
            first = "text" if _is_text(told[0].rows) else "images"
            kind = st.segmented_control(
                "Runs of", ["images", "text"], default=first, required=True, key="kind-of-runs",
                label_visibility="collapsed", help="Top-1 of images and perplexity of a text do not share an axis.",
            )  # fmt: skip
            curves = texts if kind == "text" else [curve for curve in curves if curve not in texts]
        relative = st.toggle(
            "Relative to the teacher", key="relative-speed",
            help="Each run measures its teacher and its student in turns, so their ratio does not depend on what else "
            "the machine was doing.",
        )  # fmt: skip
        published = imagenet and st.toggle(
            "Published points", key="published-points",
            help="Titan Xp, batch 32: another device, so compare shapes of curves, not speeds.",
        )  # fmt: skip
    charts.show_vega(speed_chart(curves, theme, relative=relative, published=published), "speed")
    features = any(row.get("features") is not None for curve in curves for row in curve.rows)
    columns = st.columns(3 if features else 2)
    with columns[0]:
        charts.show_vega(step_chart(curves, "loss", theme), "loss")
    with columns[1]:
        charts.show_vega(step_chart(curves, judged_by(curves), theme), "top1")
    if features:
        with columns[2]:
            charts.show_vega(step_chart(curves, "features", theme), "loss-feature")


def _is_text(rows: Sequence[Mapping[str, Any]]) -> bool:
    return any("perplexity" in row for row in rows)


def table(store: RunStore, chosen: Sequence[RunSummary], every: Sequence[RunSummary]) -> None:
    """Up to ten runs side by side; differences to the teacher and to the same shape from scratch."""
    label = run_data.names(every)
    lines = []
    for summary in chosen[:SHOWN]:
        if summary.spec is None:
            continue
        rows = run_data.rows()(store, summary.id)
        teacher = next((row for row in rows if row.get("phase") == "teacher"), {})
        surgery = next((row for row in rows if row.get("phase") == "surgery"), {})
        last, whole = next(iter(along(rows)[::-1]), {}), on_all(rows)
        scratch = run_data.baseline_of(summary, every, store)
        shape = run_data.shape_of(store, summary.id, summary.spec)
        of_text = _is_text(rows)
        top1, now = None if of_text else last.get("top1"), summary.state
        fresh = [] if scratch is None else along(run_data.rows()(store, scratch.id))[-1:]
        baseline = fresh[0]["top1"] if fresh and fresh[0].get("images") == last.get("images") else None
        against = teacher.get("top1")
        lines.append(
            {
                "Run": label[summary.id],
                "Plan": run_data.plan_words(summary.spec),
                "Parameters": words.short(count_parameters(shape)) if shape else "",
                "MACs": words.short(count_macs(shape)) if shape else "",
                "After surgery, %": None if of_text else surgery.get("top1"),
                "Top-1 now, %": top1,
                "to the teacher": None if top1 is None or against is None else top1 - against,
                "to scratch": None if top1 is None or baseline is None else top1 - baseline,
                "Perplexity after surgery": surgery.get("perplexity"),
                "Perplexity now": last.get("perplexity"),
                "KL, nats": last.get("kl_teacher"),
                "Images/s": surgery.get("images_per_s"),
                "× teacher": surgery.get("speedup"),
                "Test images": None if of_text else last.get("images"),
                "Test tokens": last.get("images") if of_text else None,
                "Top-1 on all, %": None if of_text or whole is None else whole["top1"],
                "Perplexity on all": None if whole is None else whole.get("perplexity"),
                "All": None if whole is None else whole["images"],
                "Epochs": round(now.epoch, 2),
                "Seconds": round(now.seconds),
            }
        )  # fmt: skip
    if lines:
        told = [line for line in lines if line["Perplexity now"] is not None or line["Top-1 now, %"] is not None]
        texts = [line["Perplexity now"] is not None for line in told]
        of_text = bool(texts) and all(texts)
        hidden = OF_IMAGES if of_text else set() if any(texts) else PERPLEXITY
        hidden = hidden | (set() if any(line["All"] is not None for line in lines) else ON_ALL)
        speed = {"Images/s": "Blocks/s"} if of_text else {}
        lines = [{speed.get(n, n): value for n, value in line.items() if n not in hidden} for line in lines]
        numbers = {name: st.column_config.NumberColumn(format=form) for name, form in FORMATS.items()}
        st.dataframe(pd.DataFrame(lines), hide_index=True, column_config=numbers, width="stretch", placeholder="—")
        devices = sorted(
            {
                str(row.get("device"))
                for s in chosen[:SHOWN]
                for row in run_data.rows()(store, s.id)[:2]
                if row.get("device")
            }
        )
        if devices:
            st.caption(
                f"{'Blocks of text' if of_text else 'Images'}/s measured on {', '.join(devices)}, teacher and "
                "student in turns." + ("" if of_text else " Differences in percentage points.")
            )


def one_run(store: RunStore, summaries: Sequence[RunSummary]) -> None:
    """The log of one run, and what can be done with it."""
    label = run_data.names(summaries)
    readable = [summary.id for summary in summaries if summary.spec is not None]
    if not readable:
        return
    active = next((s.id for s in summaries if s.state.state == "running"), readable[0])
    if st.session_state.get("one-run") not in readable:
        st.session_state["one-run"] = active
    run_id = st.selectbox("One run", readable, format_func=label.__getitem__, key="one-run")
    run = run_actions.get(store, run_id)
    if run is None:
        return
    state = next(s.state for s in summaries if s.id == run_id)
    left, right = st.columns([0.68, 0.32])
    with left:
        if state.state in RESUMABLE and state.error:
            st.warning(state.error)
        if state.note:
            st.info(state.note, icon=":material/memory:")
        if state.place:
            st.caption(state.place)
        st.code("\n".join(store.tail_log(run_id, LOG_LINES)) or "Nothing is logged yet.", language=None, height=300)
    with right:
        if state.state == "queued":
            run_actions.priority_box(store, next(s for s in summaries if s.id == run_id))
        if run.model.is_dir():
            run_actions.downloads(run, of_text=_is_text(run_data.rows()(store, run_id)))
        if not run.spec.settings.from_scratch:
            run_actions.baseline_button(store, run)
        reports.run_button(store, run)
        with st.popover("Copy command", icon=":material/terminal:", width="stretch"):
            st.code(commands(run), language=None, wrap_lines=True, width=560)
        with st.popover("Settings", icon=":material/tune:", width="stretch"):
            st.json(run.spec.model_dump(exclude={"plan"}, exclude_none=True), expanded=1)


def body(store: RunStore) -> None:
    """Everything that changes while runs go on."""
    summaries = store.list()
    if st.session_state.get("runs-active", False) != any(s.state.is_active for s in summaries):
        st.rerun()
    run_actions.said()
    left, right = st.columns([0.29, 0.71], gap="medium")
    with left:
        chosen = run_list(store, summaries)
    with right:
        curves = run_data.curves(store, chosen[:SHOWN], summaries)
        shapes = [run_data.shape_of(store, s.id, s.spec) for s in chosen if s.spec is not None]
        two_starts.panel(store, chosen[:SHOWN], curves)
        pictures(curves, any(shape is not None and shape.num_classes == 1000 for shape in shapes))
    if len(chosen) > SHOWN:
        st.caption(f"{len(chosen)} runs are ticked; the newest {SHOWN} of them are drawn.")
    table(store, chosen, summaries)
    one_run(store, summaries)


def nothing_yet() -> None:
    """What will be here, and the button that fills it."""
    st.info(
        "Each thinner model that learns from its original will be a point here: how fast it is, and how good it "
        "becomes.",
        icon=":material/model_training:",
    )
    model = frame.current()
    scores = scoring.current(model)
    now = whatif.current(model.shape)
    spec = measured.image_spec(model)
    if model.has_weights and scores is not None and spec:
        found, finding = scoring.planning(model, scores, now, spec)
        if finding is not None and finding.active:
            jobs.progress(finding)
        if st.button(
            f"Distil {model.name} at {now.words}", type="primary", icon=":material/play_arrow:", key="first-run",
            disabled=found is None,
        ):  # fmt: skip
            actions.start_runs(model, scores, [now], recipes.asked(model))
    else:
        st.markdown("Open a model with weights and scores first, then choose a plan.")
    frame.page_link("pages/explore/tradeoff.py", "Choose a plan on Trade-off")


with frame.page(
    "Runs",
    "Thinner models learning from the original: how fast, how accurate, live.",
    "Loss: cross-entropy on the labels plus α times the KL-divergence from the original's answer (Eq. 2 of the "
    "letter). A run is a process of its own: it goes on when this page is closed.",
):
    store = RunStore(places.runs())
    summaries = store.list()
    if summaries:
        st.html(STYLE)
        active = st.session_state["runs-active"] = any(summary.state.is_active for summary in summaries)
        st.fragment(body, run_every=REFRESH if active else None)(store)
        if asked := st.session_state.get(run_actions.ASKED):
            run_actions.confirm(store, run_data.names(summaries).get(asked, asked))
        frame.current()
    else:
        nothing_yet()
