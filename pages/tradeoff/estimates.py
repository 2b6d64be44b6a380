"""All numbers about the plan under the sliders: eight cards in two rows, and a line about rounded widths.

The first row counts the plan and shows what has been measured of it, the second the KL where it is known, estimates of
time and memory, and what shapes that the stock library can express would give up.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import streamlit as st

from pages.services import block_removals, device, jobs
from pages.services.maps import Estimate
from pages.services.open_model import OpenModel
from pages.tradeoff.measurements import Measurements
from pages.tradeoff.state import state
from pages.widgets import progress
from pages.widgets.cards import ESTIMATED, MEASURED, Card, cards
from upvit_core import units
from upvit_core.errors import PlanError
from upvit_core.planning.budget import Budget, Family, best_plan
from upvit_core.planning.curves import share_removed, total_score
from upvit_core.planning.what_if import WhatIf
from upvit_core.profiling.macs import count_macs, count_parameters
from upvit_core.profiling.memory import estimate_memory
from upvit_core.records.plan import PruningPlan
from upvit_core.records.scores import ImportanceScores

if TYPE_CHECKING:
    from upvit_core.evaluation import Evaluation
    from upvit_core.profiling.throughput import SpeedUp

MOST_AT_ONCE = 2000  # residual channels times depth of a model up to which the solver answers while the page waits
REST_SECONDS = 0.3  # how long sliders have to rest before a larger model is solved
NOT_STOCK = "it needs equal blocks, attention as wide as the residual; this studio opens it"


def number_cards(
    model: OpenModel,
    scores: ImportanceScores | None,
    plan: PruningPlan,
    now: WhatIf,
    measured: Measurements,
    mapped: Estimate | None,
) -> None:
    """Both rows of cards; while jobs run they are updated by themselves, in place."""
    stock = stock_job(scores, plan, now)

    def measured_row() -> None:
        speed = speed_card(model, plan, jobs.result_of(measured.speed))
        cards([parameters_card(plan), macs_card(model, plan), speed, quality_card(model, measured, mapped)])

    def estimated_row() -> None:
        kl = kl_card(model, scores, plan, jobs.result_of(measured.accuracy), mapped)
        cards([kl, latency_card(model, plan), memory_card(model, plan), stock_card(plan, stock)])

    progress.redraw_when_done(measured.all, measured_row)
    with st.container(key="facts"):
        progress.redraw_when_done([*measured.all, stock], estimated_row)
    if now.round_to > 1 and scores is not None:
        st.html(f'<p class="quiet">{rounding_line(model, scores, plan, now)}</p>')


def parameters_card(plan: PruningPlan) -> Card:
    before, after = plan.shape_before, plan.shape_after
    count = count_parameters(after)
    stock = f"; stock {after.library} opens it" if after.is_uniform else ""
    return Card("Parameters", units.short(count), f"{units.times(count_parameters(before) / count)} smaller{stock}")


def macs_card(model: OpenModel, plan: PruningPlan) -> Card:
    count = count_macs(plan.shape_after)
    note = f"{units.times(count_macs(plan.shape_before) / count)} fewer"
    return Card(f"MACs, one {model.task.batch_item}", units.short(count), note)


def speed_card(model: OpenModel, plan: PruningPlan, measured: SpeedUp | None) -> Card:
    if measured is not None:
        first, second = measured.first, measured.second
        note = (
            f"{second.images_per_s:,.0f} against {first.images_per_s:,.0f} {model.task.batch_items}/s, ± "
            f"{(measured.high - measured.low) / 2:.2f}×; "
            f"{second.device}, batch {second.batch_size}, {second.dtype}"
        )
        return Card("Speed-up", units.times(measured.ratio), note, MEASURED)
    known, times = device.calibration(model.shape), latencies(model, plan)
    if known is None or times is None:
        return Card("Speed-up", "—", "not calibrated; MACs do not tell it. Calibrate or measure")
    note = f"{device.error_words(known)}, {known.device}, batch {device.batch_of(model)}, {known.dtype}"
    return Card("Speed-up", units.times(times[0] / times[1]), note, ESTIMATED)


def quality_card(model: OpenModel, measured: Measurements, mapped: Estimate | None) -> Card:
    """Top-1 or perplexity of the plan, measured or by the map; where it is repaired, also before repair."""
    task, job = model.task, measured.accuracy
    name = f"{task.name} now"
    if (result := jobs.result_of(job)) is not None:
        before = ""
        if (cut := jobs.result_of(measured.unrepaired)) is not None:
            before = f"before repair {task.format(task.value(cut))}, KL {cut.kl:.2g}; "
        note = (
            f"{before}{result.images:,} {task.samples}, {task.format_interval(result)}; "
            f"KL {result.kl:.2g} {task.nats}; no training"
        )
        value = task.format(task.value(result))
        state().last_quality = (model.source, value)
        return Card(name, value, note, MEASURED)
    if not model.can_measure:
        return Card(name, "—", f"needs {task.wanted}" if model.has_weights else "needs weights")
    if mapped is not None:
        low, high = task.format(mapped.value_low), task.format(mapped.value_high)
        note = f"from {mapped.cuts} measured cuts: 80 % band {low} – {high}; no training"
        return Card(name, task.format(mapped.value), note, ESTIMATED)
    if job is not None and job.active:
        source, value = state().last_quality
        step = job.detail or "waiting for its turn"
        return Card(name, value if source == model.source else "—", f"being measured: {step}", stale=True)
    return Card(name, "—", "press Measure")


def kl_card(
    model: OpenModel,
    scores: ImportanceScores | None,
    plan: PruningPlan,
    measured: Evaluation | None,
    mapped: Estimate | None = None,
) -> Card:
    """The KL of this very plan where it was measured, else as the map estimates it.

    Without either, the share of the score that goes, which is no KL.
    """
    name = "KL after the cut"
    if measured is not None and measured.kl is not None:
        low, high = measured.kl_interval or (measured.kl, measured.kl)
        note = f"{model.task.nats}, 95 % interval {low:.2g} – {high:.2g}; {measured.images:,} {model.task.samples}"
        return Card(name, f"{measured.kl:.3g}", note, MEASURED)
    if mapped is not None:
        band = f"{mapped.kl_low:.2g} – {mapped.kl_high:.2g}"
        note = f"{model.task.nats}, from {mapped.cuts} measured cuts: 80 % band {band}"
        return Card(name, f"{mapped.kl:.2g}", note, ESTIMATED)
    wants = "measure the plan" if model.can_measure else f"needs {model.task.data if model.has_weights else 'weights'}"
    removed = removed_words(scores, plan)
    return Card(name, "—", f"not known yet: {wants}{removed and f'. {removed}, which does not tell accuracy'}")


def removed_words(scores: ImportanceScores | None, plan: PruningPlan) -> str:
    """`It removes 23 % of the score`; "" without scores that fit the plan."""
    if scores is None or scores.criterion == "none" or scores.basis != plan.basis:
        return ""
    if plan.shape_after.depth < plan.shape_before.depth:  # scores of channels do not tell what blocks cost
        return ""
    return f"It removes {units.share(share_removed(scores, plan))} of the score"


def latency_card(model: OpenModel, plan: PruningPlan) -> Card:
    batch, known, times = device.batch_of(model), device.calibration(model.shape), latencies(model, plan)
    name = f"Time, batch {batch}"
    if known is None or times is None:
        return Card(name, "—", "not calibrated")
    before, after = times
    speed = f"{units.short(1e3 * batch / after, 0)} {model.task.batch_items}/s"
    note = f"of {units.figure(before)} ms; {speed}; {device.error_words(known)}"
    return Card(name, f"{units.figure(after)} ms", note, ESTIMATED)


def memory_card(model: OpenModel, plan: PruningPlan) -> Card:
    batch = device.batch_of(model)
    before, after = (estimate_memory(shape, batch) for shape in (plan.shape_before, plan.shape_after))
    parts = f"weights {format_bytes(after.weights)} + activations at most {format_bytes(after.activations)}"
    note = f"batch {batch}: {parts}; was {format_bytes(before.total)}"
    return Card("Memory", format_bytes(after.total), note, ESTIMATED)


def stock_card(plan: PruningPlan, job: jobs.Job[StockCost] | None) -> Card:
    """A card that says if the stock library opens the plan, and what the best shape that it opens gives up."""
    opens, name = plan.shape_after.is_uniform, f"Stock {plan.shape_after.library}"
    value = "opens it" if opens else "cannot"
    if job is None:
        return Card(name, value, "equal blocks, attention as wide as the residual" if opens else NOT_STOCK)
    if job.result is None:
        note = job.error or "the cost of such a shape is being computed"
        return Card(name, value, note, stale=job.active)
    if job.result.stock is None:
        return Card(name, value, "no stock shape has so few MACs")
    stock, best = (units.share(part) for part in (job.result.stock, job.result.best))
    note = f"at these MACs its best shape removes {stock} of the score, the best of all {best}"
    return Card(name, value, note)


def latencies(model: OpenModel, plan: PruningPlan) -> tuple[float, float] | None:
    """Estimated time of a batch before and after the cut, ms; None where this device is not calibrated."""
    batch = device.batch_of(model)
    before, after = (device.milliseconds(shape, batch) for shape in (plan.shape_before, plan.shape_after))
    return (before, after) if before and after else None


def format_bytes(count: int) -> str:
    """`3.9 MiB`."""
    for unit, scale in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= scale:
            number = count / scale
            return f"{number:,.0f} {unit}" if number >= 100 else f"{number:.3g} {unit}"
    return f"{count} B"


@dataclass(frozen=True)
class StockCost:
    """Share of the score removed within a plan's MACs by the best stock shape (None: none fits) and the best of all."""

    stock: float | None = None
    best: float = 0.0


