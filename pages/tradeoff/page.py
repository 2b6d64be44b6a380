"""Trade-off: move four sliders, see at once what stays, what it costs, and what it is expected to lose."""

from dataclasses import dataclass

import streamlit as st

from pages.services import block_removals, device, evaluation, jobs, reports, scoring, slider_state
from pages.services.open_model import OpenModel, no_scores
from pages.tradeoff import (
    blocks,
    budget,
    compare,
    depth,
    device_panel,
    distill,
    estimates,
    pareto,
    prune,
    tried_plans,
    undo,
)
from pages.widgets import charts, frame, presenter, progress, sliders
from pages.widgets.cards import ESTIMATED, MEASURED, Card, cards
from upvit_core import units
from upvit_core.figures.head_merging import draw_head_merging
from upvit_core.figures.heatmaps import strips
from upvit_core.planning.curves import predicted_loss
from upvit_core.planning.what_if import WhatIf, head_options
from upvit_core.profiling.macs import count_macs, count_parameters
from upvit_core.records.plan import PruningPlan
from upvit_core.records.scores import ImportanceScores
from upvit_core.records.task import task_of


def speed_card(model: OpenModel, plan: PruningPlan, job: jobs.Job | None) -> Card:
    if job is not None and job.state == "done":
        result = job.result
        first, second = result.first, result.second
        note = (
            f"{second.images_per_s:,.0f} against {first.images_per_s:,.0f} {task_of(model.shape).batch_items}/s, ± "
            f"{(result.high - result.low) / 2:.2f}×; "
            f"{second.device}, batch {second.batch_size}, {second.dtype}"
        )
        return Card("Speed-up", units.times(result.ratio), note, MEASURED)
    known, batch = device.calibration(model.shape), device.batch_of(model)
    before, after = (device.milliseconds(shape, batch) for shape in (plan.shape_before, plan.shape_after))
    if known is None or before is None or after is None:
        return Card("Speed-up", "—", "not calibrated; MACs do not tell it. Calibrate or measure")
    note = f"{device.error_words(known)}, {known.device}, batch {batch}, {known.dtype}"
    return Card("Speed-up", units.times(before / after), note, ESTIMATED)


def quality_card(model: OpenModel, spec: str, job: jobs.Job | None, unmended: jobs.Job | None) -> Card:
    """Top-1 of the plan, or perplexity; where it is repaired, also what it was before."""
    task = task_of(model.shape)
    name = f"{task.name} now"
    if job is not None and job.state == "done":
        result = job.result
        before = ""
        if unmended and unmended.state == "done":
            was = unmended.result
            before = f"before repair {task.format(task.value(was))}, KL {was.kl:.2g}; "
        note = (
            f"{before}{result.images:,} {task.samples}, {task.format_interval(result)}; "
            f"KL {result.kl:.2g} {task.nats}; no training"
        )
        value = task.format(task.value(result))
        st.session_state["last-quality"] = (model.source, value)
        return Card(name, value, note, MEASURED)
    if not model.has_weights:
        return Card(name, "—", "needs weights")
    if not spec:
        return Card(name, "—", f"needs {task.wanted}")
    source, value = st.session_state.get("last-quality", ("", "—"))
    if job is not None and job.active:
        far = job.detail or "waiting for its turn"
        return Card(name, value if source == model.source else "—", f"being measured: {far}", stale=True)
    return Card(name, "—", "press Measure")


@dataclass(frozen=True)
class Measured:
    """Jobs of the plan under the sliders; `unmended` is of the same plan before repair."""

    accuracy: jobs.Job | None
    unmended: jobs.Job | None
    speed: jobs.Job | None

    @property
    def all(self) -> tuple[jobs.Job | None, ...]:
        return self.accuracy, self.unmended, self.speed


