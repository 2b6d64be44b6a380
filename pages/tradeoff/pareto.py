"""The front: loss against cost over many plans; a click sets the sliders."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import streamlit as st

from pages.services import device, evaluation, jobs
from pages.services.open_model import OpenModel
from pages.services.session import session
from pages.tradeoff import tried_plans
from pages.tradeoff.estimates import latencies
from pages.tradeoff.state import state
from pages.tradeoff.tried_plans import TriedPlan, with_shares
from pages.widgets import charts, progress, terms
from upvit_core.figures.pareto import Line, Point, plot_pareto
from upvit_core.planning.curves import predicted_loss
from upvit_core.planning.pareto import candidate_plans
from upvit_core.planning.what_if import WhatIf, what_if_from_widths
from upvit_core.planning.widths import widths_of
from upvit_core.profiling.macs import count_macs, count_parameters
from upvit_core.records.plan import PruningPlan
from upvit_core.records.scores import ImportanceScores
from upvit_core.runs.forecast import Forecast

if TYPE_CHECKING:
    from upvit_core.evaluation import Evaluation

TITLES = {"Parameters": "parameters", "MACs": "MACs of one {item}", "Speed-up": "speed-up against the original, ×"}


def pareto_section(model: OpenModel, scores: ImportanceScores, now: WhatIf, ahead: Forecast | None) -> None:
    """Choices of axes, the chart, and the button that measures every plan on it where the model is small."""
    st.subheader(
        "The front: what you pay, what you lose", anchor=False,
        help=terms.tip(
            "Plans by what they cost and what they lose; the best of them make the front.", "front", "kl", "plan"
        ),
    )  # fmt: skip
    task = model.task
    one, two = st.columns([0.36, 0.64])
    loss = one.segmented_control(
        "Loss",
        (tried_plans.KL, task.name),
        default=tried_plans.KL,
        required=True,
        wrap=True,
        key="loss",
        bind="query-params",
    )
    cost = two.segmented_control(
        "Cost",
        tried_plans.COSTS,
        default=tried_plans.COSTS[0],
        required=True,
        wrap=True,
        key="cost",
        bind="query-params",
    )
    hide = st.toggle(
        "Hide dominated", key="hide-dominated", bind="query-params",
        help="Leaves out plans that another of the same kind beats, or equals, in cost and in loss.",
    )  # fmt: skip
    by_kl = loss == tried_plans.KL
    job = candidates_job(model, scores, now)
    found = job.result or []
    measuring: jobs.Job[dict[str, Evaluation]] | None = jobs.find(_key("measure front", model, scores, now))
    others = candidate_entries(model, found, jobs.result_of(measuring) or {})
    baseline: jobs.Job[evaluation.Baseline] | None = jobs.find(evaluation.baseline_key(model))
    known = jobs.result_of(baseline) or evaluation.stored_baseline(model)
    drawn = tried_plans.points(model, scores, now, cost, loss, known.value if known is not None else None, others)
    if ahead is not None and not by_kl and (here := next((p for p in drawn if p.now), None)) is not None:
        detail = f"top-1 after {ahead.epochs} epochs of distillation, forecast from {ahead.runs} runs: 80 % band"
        name = f"after {ahead.epochs} epochs"
        drawn.append(Point(name, here.x, ahead.middle, "estimated", detail, ahead.low, ahead.high))
    if hide:
        drawn = tried_plans.without_dominated(
            drawn, more_is_better=(cost == "Speed-up", not by_kl and task.more_is_better)
        )
    if cost == "Speed-up" and device.calibration(model.shape) is None:
        st.caption("Not calibrated: speed-ups are drawn where they were measured. Calibrate this device to see all.")
    if not drawn:
        st.info(
            "Measured plans will be here, beside the model itself." if model.has_weights
            else f"{task.name} of a plan needs weights."
        )  # fmt: skip
    else:
        _chart(model, scores, now, drawn, cost, by_kl)
    _measure_button(model, scores, now, job, measuring)
    st.html(
        '<p class="quiet">Click a plan to set the sliders to it. Estimated KL adds up what each removed channel costs '
        "alone; channels that go together cost more, which is what measuring shows.</p>"
    )


def _chart(
    model: OpenModel, scores: ImportanceScores, now: WhatIf, drawn: list[Point], cost: str, by_kl: bool
) -> None:  # fmt: skip
    lines: list[Line] = []
    even = len({(b.attention, b.ffn) for b in model.shape.blocks}) == 1
    if by_kl and now.heads is not None and even and cost != "Speed-up":
        lines = tried_plans.curves(scores, scores.digest, now.heads, cost)
    task = model.task
    y = f"KL to the original, {task.nats}" if by_kl else task.axis
    chart = plot_pareto(
        drawn,
        lines,
        charts.theme(),
        x_title=TITLES[cost].format(item=task.batch_item),
        y_title=y,
        log_y=by_kl or not task.more_is_better,
        height=430,
    )
    event = charts.show(chart, "front", on_select="rerun")
    chosen = event["selection"]["points"] if event else []  # type: ignore[index]
    data = (chosen[0].get("customdata") or [None, None, None])[2] if chosen else None
    if data is not None and data in {point.data for point in drawn}:
        target = WhatIf(*json.loads(data))
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


@dataclass(frozen=True)
class Candidate:
    """A plan and what is known of it before anything is measured."""

    name: str
    plan: PruningPlan
    entry: TriedPlan


def candidates_job(model: OpenModel, scores: ImportanceScores, now: WhatIf) -> jobs.Job[list[Candidate]]:
    """The job that finds the best plans at ten shares of the MACs, of three kinds."""

    def work(report: jobs.Report) -> list[Candidate]:
        basis = "directions" if scores.basis == "directions" else now.basis
        if model.shape.one_share:
            found = candidate_plans(scores)
        else:
            found = candidate_plans(scores, heads=now.heads, round_to=now.round_to, basis=basis)
        plain = replace(now, widths="", repair=False, depth=None)
        made = []
        for name, plan in found:
            shape = plan.shape_after
            if shape.one_share:
                what_if = with_shares(replace(plain, allocation="uniform", round_to=1), plan)
            else:
                what_if = what_if_from_widths(widths_of(shape), model.shape, plain)
            costs = count_parameters(shape), count_macs(shape), predicted_loss(scores, plan)
            made.append(Candidate(name, plan, TriedPlan(what_if, *costs, speed_up=0.0)))
        return made

    return jobs.ensure(_key("front", model, scores, now), work, "Finding good plans")


def _key(step: str, model: OpenModel, scores: ImportanceScores, now: WhatIf) -> str:
    return f"{step} {model.data_key} {scores.digest} {now.heads} {now.round_to} {now.basis}"


def measure_candidates(
    model: OpenModel, scores: ImportanceScores, now: WhatIf, found: list[Candidate]
) -> jobs.Job[dict[str, Evaluation]]:
    """The job that cuts and evaluates every candidate; its result is by digest of the plan."""

    def work(report: jobs.Report) -> dict[str, Evaluation]:
        results = {}
        for number, candidate in enumerate(found):
            plan = candidate.plan
            report.step(f"plan {number + 1} of {len(found)}", number / len(found))
            results[plan.digest] = evaluation.evaluate_plan(model, plan, report.cancel_only, repair=False)
        return results

    return jobs.start(_key("measure front", model, scores, now), work, "Measuring the front", long=True)


def candidate_entries(
    model: OpenModel, found: list[Candidate], results: dict[str, Evaluation]
) -> list[tuple[str, TriedPlan]]:
    """Candidates as entries of the front, with what has been measured of them."""
    entries = []
    for candidate in found:
        entry = candidate.entry
        if (times := latencies(model, candidate.plan)) is not None:
            entry = replace(entry, speed_up=times[0] / times[1])
        if (result := results.get(candidate.plan.digest)) is not None:
            entry = entry.measured(model.task, result)
        entries.append((candidate.name, entry))
    return entries
