"""The second row of numbers: what scores predict, time, memory, and what stock timm's shapes would cost."""

from __future__ import annotations

from dataclasses import replace

import streamlit as st

from pages.services import block_removals, device, folders, jobs
from pages.services.open_model import OpenModel
from pages.widgets import progress
from pages.widgets.cards import ESTIMATED, Card, cards
from upvit_core import units
from upvit_core.errors import PlanError, UPViTError
from upvit_core.planning.budget import Budget, best_plan
from upvit_core.planning.curves import predicted_loss
from upvit_core.planning.what_if import WhatIf
from upvit_core.profiling.macs import count_macs, count_parameters
from upvit_core.profiling.memory import estimate_memory
from upvit_core.records.plan import PruningPlan
from upvit_core.records.scores import ImportanceScores
from upvit_core.records.task import task_of
from upvit_core.runs.forecast import Forecast, Outcome, forecast, kinds, outcomes
from upvit_core.runs.store import RunStore

AT_ONCE = 2000  # residual channels times depth of a model up to which the solver answers while the page waits
REST_SECONDS = 0.3  # how long sliders have to rest before a larger model is asked


def row(
    model: OpenModel, scores: ImportanceScores | None, plan: PruningPlan, now: WhatIf, accuracy: jobs.Job | None = None
) -> None:
    """Four small cards, and a line where widths were rounded; `accuracy` is the job that measures this plan."""
    stock = stock_job(scores, plan, now)

    def draw() -> None:
        predicted = predicted_card(scores, plan, None if now.repair else accuracy)
        cards([predicted, latency_card(model, plan), memory_card(model, plan), stock_card(plan, stock)])

    with st.container(key="facts"):
        progress.redraw_when_done([stock], draw)
    if now.round_to > 1 and scores is not None:
        st.html(f'<p class="quiet">{rounding(model, scores, plan, now)}</p>')


def in_nats(scores: ImportanceScores | None) -> bool:
    return scores is not None and scores.unit.startswith("nats")


def predicted_card(scores: ImportanceScores | None, plan: PruningPlan, accuracy: jobs.Job | None) -> Card:
    """What scores predict; beside it, once measured before any repair, how far off the sum was."""
    name = "KL after the cut"
    if scores is None or not in_nats(scores):
        return Card(name, "—", "needs scores in nats: make them on Importance")
    if plan.shape_after.depth < plan.shape_before.depth:
        return Card(name, "—", f"not predicted with fewer blocks; measured beside {task_of(plan.shape_before).name}")
    predicted = predicted_loss(scores, plan)
    note = f"{task_of(plan.shape_before).nats}: single removals, added up"
    if accuracy is not None and accuracy.state == "done" and accuracy.result.kl and predicted > 0:
        note += f"; measured {accuracy.result.kl:.2g}, {units.times(accuracy.result.kl / predicted)} that"
    return Card(name, f"{predicted:.3g}", note, ESTIMATED)


def latency_card(model: OpenModel, plan: PruningPlan) -> Card:
    batch = device.batch_of(model)
    name = f"Time, batch {batch}"
    known = device.calibration(model.shape)
    before, after = (device.milliseconds(shape, batch) for shape in (plan.shape_before, plan.shape_after))
    if known is None or before is None or after is None:
        return Card(name, "—", "not calibrated")
    speed = f"{units.short(1e3 * batch / after, 0)} {task_of(plan.shape_before).batch_items}/s"
    note = f"of {units.figure(before)} ms; {speed}; {device.error_words(known)}"
    return Card(name, f"{units.figure(after)} ms", note, ESTIMATED)


def memory_card(model: OpenModel, plan: PruningPlan) -> Card:
    batch = device.batch_of(model)
    before, after = (estimate_memory(shape, batch) for shape in (plan.shape_before, plan.shape_after))
    parts = f"weights {size(after.weights)} + activations at most {size(after.activations)}"
    return Card("Memory", size(after.total), f"batch {batch}: {parts}; was {size(before.total)}", ESTIMATED)


def size(count: int) -> str:
    """`3.9 MiB`."""
    for unit, scale in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= scale:
            number = count / scale
            return f"{number:,.0f} {unit}" if number >= 100 else f"{number:.3g} {unit}"
    return f"{count} B"


def stock_job(scores: ImportanceScores | None, plan: PruningPlan, now: WhatIf) -> jobs.Job | None:
    """What the best shape of stock timm loses more than the best of all, at the MACs of this plan."""
    shallow = plan.shape_after.depth < plan.shape_before.depth
    if scores is None or not in_nats(scores) or scores.criterion == "none" or plan.shape_before.one_share or shallow:
        return None
    shape = plan.shape_after
    key = f"stock {scores.digest} {count_macs(shape)} {now.heads} {now.round_to} {plan.basis}"
    if (before := st.session_state.get("stock-job", key)) != key:
        jobs.cancel(before)  # the sliders have moved on; nobody waits for that answer
    st.session_state["stock-job"] = key
    found = jobs.find(key)
    if found is None and model_size(plan) <= AT_ONCE:
        return jobs.submit_done(key, "Comparing with stock timm", compatibility(scores, plan, now))
    if found is not None and found.state != "cancelled":
        return found

    def work(report: jobs.Report) -> tuple[float, float] | None:
        report.rest(REST_SECONDS)
        return compatibility(scores, plan, now)

    return jobs.start(key, work, "Comparing with stock timm")