def numbers(model: OpenModel, plan: PruningPlan, spec: str, found: Measured) -> None:
    """Four cards; while one is being measured they are brought up to date by themselves, in place."""
    before, after = model.shape, plan.shape_after
    params, macs = count_parameters(after), count_macs(after)
    stock = f"; stock {after.library} opens it" if after.is_uniform else ""

    def draw() -> None:
        cards(
            [
                Card(
                    "Parameters",
                    units.short(params),
                    f"{units.times(count_parameters(before) / params)} smaller{stock}",
                ),
                Card(
                    f"MACs, one {task_of(model.shape).batch_item}",
                    units.short(macs),
                    f"{units.times(count_macs(before) / macs)} fewer",
                ),
                speed_card(model, plan, found.speed),
                quality_card(model, spec, found.accuracy, found.unmended),
            ]
        )

    progress.redraw_when_done(found.all, draw)


def measure_button(model: OpenModel, plan: PruningPlan, spec: str, now: WhatIf) -> None:
    """Measure on request; in its place the progress, so that nothing moves."""
    running = [jobs.find(evaluation.throughput_key(plan))]
    if model.has_weights and spec and count_macs(model.shape) > evaluation.AUTOMATIC_MACS:
        running.append(jobs.find(evaluation.preview_key(model, plan, spec, repair=now.repair)))
    active = [job for job in running if job is not None and job.active]
    with st.container(key="slot-measure"):
        if active:
            progress.progress(active[0])
        elif st.button(
            "Measure", icon=":material/speed:", width="stretch", key="measure",
            help="Throughput of the original and of this plan on this device, in turns: 20 s at most; for a large "
            f"model, {task_of(model.shape).name.lower()} too.",
        ):  # fmt: skip
            evaluation.throughput(model, plan, again=True)
            if model.has_weights and spec:
                evaluation.preview(model, plan, spec, repair=now.repair)
            st.rerun()


def measure(model: OpenModel, plan: PruningPlan, spec: str, now: WhatIf) -> Measured:
    """The jobs of this plan: accuracy (by itself where the model is small), throughput (when asked for)."""
    accuracy = unmended = None
    if model.has_weights and spec:
        wanted = {False, now.repair}
        keys = {repair: evaluation.preview_key(model, plan, spec, repair=repair) for repair in wanted}
        for before in st.session_state.get("previews", ()):
            if before not in keys.values():
                jobs.cancel(before)
        st.session_state["previews"] = tuple(keys.values())
        small = count_macs(model.shape) <= evaluation.AUTOMATIC_MACS
        previews = {}
        for repair in sorted(wanted):
            found = jobs.find(keys[repair])
            failed = found is not None and found.state == "failed"
            previews[repair] = found if failed or not small else evaluation.preview(model, plan, spec, repair=repair)
        accuracy = previews[now.repair]
        unmended = previews[False] if now.repair else None
    return Measured(accuracy, unmended, jobs.find(evaluation.throughput_key(plan)))


def speed_up(model: OpenModel, plan: PruningPlan) -> float:
    """Estimated for the batch size that is set; 0 where this device is not calibrated."""
    batch = device.batch_of(model)
    before, after = (device.milliseconds(shape, batch) for shape in (plan.shape_before, plan.shape_after))
    return before / after if before and after else 0.0


def remember(model: OpenModel, scores: ImportanceScores, now: WhatIf, plan: PruningPlan, found: Measured) -> None:
    """Put this plan on the front, with what has been measured of it."""
    values = {
        "what_if": now,
        "params": count_parameters(plan.shape_after),
        "macs": count_macs(plan.shape_after),
        "removed": predicted_loss(scores, plan),
        "speed_up": speed_up(model, plan),
    }
    if found.accuracy is not None and found.accuracy.state == "done":
        result = found.accuracy.result
        task = task_of(model.shape)
        low, high = task.interval(result)
        values |= {"value": task.value(result), "low": low, "high": high, "kl": result.kl, "images": result.images}
    if found.speed is not None and found.speed.state == "done":
        values |= {"speed_up": found.speed.result.ratio, "speed_measured": True}
    tried_plans.record(model, scores, tried_plans.TriedPlan(**values))


