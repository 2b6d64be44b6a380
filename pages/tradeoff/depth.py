"""Fewer blocks: the half-blocks of the model, the score of each pair of neighbours, and how many blocks stay."""

from dataclasses import replace
from typing import Literal

import streamlit as st

from pages.services import block_removals, jobs
from pages.services.open_model import OpenModel
from pages.services.slider_state import DEPTH, ORDER
from pages.widgets import charts, progress
from upvit_core.figures.blocks import depth_curve, draw_half_blocks
from upvit_core.planning.depth import Order
from upvit_core.planning.what_if import WhatIf
from upvit_core.records.block_removals import BlockRemovals
from upvit_core.records.plan import PruningPlan
from upvit_core.records.scores import ImportanceScores

PREVIEW_IMAGES = 32
ORDERS: dict[Order, str] = {
    "together": "channels and half-blocks are both scored on the whole model",
    "depth first": "the channels are scored in the model that has its fewer blocks already",
    "width first": "the half-blocks are scored in the model that is thin already",
}
ABOUT = (
    "Attention (A) and FFN (F) of every block alternate, so any two neighbours can go and the rest still fits "
    "together. Where an A is left with the F of a later block, they make a **hybrid block**, an ordinary block once it "
    "is renumbered. Each step removes the pair without which the answers change least, and scores what is left again."
)


def depth_panel(model: OpenModel, scores: ImportanceScores, now: WhatIf, *, shut: bool) -> None:
    """Draw chart, slider and curve, or the form that makes the scores; where it is shut, the slider alone."""
    digest = scores.model_digest or model.digest
    record = block_removals.records().of_model(digest)
    if not shut:
        st.markdown(ABOUT)
    if record is None:
        if not shut:
            _draw_making(model, digest)
        return
    whole = record.shape.depth
    if now.depth is None:
        st.session_state[DEPTH] = whole  # or the slider would go back to what the link or the browser has
    # Drawn when shut too: a slider that is new on the page does not write its value into the link.
    label, help_text = "Blocks that stay", "Replays the removals in their order; sizes, costs and accuracy follow."
    depth = st.slider(label, record.least_depth, whole, value=whole, key=DEPTH, bind="query-params", help=help_text)
    if shut:
        return
    charts.show(draw_half_blocks(record, depth, charts.theme()), "half-blocks")
    charts.show(depth_curve(record, depth, charts.theme()), "depth-curve")
    _draw_order(model, scores, record, replace(now, depth=depth if depth < whole else None))
    st.html('<p class="quiet">KL of the whole-width model without these blocks, before any training.</p>')
    _draw_again(model, digest, record)


def _draw_order(model: OpenModel, scores: ImportanceScores, record: BlockRemovals, now: WhatIf) -> None:
    """Draw the choice of the cut that is scored first, and the button for the scores that it needs."""
    st.session_state.setdefault(ORDER, now.order)
    order = st.segmented_control(
        "Order of the cuts",
        list(ORDERS),
        format_func=str.capitalize,
        required=True,
        wrap=True,
        key=ORDER,
        bind="query-params",
        disabled=now.depth is None or now.basis != "channels",
        help=" ".join(f"{name.capitalize()}: {text}." for name, text in ORDERS.items()),
    )
    if now.depth is None or now.basis != "channels" or order in (None, "together"):
        return
    widths, records = replace(now, depth=None).plan(scores), block_removals.records()
    first = order == "depth first"
    known = records.at_depth(record, now.depth) if first else records.after_widths(widths)
    if known is not None:
        st.caption(f"{order.capitalize()}: {ORDERS[order]}, on {known.images:,} {model.task.batch_items}.")
        return
    key = f"{order} {model.data_key} {now.depth if first else widths.digest}"
    job = jobs.find(key)
    if job is not None and job.state != "done":
        progress.show(job)
        return
    st.caption(f"{order.capitalize()} means: {ORDERS[order]}. That is not scored yet; until then both are together.")
    if st.button("Score it", key="score-order", disabled=not model.can_measure):
        _score_in_order(model, order, record, now.depth, widths, key)
        st.rerun()


def _score_in_order(
    model: OpenModel, order: str, record: BlockRemovals, depth: int, widths: PruningPlan, key: str
) -> None:
    def work(report: jobs.Report) -> None:
        from upvit_core.importance.score import score
        from upvit_core.pruning.depth import at_depth, score_blocks

        live, data = model.weights(), model.images("train")
        count = min(record.images, len(data))
        if order == "depth first":
            path = block_removals.records().path_at_depth(record, depth)
            score(at_depth(live, record, depth), data, "fisher", n=count, report=report).save(path)
        else:
            path = block_removals.records().path_after_widths(widths)
            score_blocks(live, data, len(live.shape.depths), n=count, after=widths, report=report).save(path)

    jobs.start(key, work, f"Scoring {order}", long=True, again=True)


def _draw_making(model: OpenModel, digest: str) -> None:
    """Draw the form for the record, its progress, and the first step on a few images."""
    if not model.can_measure or not digest:
        needs = model.task.wanted if model.has_weights and digest else "a model with weights"
        st.caption(f"Scoring half-blocks needs {needs}.")
        return
    job, first = jobs.find(_key(model, "all")), jobs.find(_key(model, "first"))
    progress.show(job)
    preview: BlockRemovals | None = jobs.result_of(first)
    if preview is not None:
        st.caption(f"A preview: the first step alone, on {preview.images} {model.task.batch_items}.")
        charts.show(draw_half_blocks(preview, preview.shape.depth, charts.theme()), "half-blocks-first")
    elif job is None or not job.active:
        progress.show(first)
    if job is None or not job.active:
        _form(model, digest)


def _draw_again(model: OpenModel, digest: str, record: BlockRemovals) -> None:
    if not model.can_measure:
        return
    job = jobs.find(_key(model, "all"))
    if job is not None and job.active:
        progress.show(job)
        return
    label = f"Scored on {record.images:,} {model.task.batch_items}. Score again…"
    with st.popover(label, icon=":material/calculate:"):
        progress.show(job)
        _form(model, digest)


def _form(model: OpenModel, digest: str) -> None:
    with st.form("score-blocks", border=False):
        images = st.number_input(f"Number of {model.task.batch_items}", 8, 100_000, 500, step=100)
        if st.form_submit_button("Score half-blocks", type="primary"):
            start_scoring(model, digest, int(images))
            st.rerun()


def _key(model: OpenModel, part: Literal["first", "all"]) -> str:
    return f"half-blocks {part} {model.data_key}"


def start_scoring(model: OpenModel, digest: str, count: int) -> None:
    """Score the first step on a few images; beside it all steps, whose record grows on disk step by step."""
    path = block_removals.records().path_of_model(digest)

    def first(report: jobs.Report) -> BlockRemovals:
        from upvit_core.pruning.depth import score_blocks

        live, data = model.weights(), model.images("train")
        few = min(PREVIEW_IMAGES, len(data))
        return score_blocks(live, data, live.shape.depth - 1, n=few, report=report)

    def every(report: jobs.Report) -> None:
        from upvit_core.pruning.depth import score_blocks

        live, data = model.weights(), model.images("train")
        journal, n = path.with_suffix(f".{count}.partial.jsonl"), min(count, len(data))
        score_blocks(live, data, len(live.shape.depths), n=n, journal=journal, report=report).save(path)
        journal.unlink(missing_ok=True)

    jobs.start(_key(model, "first"), first, "The first step on a few images", again=True)
    jobs.start(_key(model, "all"), every, "Scoring half-blocks", long=True, again=True)
