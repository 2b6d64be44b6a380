"""Fewer blocks: the model as its half-blocks, what each pair of neighbours is worth, and how many blocks stay."""

from __future__ import annotations

from dataclasses import replace

import streamlit as st

from pages.services import block_removals, evaluation, jobs, open_model
from pages.services.open_model import OpenModel
from pages.widgets import charts, progress
from upvit_core.figures.blocks import depth_curve, half_blocks
from upvit_core.planning.what_if import Order, WhatIf
from upvit_core.records.block_removals import BlockRemovals
from upvit_core.records.plan import PruningPlan
from upvit_core.records.scores import ImportanceScores
from upvit_core.records.task import task_of

PREVIEW_IMAGES = 32
ORDERS: dict[Order, str] = {
    "together": "channels and half-blocks are both scored on the whole model",
    "depth first": "the channels are scored in the model that has its fewer blocks already",
    "width first": "the half-blocks are scored in the model that is thin already",
}
WHAT = (
    "Attention (A) and FFN (F) of every block alternate, so any two neighbours can go and the rest still fits "
    "together. Where an A is left with the F of a later block, they make a **hybrid block**, an ordinary block once it "
    "is renumbered. Each step removes the pair without which the answers change least, and scores what is left again."
)


def panel(model: OpenModel, scores: ImportanceScores, now: WhatIf) -> None:
    """Chart, slider and curve, or the way to make the scores; in an expander under the strips."""
    digest = scores.model_digest or model.digest
    record = block_removals.records().of_model(digest)
    with st.expander(
        "Fewer blocks", icon=":material/layers:", expanded=now.depth is not None, key="fewer-blocks", on_change="rerun"
    ) as box:
        shut = not box.open and now.depth is None
        if not shut:
            st.markdown(WHAT)
        if record is None:
            if not shut:
                _make(model, digest)
            return
        whole = record.shape.depth
        if now.depth is None:
            st.session_state["depth"] = whole  # or the slider would go back to what the link or the browser has
        # Drawn when shut too: a slider that is new on the page does not tell the link where it stands.
        depth = st.slider(
            "Blocks that stay", record.least_depth, whole, value=whole, key="depth", bind="query-params",
            help="Replays the removals in the order in which they were found; sizes, costs and accuracy follow.",
        )  # fmt: skip
        if shut:
            return
        charts.show(half_blocks(record, depth, charts.theme()), "half-blocks")
        charts.show(depth_curve(record, depth, charts.theme()), "depth-curve")
        _order(model, scores, record, replace(now, depth=depth if depth < whole else None))
        st.html('<p class="quiet">KL of the whole-width model without these blocks, before any training.</p>')
        _again(model, digest, record)


def _order(model: OpenModel, scores: ImportanceScores, record: BlockRemovals, now: WhatIf) -> None:
    """Which of the two cuts is scored first, and the scoring that this needs."""
    st.session_state.setdefault("order-of-cuts", now.order)
    order: Order = st.segmented_control(
        "Order of the cuts", list(ORDERS), format_func=lambda name: name.capitalize(), required=True, wrap=True,
        key="order-of-cuts", bind="query-params", disabled=now.depth is None or now.basis != "channels",
        help=" ".join(f"{name.capitalize()}: {what}." for name, what in ORDERS.items()),
    )  # fmt: skip
    if now.depth is None or now.basis != "channels" or order == "together":
        return
    widths = replace(now, depth=None).plan(scores)
    known = (
        block_removals.records().at_depth(record, now.depth)
        if order == "depth first"
        else block_removals.records().after_widths(widths)
    )
    if known is not None:
        st.caption(f"{order.capitalize()}: {ORDERS[order]}, on {known.images:,} {task_of(model.shape).batch_items}.")
        return
    spec = evaluation.image_spec(model)
    key = f"{order} {open_model.identity(model)} {spec} {widths.digest if order == 'width first' else now.depth}"
    job = jobs.find(key)
    if job is not None and job.active:
        progress.progress(job)
        return
    if job is not None and job.state == "failed":
        st.error(job.error)
    st.caption(f"{order.capitalize()} means: {ORDERS[order]}. That is not scored yet; until then both are together.")
    if st.button("Score it", key="score-order", disabled=not (model.has_weights and spec)):
        _score_in_order(model, spec, order, record, now.depth, widths, key)
        st.rerun()