def stock_job(scores: ImportanceScores | None, plan: PruningPlan, now: WhatIf) -> jobs.Job[StockCost] | None:
    """The job that compares the best stock shape with the best of all; None where there is nothing to compare."""
    shallow = plan.shape_after.depth < plan.shape_before.depth
    if scores is None or scores.criterion == "none" or plan.shape_before.one_share or shallow:
        return None
    key = _stock_key(scores, plan, now)
    if state().stock_key != key and (job := jobs.find(state().stock_key)) is not None and job.active:
        jobs.discard(job.key)  # the sliders have moved on; nobody waits for that answer
    state().stock_key = key
    if _solves_at_once(plan):
        return _stock_cost_now(scores, plan, now)

    def work(report: jobs.Report) -> StockCost:
        report.debounce(REST_SECONDS)
        return stock_cost(scores, plan, now)

    return jobs.ensure(key, work, "Comparing with stock shapes")


def stock_words(scores: ImportanceScores, plan: PruningPlan, now: WhatIf | None) -> str:
    """`opens it; its best shape removes 31 % of the score, not 24 %`: where it is known, or computed at once."""
    opens = "opens it" if plan.shape_after.is_uniform else "cannot open it"
    if now is None or plan.shape_before.one_share or now.depth is not None:
        return opens
    job: jobs.Job[StockCost] | None = jobs.find(_stock_key(scores, plan, now))
    cost = jobs.result_of(_stock_cost_now(scores, plan, now) if _solves_at_once(plan) else job)
    if cost is None or cost.stock is None:
        return opens
    return f"{opens}; its best shape removes {units.share(cost.stock)} of the score, not {units.share(cost.best)}"