def model_size(plan: PruningPlan) -> int:
    return plan.shape_before.embed_dim * plan.shape_before.depth


def stock_words(scores: ImportanceScores, plan: PruningPlan, now: WhatIf | None) -> str:
    """`opens it; such a shape costs 0.14 nats more`: the cost where it is known, or found at once."""
    told = "opens it" if plan.shape_after.is_uniform else "cannot open it"
    if now is None or not in_nats(scores) or plan.shape_before.one_share or now.depth is not None:
        return told
    key = f"stock {scores.digest} {count_macs(plan.shape_after)} {now.heads} {now.round_to} {plan.basis}"
    job = jobs.find(key)
    if job is None and model_size(plan) <= AT_ONCE:
        job = jobs.submit_done(key, "Comparing with stock timm", compatibility(scores, plan, now))
    if job is None or job.state != "done" or job.result is None:
        return told
    stock, best = job.result
    return f"{told}; its best shape costs {max(stock - best, 0):.2g} {task_of(plan.shape_before).nats} more"


def compatibility(scores: ImportanceScores, plan: PruningPlan, now: WhatIf) -> tuple[float, float] | None:
    """Predicted KL of the best stock shape and of the best of all within this plan's MACs; None where none fits."""
    budget = Budget(macs=count_macs(plan.shape_after))
    choices = {"heads": now.heads, "round_to": now.round_to, "basis": plan.basis}
    try:
        stock = best_plan(scores, budget, family="stock", **choices)  # type: ignore[arg-type]
        return stock.predicted, best_plan(scores, budget, **choices).predicted  # type: ignore[arg-type]
    except PlanError:
        return None


def stock_card(plan: PruningPlan, job: jobs.Job | None) -> Card:
    opens, name = plan.shape_after.is_uniform, f"Stock {plan.shape_after.library}"
    value = "opens it" if opens else "cannot"
    if job is None:
        return Card(name, value, "equal blocks, attention as wide as the residual" if opens else WHY_NOT)
    if job.state != "done":
        return Card(name, value, "what such a shape costs: being computed", stale=job.active)
    if job.result is None:
        return Card(name, value, "no stock shape has so few MACs")
    stock, best = job.result
    note = f"at these MACs its best shape costs {max(stock - best, 0):.2g} nats more ({stock:.2g}, not {best:.2g})"
    return Card(name, value, note, ESTIMATED)


WHY_NOT = "it wants equal blocks, attention as wide as the residual; this studio opens it"


def rounding(model: OpenModel, scores: ImportanceScores, plan: PruningPlan, now: WhatIf) -> str:
    """What multiples of 8 or 16 change, against widths as the ratios say."""
    if now.widths:
        return f"Every width is a multiple of {now.round_to} where the heads allow it."
    free = replace(now, round_to=1).plan(scores, block_removals.records())
    sizes = [units.short(count_parameters(p.shape_after)) for p in (free, plan)]
    told = [f"parameters {sizes[0]} → {sizes[1]}"]
    if in_nats(scores):
        told.append(f"predicted KL {predicted_loss(scores, free):.3g} → {predicted_loss(scores, plan):.3g} nats")
    known, batch = device.calibration(model.shape), device.batch_of(model)
    if known is not None:
        times = [units.figure(device.milliseconds(p.shape_after, batch)) for p in (free, plan)]
        told.append(f"time {times[0]} → {times[1]} ms (estimated, {device.error_words(known)})")
    return f"What multiples of {now.round_to} change: {'; '.join(told)}."


def forecast_of(model: OpenModel, spec: str, accuracy: jobs.Job | None) -> Forecast | None:
    """For the plan under the sliders, once its KL is measured, as in the commonest kind of run that suffices."""
    if accuracy is None or accuracy.state != "done" or not accuracy.result.kl or not folders.runs().is_dir():
        return None
    for epochs, known in _known(model.model, spec, _stamp()):
        found = forecast(known, accuracy.result.kl, epochs)
        if found is not None:
            return found
    return None


def line(model: OpenModel, spec: str, accuracy: jobs.Job | None) -> None:
    found = forecast_of(model, spec, accuracy)
    if found is not None:
        st.html(
            f'<p class="quiet">○ After {found.epochs} epochs of distillation: <b>{found.low:.1f} – {found.high:.1f} '
            f"%</b> top-1, forecast (80 % band) from {found.runs} finished runs of this model by one recipe in this "
            "studio.</p>"
        )


def _stamp() -> float:
    """Changes when a run ends or begins."""
    times = [entry.stat().st_mtime for entry in folders.runs().iterdir() if entry.is_dir()]
    return max(times, default=0.0) + len(times)


@st.cache_data(max_entries=8, show_spinner=False, ttl=60)
def _known(teacher: str, data: str, stamp: float) -> list[tuple[int, list[Outcome]]]:
    """Finished runs by their number of epochs and their recipe, the commonest first."""
    store = RunStore(folders.runs())
    try:
        return [(kind[0], outcomes(store, teacher, data, *kind)) for kind in kinds(store, teacher, data)]
    except (UPViTError, OSError):
        return []
