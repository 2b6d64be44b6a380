"""The Pareto front: loss against cost over many plans; a click on a plan sets the sliders."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import streamlit as st

from pages.services import demo_tour, device, evaluation, good_plans, jobs, maps
from pages.services.good_plans import Candidate
from pages.services.open_model import OpenModel
from pages.services.session import session
from pages.tradeoff import tried_plans
from pages.tradeoff.estimates import latencies
from pages.tradeoff.state import state
from pages.tradeoff.tried_plans import TriedPlan
from pages.widgets import charts, progress
from upvit_core.figures.pareto import Line, Point, plot_pareto
from upvit_core.planning.what_if import WhatIf
from upvit_core.profiling.macs import count_macs, count_parameters
from upvit_core.records.scores import ImportanceScores
from upvit_core.runs.forecast import Forecast

if TYPE_CHECKING:
    from upvit_core.evaluation import Evaluation

TITLES = {"Parameters": "parameters", "MACs": "MACs of one {item}", "Speed-up": "speed-up against the original, ×"}


@dataclass(frozen=True)
class Axes:
    """The choices above the chart."""

    loss: str
    cost: str
    hide_dominated: bool

    @property
    def by_score(self) -> bool:
        return self.loss == tried_plans.SCORE

    @property
    def of_model(self) -> bool:
        """True where the model itself has a value on the axis of loss."""
        return self.loss not in (tried_plans.SCORE, tried_plans.KL)


def pareto_section(model: OpenModel, scores: ImportanceScores, now: WhatIf, ahead: Forecast | None) -> None:
    """The chart, with the choice of its axes and what measures more plans behind one button."""
    with st.container(horizontal=True, vertical_alignment="center", key="front-head"):
        st.html('<h3 class="part">What others would give</h3>')
        with st.popover("Axes", type="tertiary", key="axes"):
            axes = _axes(model)
            candidates = good_plans.find(model, scores, now)
            measuring: jobs.Job[dict[str, Evaluation]] | None = jobs.find(
                good_plans.key_of("measure front", model, scores, now)
            )
            _measure_button(model, scores, now, candidates, measuring)
            if axes.cost == "Speed-up" and device.calibration(model.shape) is None:
                st.caption("Not calibrated: speed-ups are drawn where they were measured.")
            if axes.by_score:
                st.caption("The score adds up what each channel costs alone. Channels that go together cost more.")
    known = maps.find(model, scores, now)
    entries = candidate_entries(model, candidates.result or [], jobs.result_of(measuring) or {}, known)
    points = _points(model, scores, now, axes, entries, ahead)
    if points:
        _chart(model, scores, now, points, axes)
    elif model.has_weights:
        st.info("Measured plans will be here, beside the model itself.")
    else:
        st.info(f"{model.task.name} of a plan needs weights; Axes offers the score.")


def _axes(model: OpenModel) -> Axes:
    def choose(label: str, options: tuple[str, ...]) -> str:
        key = label.lower()
        chosen = st.segmented_control(
            label, options, default=options[0], required=True, wrap=True, key=key, bind="query-params"
        )
        return chosen if chosen in options else options[0]  # a link may name anything

    losses = (model.task.name, tried_plans.KL, tried_plans.SCORE)
    loss = choose("Loss", losses if model.has_weights else losses[::-1])
    cost = choose("Cost", tried_plans.COSTS)
    help_text = "Leaves out plans that another of the same kind beats, or equals, in cost and in loss."
    hide = st.toggle("Only the best", key="hide-dominated", bind="query-params", help=help_text)
    return Axes(loss, cost, hide)


def _points(
    model: OpenModel,
    scores: ImportanceScores,
    now: WhatIf,
    axes: Axes,
    entries: list[tuple[str, TriedPlan]],
    ahead: Forecast | None,
) -> list[Point]:
    """The points to draw; the plan under the sliders has its forecast beside it."""
    teacher = _original(model)
    points = tried_plans.pareto_points(model, scores, now, axes.cost, axes.loss, teacher, entries)
    here = next((point for point in points if point.now), None)
    if ahead is not None and axes.of_model and here is not None:
        detail = f"top-1 after {ahead.epochs} epochs of distillation, forecast from {ahead.runs} runs: 80 % band"
        name = f"after {ahead.epochs} epochs"
        points.append(Point(name, here.x, ahead.middle, "estimated", detail, ahead.low, ahead.high))
    if axes.hide_dominated:
        better = axes.cost == "Speed-up", axes.of_model and model.task.more_is_better
        points = tried_plans.without_dominated(points, more_is_better=better)
    return points


def _original(model: OpenModel) -> float | None:
    """The value of the original on the evaluation images, where it is known."""
    if (tour := demo_tour.of_model(model)) is not None:
        return tour.original
    job: jobs.Job[evaluation.Baseline] | None = jobs.find(evaluation.baseline_key(model))
    baseline = jobs.result_of(job) or evaluation.stored_baseline(model)
    return baseline.value if baseline is not None else None


def _lines(model: OpenModel, scores: ImportanceScores, now: WhatIf, axes: Axes) -> list[Line]:
    """Curves of equal shares on these axes, and the original's value."""
    even = len({(b.attention, b.ffn) for b in model.shape.blocks}) == 1
    if axes.cost == "Speed-up":
        return []
    if axes.by_score:
        heads = now.heads if even else None
        return [] if heads is None else tried_plans.ratio_curves(scores, scores.digest, heads, axes.cost)
    lines, original = list[Line](), _original(model)
    tour = demo_tour.of_model(model)
    if tour is not None and axes.of_model:
        lines += tried_plans.tour_curves(tour, tour.model_digest, model.shape, axes.cost)
    elif (known := maps.find(model, scores, now)) is not None:
        lines = [tried_plans.mapped_curve(known, scores, now, known.record.digest, axes.cost, axes.loss)]
    if axes.of_model and original is not None:
        most = (count_parameters if axes.cost == "Parameters" else count_macs)(model.shape)
        lines.append(tried_plans.original_line(original, most, model.task.format(original)))
    return lines