def stock_cost(scores: ImportanceScores, plan: PruningPlan, now: WhatIf) -> StockCost:
    budget = Budget(macs=count_macs(plan.shape_after))

    whole = total_score(scores) or 1.0

    def removed(family: Family) -> float:
        best = best_plan(scores, budget, family=family, heads=now.heads, round_to=now.round_to, basis=plan.basis)
        return best.predicted / whole

    try:
        return StockCost(removed("stock"), removed("best"))
    except PlanError:
        return StockCost()


def _stock_cost_now(scores: ImportanceScores, plan: PruningPlan, now: WhatIf) -> jobs.Job[StockCost]:
    key = _stock_key(scores, plan, now)
    return jobs.find(key) or jobs.submit_done(key, "Comparing with stock shapes", stock_cost(scores, plan, now))


def _solves_at_once(plan: PruningPlan) -> bool:
    return plan.shape_before.embed_dim * plan.shape_before.depth <= MOST_AT_ONCE


def _stock_key(scores: ImportanceScores, plan: PruningPlan, now: WhatIf) -> str:
    return f"stock {scores.digest} {count_macs(plan.shape_after)} {now.heads} {now.round_to} {plan.basis}"


def rounding_line(model: OpenModel, scores: ImportanceScores, plan: PruningPlan, now: WhatIf) -> str:
    """A line on how multiples of 8 or 16 change the widths that the ratios give."""
    if now.widths:
        return f"Every width is a multiple of {now.round_to} where the heads allow it."
    free = replace(now, round_to=1).plan(scores, block_removals.records())
    sizes = [units.short(count_parameters(p.shape_after)) for p in (free, plan)]
    changes = [f"parameters {sizes[0]} → {sizes[1]}"]
    shares = [units.share(share_removed(scores, p)) for p in (free, plan)]
    changes.append(f"score removed {shares[0]} → {shares[1]}")
    known, (first, second) = device.calibration(model.shape), (latencies(model, p) for p in (free, plan))
    if known is not None and first is not None and second is not None:
        times = f"time {units.figure(first[1])} → {units.figure(second[1])} ms"
        changes.append(f"{times} (estimated, {device.error_words(known)})")
    return f"What multiples of {now.round_to} change: {'; '.join(changes)}."
