"""Trade-off: move four sliders, see at once what stays, what it costs, and what it is expected to lose."""

from dataclasses import dataclass

import streamlit as st

from pages.shared import (
    actions,
    after,
    best_under,
    blocks_table,
    charts,
    depth,
    device,
    facts,
    frame,
    history,
    jobs,
    knobs,
    measured,
    plan_commands,
    plans,
    presenter,
    reports,
    scoring,
    the_front,
    versus,
    whatif,
    words,
)
from pages.shared.cards import ESTIMATED, MEASURED, Card, cards
from pages.shared.opened import Opened, no_scores
from pages.shared.whatif import WhatIf
from upvit_core.figures.heatmaps import strips
from upvit_core.figures.merging import merging
from upvit_core.importance.scores import ImportanceScores
from upvit_core.models.judge import judge_of
from upvit_core.planning.curves import predicted_loss
from upvit_core.planning.plan import PruningPlan
from upvit_core.profiling.macs import count_macs, count_parameters


def speed_card(model: Opened, plan: PruningPlan, job: jobs.Job | None) -> Card:
    if job is not None and job.state == "done":
        result = job.result
        first, second = result.first, result.second
        note = (
            f"{second.images_per_s:,.0f} against {first.images_per_s:,.0f} {judge_of(model.shape).items}/s, ± "
            f"{(result.high - result.low) / 2:.2f}×; "
            f"{second.device}, batch {second.batch_size}, {second.dtype}"
        )
        return Card("Speed-up", words.times(result.ratio), note, MEASURED)
    known, batch = device.calibration(model.shape), device.batch_of(model)
    before, after = (device.milliseconds(shape, batch) for shape in (plan.shape_before, plan.shape_after))
    if known is None or before is None or after is None:
        return Card("Speed-up", "—", "not calibrated; MACs do not tell it. Calibrate or measure")
    note = f"{device.error_words(known)}, {known.device}, batch {batch}, {known.dtype}"
    return Card("Speed-up", words.times(before / after), note, ESTIMATED)


def quality_card(model: Opened, spec: str, job: jobs.Job | None, unmended: jobs.Job | None) -> Card:
    """Top-1 of the plan, or perplexity; where it is repaired, also what it was before."""
    judge = judge_of(model.shape)
    name = f"{judge.name} now"
    if job is not None and job.state == "done":
        result = job.result
        before = ""
        if unmended and unmended.state == "done":
            was = unmended.result
            before = f"before repair {judge.told(judge.value(was))}, KL {was.kl:.2g}; "
        note = (
            f"{before}{result.images:,} {judge.samples}, {judge.range_told(result)}; KL {result.kl:.2g} {judge.nats}; "
            "no training"
        )
        value = judge.told(judge.value(result))
        st.session_state["last-quality"] = (model.source, value)
        return Card(name, value, note, MEASURED)
    if not model.has_weights:
        return Card(name, "—", "needs weights")
    if not spec:
        return Card(name, "—", f"needs {judge.wanted}")
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


def numbers(model: Opened, plan: PruningPlan, spec: str, found: Measured) -> None:
    """Four cards; while one is being measured they are brought up to date by themselves, in place."""
    before, after = model.shape, plan.shape_after
    params, macs = count_parameters(after), count_macs(after)
    stock = f"; stock {after.library} opens it" if after.is_uniform else ""

    def draw() -> None:
        cards(
            [
                Card(
                    "Parameters",
                    words.short(params),
                    f"{words.times(count_parameters(before) / params)} smaller{stock}",
                ),
                Card(
                    f"MACs, one {judge_of(model.shape).item}",
                    words.short(macs),
                    f"{words.times(count_macs(before) / macs)} fewer",
                ),
                speed_card(model, plan, found.speed),
                quality_card(model, spec, found.accuracy, found.unmended),
            ]
        )

    jobs.follow(found.all, draw)


def measure_button(model: Opened, plan: PruningPlan, spec: str, now: WhatIf) -> None:
    """Measure on request; in its place the progress, so that nothing moves."""
    running = [jobs.find(measured.throughput_key(plan))]
    if model.has_weights and spec and count_macs(model.shape) > plans.AUTOMATIC_MACS:
        running.append(jobs.find(measured.preview_key(model, plan, spec, repair=now.repair)))
    active = [job for job in running if job is not None and job.active]
    with st.container(key="slot-measure"):
        if active:
            jobs.progress(active[0])
        elif st.button(
            "Measure", icon=":material/speed:", width="stretch", key="measure",
            help="Throughput of the original and of this plan on this device, in turns: 20 s at most; for a large "
            f"model, {judge_of(model.shape).name.lower()} too.",
        ):  # fmt: skip
            measured.throughput(model, plan, again=True)
            if model.has_weights and spec:
                measured.preview(model, plan, spec, repair=now.repair)
            st.rerun()