def the_heads(scores: ImportanceScores, plan: PruningPlan) -> None:
    together = len(head_options(scores.shape)) > 1
    st.subheader("Heads that flow together" if together else "What stays of each head", anchor=False)
    block = st.slider("Block", 0, scores.shape.depth - 1, 0, key="merge-block") if scores.shape.depth > 1 else 0
    charts.show(draw_head_merging(scores, plan, block, charts.theme(), height=430), "head-flow")
    if plan.basis == "directions" and plan.heads_of(block) not in (None, scores.shape.blocks[block].num_heads):
        st.caption("By directions the cut joins the heads that attend most alike; here neighbours stand for them.")


with frame.page(
    "Trade-off",
    "Choose how much to remove; size, speed and what stays follow at once.",
    "Parameters and MACs are counted exactly. MACs: multiply-accumulates of the forward pass of one image (or block of "
    "text), attention's QKᵀ and AV "
    "included.",
):
    model = frame.current()
    scores = scoring.current(model)
    spec = evaluation.image_spec(model)
    if "move-to" in st.session_state:
        slider_state.set_to(st.session_state.pop("move-to"))
    left, right = st.columns([0.25, 0.75], gap="medium")
    with left:
        sliders.preset_picker(model.shape)
        with presenter.folded("How"):
            sliders.way_controls(model.shape, model.has_weights and bool(spec))
            if not model.shape.one_share:
                blocks.spread_controls(model.shape, scores)
        now = sliders.controls(model.shape)
        shown, finding = scoring.planning(model, scores, now, spec)
        plan = now.plan(shown or scores or no_scores(model.shape), block_removals.records())
        waiting = finding is not None and finding.active
        found = Measured(finding, None, None) if waiting else measure(model, plan, spec, now)
    with right:
        numbers(model, plan, spec, found)
        estimates.row(model, shown, plan, now, found.accuracy)
        estimates.line(model, spec, found.accuracy)
        budget.answer(model, shown or scores, plan)
        for job in (*found.all, finding):
            if job is not None and job.state == "failed":
                st.error(job.error)
        if shown is not None:
            charts.show(strips(shown, plan, charts.theme()), "strips")
    with left:  # after the pictures, which a slider's move should change first
        undo.buttons(model.source, now)
        with presenter.folded("More"):
            device_panel.panel(model)
            budget.panel(model, shown or scores, now, plan)
            measure_button(model, plan, spec, now)
            prune.prune_button(model, plan, now)
            distill.distil_button(model, scores, now)
            compare.command_button(model, shown or scores, now, plan)
            reports.plan_button(model, shown or scores, now, plan, found.accuracy, found.speed)
    with right:
        if shown is not None:
            if not model.shape.one_share and now.depth is None:
                with st.expander(
                    "Block by block", icon=":material/table_rows:", expanded=bool(now.widths), key="block-by-block",
                    on_change="rerun",
                ) as box:  # fmt: skip
                    if box.open:
                        blocks.table(plan, now)
        elif finding is not None and finding.active:
            with st.container(height=560, border=False):
                progress.progress(finding)
        elif scores is None:
            frame.awaited(
                "Widths and costs follow the sliders already. The pictures of what stays will be here once there are "
                "scores: make them on Importance.",
                icon=":material/grid_on:",
            )
        if scores is not None:
            depth.panel(model, shown or scores, now)
    if shown is not None:
        remember(model, shown, now, plan, found)
        wide, narrow = st.columns([0.56, 0.44], gap="large")
        with wide:
            small = count_macs(model.shape) <= evaluation.AUTOMATIC_MACS
            pareto.section(model, shown, now, spec, estimates.forecast_of(model, spec, found.accuracy), small=small)
        with narrow:
            the_heads(shown, plan)
        compare.panel(model, shown, now, plan, spec)