def _chart(model: OpenModel, scores: ImportanceScores, now: WhatIf, points: list[Point], axes: Axes) -> None:
    task, lines = model.task, _lines(model, scores, now, axes)
    chart = plot_pareto(
        points,
        lines,
        charts.theme(),
        x_title=TITLES[axes.cost].format(item=task.batch_item),
        y_title={tried_plans.SCORE: "score removed, %", tried_plans.KL: f"KL to the original, {task.nats}"}.get(
            axes.loss, task.axis
        ),
        log_y=not axes.of_model or not task.more_is_better,
        height=240,
        shares=axes.of_model and task.more_is_better and axes.cost != "Speed-up",
    )
    data = charts.clicked_data(charts.show(chart, "front", on_select="rerun"))
    charts.legend(chart)
    if data in {point.data for point in points if point.data}:
        target = WhatIf(*json.loads(str(data)))
        if state().clicked != target:
            state().clicked = target
            if target != now:
                session().move_to = target
                st.rerun()


def _measure_button(
    model: OpenModel,
    scores: ImportanceScores,
    now: WhatIf,
    candidates: jobs.Job[list[Candidate]],
    measuring: jobs.Job[dict[str, Evaluation]] | None,
) -> None:
    with st.container(key="slot-front"):
        found = progress.show(candidates)
        progress.show(measuring)
        small = model.can_measure and evaluation.measures_at_once(model)
        if small and found and measuring is None:
            label, text = f"Measure these {len(found)} plans", f"{model.task.name} and KL, without training."
            if st.button(label, icon=":material/speed:", key="measure-front", help=text):
                measure_candidates(model, scores, now, found)
                st.rerun()


def measure_candidates(
    model: OpenModel, scores: ImportanceScores, now: WhatIf, candidates: list[Candidate]
) -> jobs.Job[dict[str, Evaluation]]:
    """The job that cuts and evaluates every candidate; its result is by digest of the plan."""

    def work(report: jobs.Report) -> dict[str, Evaluation]:
        results = {}
        for number, candidate in enumerate(candidates):
            report.step(f"plan {number + 1} of {len(candidates)}", number / len(candidates))
            plan = candidate.plan
            results[plan.digest] = evaluation.evaluate_plan(model, plan, report.cancel_only, repair=now.repair)
        return results

    return jobs.start(good_plans.key_of("measure front", model, scores, now), work, "Measuring the front", long=True)


def candidate_entries(
    model: OpenModel, candidates: list[Candidate], results: dict[str, Evaluation], known: maps.Known | None
) -> list[tuple[str, TriedPlan]]:
    """Candidates as entries of the chart, with what has been measured of them."""
    entries = []
    times = latencies(model, *(candidate.plan for candidate in candidates))
    for number, candidate in enumerate(candidates):
        entry = TriedPlan(candidate.what_if, candidate.params, candidate.macs, candidate.removed)
        if known is not None:
            entry = replace(entry, mapped=known.of(candidate.plan))
        if times is not None:
            entry = replace(entry, speed_up=times[0] / times[1 + number])
        if (result := results.get(candidate.plan.digest)) is not None:
            entry = entry.measured(model.task, result)
        entries.append((candidate.name, entry))
    return entries