def measure(model: Opened, plan: PruningPlan, spec: str, now: WhatIf) -> Measured:
    """The jobs of this plan: accuracy (by itself where the model is small), throughput (when asked for)."""
    accuracy = unmended = None
    if model.has_weights and spec:
        wanted = {False, now.repair}
        keys = {repair: measured.preview_key(model, plan, spec, repair=repair) for repair in wanted}
        for before in st.session_state.get("previews", ()):
            if before not in keys.values():
                jobs.cancel(before)
        st.session_state["previews"] = tuple(keys.values())
        small = count_macs(model.shape) <= plans.AUTOMATIC_MACS
        previews = {}
        for repair in sorted(wanted):
            found = jobs.find(keys[repair])
            failed = found is not None and found.state == "failed"
            previews[repair] = found if failed or not small else measured.preview(model, plan, spec, repair=repair)
        accuracy = previews[now.repair]
        unmended = previews[False] if now.repair else None
    return Measured(accuracy, unmended, jobs.find(measured.throughput_key(plan)))


def speed_up(model: Opened, plan: PruningPlan) -> float:
    """Estimated for the batch size that is set; 0 where this device is not calibrated."""
    batch = device.batch_of(model)
    before, after = (device.milliseconds(shape, batch) for shape in (plan.shape_before, plan.shape_after))
    return before / after if before and after else 0.0


def remember(model: Opened, scores: ImportanceScores, now: WhatIf, plan: PruningPlan, found: Measured) -> None:
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
        judge = judge_of(model.shape)
        low, high = judge.interval(result)
        values |= {"value": judge.value(result), "low": low, "high": high, "kl": result.kl, "images": result.images}
    if found.speed is not None and found.speed.state == "done":
        values |= {"speed_up": found.speed.result.ratio, "speed_measured": True}
    plans.note(model, scores, plans.Tried(**values))


def the_heads(scores: ImportanceScores, plan: PruningPlan) -> None:
    together = len(whatif.head_options(scores.shape)) > 1
    st.subheader("Heads that flow together" if together else "What stays of each head", anchor=False)
    block = st.slider("Block", 0, scores.shape.depth - 1, 0, key="merge-block") if scores.shape.depth > 1 else 0
    charts.show(merging(scores, plan, block, charts.theme(), height=430), "head-flow")
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
    spec = measured.image_spec(model)
    if "move-to" in st.session_state:
        whatif.set_to(st.session_state.pop("move-to"))
    left, right = st.columns([0.25, 0.75], gap="medium")
    with left:
        knobs.preset_picker(model.shape)
        with presenter.folded("How"):
            knobs.way_controls(model.shape, model.has_weights and bool(spec))
            if not model.shape.one_share:
                blocks_table.spread_controls(model.shape, scores)
        now = knobs.controls(model.shape)
        shown, finding = scoring.planning(model, scores, now, spec)
        plan = now.plan(shown or scores or no_scores(model.shape))
        waiting = finding is not None and finding.active
        found = Measured(finding, None, None) if waiting else measure(model, plan, spec, now)
    with right:
        numbers(model, plan, spec, found)
        facts.row(model, shown, plan, now, found.accuracy)
        after.line(model, spec, found.accuracy)
        best_under.answer(model, shown or scores, plan)
        for job in (*found.all, finding):
            if job is not None and job.state == "failed":
                st.error(job.error)
        if shown is not None:
            charts.show(strips(shown, plan, charts.theme()), "strips")
    with left:  # after the pictures, which a slider's move should change first
        history.buttons(model.source, now)
        with presenter.folded("More"):
            device.panel(model)
            best_under.panel(model, shown or scores, now, plan)
            measure_button(model, plan, spec, now)
            actions.prune_button(model, plan, now)
            actions.distil_button(model, scores, now)
            plan_commands.command_button(model, shown or scores, now, plan)
            reports.plan_button(model, shown or scores, now, plan, found.accuracy, found.speed)
    with right:
        if shown is not None:
            if not model.shape.one_share and now.depth is None:
                with st.expander(
                    "Block by block", icon=":material/table_rows:", expanded=bool(now.widths), key="block-by-block",
                    on_change="rerun",
                ) as box:  # fmt: skip
                    if box.open:
                        blocks_table.table(plan, now)
        elif finding is not None and finding.active:
            with st.container(height=560, border=False):
                jobs.progress(finding)
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
            small = count_macs(model.shape) <= plans.AUTOMATIC_MACS
            the_front.section(model, shown, now, spec, after.forecast_of(model, spec, found.accuracy), small=small)
        with narrow:
            the_heads(shown, plan)
        versus.panel(model, shown, now, plan, spec)
