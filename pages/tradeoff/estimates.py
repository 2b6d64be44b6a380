"""The numbers about the plan under the sliders: four in sight, four in detail, and a line about rounded widths."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import streamlit as st

from pages.services import block_removals, demo_tour, device, jobs, maps
from pages.services.maps import Estimate
from pages.services.open_model import OpenModel
from pages.tradeoff.measurements import Measurements
from pages.tradeoff.state import state
from pages.widgets import progress
from pages.widgets.cards import ESTIMATED, MEASURED, Card, cards
from upvit_core import units
from upvit_core.planning.curves import share_removed
from upvit_core.planning.what_if import WhatIf
from upvit_core.profiling.macs import count_macs, count_parameters
from upvit_core.profiling.memory import estimate_memory
from upvit_core.records.plan import PruningPlan
from upvit_core.records.scores import ImportanceScores
from upvit_core.records.task import IMAGES

if TYPE_CHECKING:
    from upvit_core.evaluation import Evaluation
    from upvit_core.profiling.throughput import SpeedUp


def number_cards(
    model: OpenModel, scores: ImportanceScores | None, plan: PruningPlan, now: WhatIf, measured: Measurements,
    mapped: Estimate | None,
) -> None:  # fmt: skip
    """The four numbers; while jobs run they are updated by themselves, in place."""

    def row() -> None:
        speed = speed_card(model, plan, measured.speed)
        cards([parameters_card(plan), macs_card(model, plan), speed, quality_card(model, now, measured, mapped)])

    with st.container(key="numbers"):
        progress.redraw_when_done([*measured.all, maps.reading(model, scores, now)], row)
    if now.round_to > 1 and scores is not None:
        st.html(f'<p class="quiet">{rounding_line(model, scores, plan, now)}</p>')


def detail_cards(
    model: OpenModel,
    scores: ImportanceScores | None,
    plan: PruningPlan,
    measured: Measurements,
    mapped: Estimate | None,
) -> None:
    """KL, time, memory, and whether the stock library opens the plan."""

    def row() -> None:
        kl = kl_card(model, scores, plan, jobs.result_of(measured.accuracy), mapped)
        cards([kl, latency_card(model, plan), memory_card(model, plan), stock_card(plan)])

    with st.container(key="facts"):
        progress.redraw_when_done(measured.all, row)


def parameters_card(plan: PruningPlan) -> Card:
    before, after = count_parameters(plan.shape_before), count_parameters(plan.shape_after)
    return Card("Parameters", units.short(after), _than(before, after, "smaller"), follow="params")


def _than(before: int, after: int, word: str) -> str:
    return f"{units.times(before / after)} {word} than {units.short(before)}" if before != after else "as the original"


def macs_card(model: OpenModel, plan: PruningPlan) -> Card:
    before, after = count_macs(plan.shape_before), count_macs(plan.shape_after)
    return Card(f"MACs, one {model.task.batch_item}", units.short(after), _than(before, after, "fewer"), follow="macs")


def speed_card(model: OpenModel, plan: PruningPlan, job: jobs.Job[SpeedUp] | None) -> Card:
    """Throughput of the thin model: measured in turns with the original, else estimated by a calibration."""
    name = f"{model.task.batch_items.capitalize()}/s"
    if (measured := jobs.result_of(job)) is not None:
        first, second = measured.first, measured.second
        note = (
            f"{units.times(measured.ratio)} as fast ({measured.low:.2f}–{measured.high:.2f}), original "
            f"{first.images_per_s:,.0f}; {second.device}, batch {second.batch_size}"
        )
        return Card(name, f"{second.images_per_s:,.0f}", note, MEASURED, follow="speed")
    known, times = device.calibration(model.shape), latencies(model, plan)
    if known is not None and times is not None:
        batch = device.batch_of(model)
        note = f"{units.times(times[0] / times[1])} as fast, {device.error_words(known)}; {known.device}, batch {batch}"
        return Card(name, f"{1e3 * batch / times[1]:,.0f}", note, ESTIMATED, follow="speed")
    if job is not None and job.active:
        return Card(name, "—", "being timed, in turns with the original", stale=True, follow="speed")
    return Card(name, "—", "not timed yet", follow="speed")


def quality_card(model: OpenModel, now: WhatIf, measured: Measurements, mapped: Estimate | None) -> Card:
    """Top-1 or perplexity of the plan, measured or by the map; where it is repaired, also before repair."""
    task, job = model.task, measured.accuracy
    shipped = demo_tour.values_of(model, now)
    name = "Right answers" if task is IMAGES else task.name
    beside = beside_words(model, measured, shipped)
    on = sample_words(model, measured)
    if (result := jobs.result_of(job)) is not None:
        value = task.format(task.value(result))
        state().last_quality = (model.source, value)
        cosine = "" if result.cosine is None else f", mean cosine to the original {result.cosine:.3f}"
        note = f"{beside(task.value(result))}{on}, 95 % interval {task.format_interval(result)}{cosine}"
        return Card(name, value, note, MEASURED, follow="quality")
    if shipped is not None:
        state().last_quality = (model.source, task.format(shipped["this"]))
        return Card(name, task.format(shipped["this"]), f"{beside(shipped['this'])}{on}", MEASURED, follow="quality")
    if not model.can_measure:
        return Card(name, "—", f"needs {task.wanted}" if model.has_weights else "needs weights", follow="quality")
    if mapped is not None:
        low, high = task.format(mapped.value_low), task.format(mapped.value_high)
        note = f"{beside(mapped.value)}from {mapped.cuts} measured cuts: 80 % band {low} – {high}"
        return Card(name, task.format(mapped.value), note, ESTIMATED, follow="quality")
    if job is not None and job.active:
        source, value = state().last_quality
        note = f"being measured: {job.detail or 'waiting for its turn'}"
        return Card(name, value if source == model.source else "—", note, stale=True, follow="quality")
    return Card(name, "—", "not measured yet", follow="quality")


def sample_words(model: OpenModel, measured: Measurements) -> str:
    """`1,000 images`, on which plan and original are evaluated."""
    original, tour = jobs.result_of(measured.original), demo_tour.of_model(model)
    count = original.images if original is not None else tour.images if tour is not None else 0
    return f"{count:,} {model.task.samples}" if count else ""


def beside_words(model: OpenModel, measured: Measurements, shipped: dict[str, float] | None) -> Callable[[float], str]:
    """Of a plan's value: `original 93.3 %: −0.3; cut as in the paper 16.5 %; `, as far as they are measured."""
    task, cut, baseline = model.task, jobs.result_of(measured.other), jobs.result_of(measured.original)
    other = task.value(cut) if cut is not None else shipped["other"] if shipped else None
    original = baseline.value if baseline is not None else shipped["original"] if shipped else None
    words = f"{measured.other_words} {task.format(other)}; " if other is not None else ""
    if original is None:
        return lambda value: words
    return lambda value: f"original {task.format(original)}: {task.gap(value - original).replace('-', '−')}; {words}"


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


