"""The table of runs: accuracy, speed, and differences to the teacher and to the same shape from scratch."""

from collections.abc import Sequence

import pandas as pd
import streamlit as st

from pages.services import run_data
from pages.widgets.plain import plain
from upvit_core import units
from upvit_core.profiling.macs import count_macs, count_parameters
from upvit_core.records.task import TEXT, task_of_rows
from upvit_core.runs.folder import RunSummary
from upvit_core.runs.store import RunStore

MOST = 10
COSINE = "Mean cosine to the original"
FORMATS = {
    "After surgery, %": "%.2f", "Top-1 now, %": "%.2f", "against the original, points": "%+.2f",
    "against scratch, points": "%+.2f",
    "Perplexity after surgery": "%.2f", "Perplexity now": "%.2f",
    "KL, nats": "%.4f", COSINE: "%.3f", "Images/s": "%.0f", "Blocks/s": "%.0f", "Speed, × original": "%.2f",
    "Test images": "%d", "Test tokens": "%d", "Top-1 on all, %": "%.2f", "Perplexity on all": "%.2f", "All": "%d",
}  # fmt: skip
PERPLEXITY = {"Perplexity after surgery", "Perplexity now", "Test tokens", "Perplexity on all"}
OF_IMAGES = {"After surgery, %", "Top-1 now, %", "against the original, points", "against scratch, points"}
OF_IMAGES |= {"Test images", "Top-1 on all, %"}
ON_ALL = {"Top-1 on all, %", "Perplexity on all", "All"}


def _first_of_group(store: RunStore, run: RunSummary, every: Sequence[RunSummary]) -> float | None:
    """Top-1 of the original on the other images to which a group of runs was taken: the group's oldest run."""
    if run.spec is None or not run.spec.group or run.spec.kind != "finetune":
        return None
    first = next(s for s in reversed(every) if s.spec is not None and s.spec.group == run.spec.group)
    return next((row.get("top1") for row in run_data.rows().points(store, first.id).evals[::-1]), None)


def table(store: RunStore, chosen: Sequence[RunSummary], every: Sequence[RunSummary]) -> None:
    """Draw up to ten runs side by side."""
    label = run_data.names(every)
    lines = []
    for summary in chosen[:MOST]:
        if summary.spec is None:
            continue
        rows, points = run_data.rows()(store, summary.id), run_data.rows().known(store, summary.id)
        teacher = points.teacher or {}
        surgery = next((row for row in rows if row.get("phase") == "surgery"), {})
        last, whole = next(iter(points.evals[::-1]), {}), points.whole
        scratch = run_data.baseline_of(summary, every, store)
        shape = run_data.shape_of(store, summary.id, summary.spec)
        of_text = task_of_rows(rows) is TEXT
        top1, now = None if of_text else last.get("top1"), summary.state
        fresh = [] if scratch is None else run_data.rows().points(store, scratch.id).evals[-1:]
        baseline = fresh[0].get("top1") if fresh and fresh[0].get("images") == last.get("images") else None
        against = teacher.get("top1", _first_of_group(store, summary, every))
        lines.append(
            {
                "Run": label[summary.id],
                "Plan": run_data.plan_words(summary.spec),
                "Parameters": units.short(count_parameters(shape)) if shape else "",
                "MACs": units.short(count_macs(shape)) if shape else "",
                "After surgery, %": None if of_text else surgery.get("top1"),
                "Top-1 now, %": top1,
                "against the original, points": None if top1 is None or against is None else top1 - against,
                "against scratch, points": None if top1 is None or baseline is None else top1 - baseline,
                "Perplexity after surgery": surgery.get("perplexity"),
                "Perplexity now": last.get("perplexity"),
                "KL, nats": last.get("kl_teacher"),
                COSINE: last.get("cosine"),
                "Images/s": surgery.get("images_per_s"),
                "Speed, × original": surgery.get("speedup"),
                "Test images": None if of_text else last.get("images"),
                "Test tokens": last.get("images") if of_text else None,
                "Top-1 on all, %": None if of_text or whole is None else whole.get("top1"),
                "Perplexity on all": None if whole is None else whole.get("perplexity"),
                "All": None if whole is None else whole["images"],
                "Epochs": round(last.get("epoch", now.epoch), 2),
                "Seconds": round(last.get("seconds", now.seconds)),
            }
        )
    if not lines:
        return
    evaluated = [line for line in lines if line["Perplexity now"] is not None or line["Top-1 now, %"] is not None]
    texts = [line["Perplexity now"] is not None for line in evaluated]
    of_text = bool(texts) and all(texts)
    hidden = OF_IMAGES if of_text else set() if any(texts) else PERPLEXITY
    hidden = hidden | (set() if any(line["All"] is not None for line in lines) else ON_ALL)
    hidden = hidden | (set() if any(line[COSINE] is not None for line in lines) else {COSINE})
    speed = "Blocks/s" if of_text else "Images/s"
    lines = [{n.replace("Images/s", speed): v for n, v in line.items() if n not in hidden} for line in lines]
    numbers = {name: st.column_config.NumberColumn(format=form) for name, form in FORMATS.items()}
    st.dataframe(pd.DataFrame(lines), hide_index=True, column_config=numbers, width="stretch", placeholder="—")
    measured = [row for s in chosen[:MOST] for row in run_data.rows()(store, s.id)[:2]]
    if devices := sorted({str(row["device"]) for row in measured if row.get("device")}):
        st.caption(f"{speed} measured on {plain(', '.join(devices))}, original and student in turns.")