def _score_in_order(
    model: OpenModel, spec: str, order: str, record: BlockRemovals, depth: int, widths: PruningPlan, key: str
) -> None:
    def work(report: jobs.Report) -> str:
        from upvit_core.importance.score import score
        from upvit_core.pruning.depth import at_depth, score_blocks

        live, data = open_model.live(model), evaluation.images(model, spec, "train")
        count = min(record.images, len(data))
        if order == "depth first":
            path = block_removals.records().path_at_depth(record, depth)
            score(at_depth(live, record, depth), data, "fisher", n=count, report=report).save(path)
        else:
            path = block_removals.records().path_after_widths(widths)
            score_blocks(live, data, len(live.shape.depths), n=count, after=widths, report=report).save(path)
        return str(path)

    jobs.start(key, work, f"Scoring {order}", long=True, again=True)


def _make(model: OpenModel, digest: str) -> None:
    spec = evaluation.image_spec(model)
    if not model.has_weights or not spec or not digest:
        needs = task_of(model.shape).wanted if model.has_weights and digest else "a model with weights"
        st.caption(f"Scoring half-blocks needs {needs}.")
        return
    job, first = (jobs.find(_key(model, spec, kind)) for kind in ("all", "first"))
    if job is not None and job.active:
        progress.progress(job)
    elif job is not None and job.state == "failed":
        st.error(job.error)
    if first is not None and first.state == "done":
        st.caption(f"A fast look: the first step alone, on {first.result.images} {task_of(model.shape).batch_items}.")
        charts.show(half_blocks(first.result, first.result.shape.depth, charts.theme()), "half-blocks-first")
    elif first is not None and first.active and not (job is not None and job.active):
        progress.progress(first)
    if job is None or not job.active:
        _form(model, digest, spec)


def _again(model: OpenModel, digest: str, record: BlockRemovals) -> None:
    spec = evaluation.image_spec(model)
    if model.has_weights and spec:
        job = jobs.find(_key(model, spec, "all"))
        if job is not None and job.active:
            progress.progress(job)
            return
        with st.popover(
            f"Scored on {record.images:,} {task_of(model.shape).batch_items}. Score again…", icon=":material/calculate:"
        ):
            _form(model, digest, spec)


def _form(model: OpenModel, digest: str, spec: str) -> None:
    with st.form("score-blocks", border=False):
        images = st.number_input(f"Number of {task_of(model.shape).batch_items}", 8, 100_000, 500, step=100)
        if st.form_submit_button("Score half-blocks", type="primary"):
            start(model, digest, spec, int(images))
            st.rerun()


def _key(model: OpenModel, spec: str, kind: str) -> str:
    return f"half-blocks {kind} {open_model.identity(model)} {spec}"


def start(model: OpenModel, digest: str, spec: str, count: int) -> None:
    """The first step on a few images at once; beside it all removals, whose record grows step by step on disk."""
    path = block_removals.records().path_of_model(digest)

    def look(report: jobs.Report) -> BlockRemovals:
        from upvit_core.pruning.depth import score_blocks

        live, data = open_model.live(model), evaluation.images(model, spec, "train")
        few = min(PREVIEW_IMAGES, len(data))
        return score_blocks(live, data, live.shape.depth - 1, n=few, report=report)

    def work(report: jobs.Report) -> str:
        from upvit_core.pruning.depth import score_blocks

        live, data = open_model.live(model), evaluation.images(model, spec, "train")
        journal = path.with_suffix(f".{count}.partial.jsonl")
        record = score_blocks(
            live, data, len(live.shape.depths), n=min(count, len(data)), journal=journal, report=report
        )
        record.save(path)
        journal.unlink(missing_ok=True)
        return str(path)

    jobs.start(_key(model, spec, "first"), look, "The first step on a few images", again=True)
    jobs.start(_key(model, spec, "all"), work, "Scoring half-blocks", long=True, again=True)