def stock_card(plan: PruningPlan) -> Card:
    """A card that says if the stock library opens the plan."""
    library = plan.shape_after.library
    if plan.shape_after.is_uniform:
        return Card(f"Loads in plain {library}", "✓", "equal blocks, attention as wide as the residual")
    return Card(f"Loads in plain {library}", "no", "it needs equal blocks; this studio opens it")


def latencies(model: OpenModel, *plans: PruningPlan) -> list[float] | None:
    """Estimated time of a batch, ms: of the whole model, then after each plan; None without a calibration."""
    return device.milliseconds(device.batch_of(model), model.shape, *(plan.shape_after for plan in plans))


def format_bytes(count: int) -> str:
    """`3.9 MiB`."""
    for unit, scale in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= scale:
            number = count / scale
            return f"{number:,.0f} {unit}" if number >= 100 else f"{number:.3g} {unit}"
    return f"{count} B"


def rounding_line(model: OpenModel, scores: ImportanceScores, plan: PruningPlan, now: WhatIf) -> str:
    """A line on how multiples of 8 or 16 change the widths that the ratios give."""
    if now.widths:
        return f"Every width is a multiple of {now.round_to} where the heads allow it."
    free = replace(now, round_to=1).plan(scores, block_removals.records())
    sizes = [units.short(count_parameters(p.shape_after)) for p in (free, plan)]
    changes = [f"parameters {sizes[0]} → {sizes[1]}"]
    shares = [units.share(share_removed(scores, p)) for p in (free, plan)]
    changes.append(f"score removed {shares[0]} → {shares[1]}")
    known, times = device.calibration(model.shape), latencies(model, free, plan)
    if known is not None and times is not None:
        change = f"time {units.figure(times[1])} → {units.figure(times[2])} ms"
        changes.append(f"{change} (estimated, {device.error_words(known)})")
    return f"What multiples of {now.round_to} change: {'; '.join(changes)}."
