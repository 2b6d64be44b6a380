"""The front: loss against cost over many plans; a click sets the sliders."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import streamlit as st

from pages.services import device, evaluation, jobs, open_model
from pages.services.open_model import OpenModel
from pages.tradeoff import tried_plans
from pages.tradeoff.tried_plans import TriedPlan
from pages.widgets import charts, progress, terms
from upvit_core.figures.pareto import Line, plot_pareto
from upvit_core.planning.budget_stages import percents_of
from upvit_core.planning.curves import predicted_loss
from upvit_core.planning.pareto import candidate_plans
from upvit_core.planning.what_if import WhatIf, what_if_from_widths
from upvit_core.planning.widths import widths_of
from upvit_core.profiling.macs import count_macs, count_parameters
from upvit_core.records.plan import PruningPlan
from upvit_core.records.scores import ImportanceScores
from upvit_core.records.task import task_of
from upvit_core.runs.forecast import Forecast

if TYPE_CHECKING:
    from upvit_core.evaluation import Evaluation

TITLES = {"Parameters": "parameters", "MACs": "MACs of one {item}", "Speed-up": "speed-up against the original, ×"}


def section(
    model: OpenModel, scores: ImportanceScores, now: WhatIf, spec: str, ahead: Forecast | None, *, small: bool
) -> None:
    """Choices of axes, the chart, and the button that measures every plan on it where the model is small."""
    st.subheader(
        "The front: what you pay, what you lose", anchor=False,
        help=terms.tip(
            "Plans by what they cost and what they lose; the best of them make the front.", "front", "kl", "plan"
        ),
    )  # fmt: skip
    task = task_of(model.shape)
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
    job = start(model, scores, now)
    found = job.result if job.state == "done" else []
    measuring = jobs.find(measure_key(model, scores, now, spec))
    results = measuring.result if measuring is not None and measuring.state == "done" else {}
    look = jobs.find(evaluation.baseline_key(model, spec))
    known = look.result if look is not None and look.state == "done" else evaluation.stored_baseline(model, spec)
    others = tried(model, scores, found, results)
    drawn = tried_plans.points(model, scores, now, cost, loss, known.value if known is not None else None, others)
    if ahead is not None and not by_kl and (here := next((p for p in drawn if p.now), None)) is not None:
        detail = f"top-1 after {ahead.epochs} epochs of distillation, forecast from {ahead.runs} runs: 80 % band"
        name = f"after {ahead.epochs} epochs"
        drawn.append(tried_plans.Point(name, here.x, ahead.middle, "estimated", detail, ahead.low, ahead.high))
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
    _measure(model, scores, now, spec, found, small, measuring, job)
    st.html(
        '<p class="quiet">Click a plan to set the sliders to it. Estimated KL adds up what each removed channel costs '
        "alone; channels that go together cost more, which is what measuring shows.</p>"
    )


def _chart(
    model: OpenModel, scores: ImportanceScores, now: WhatIf, drawn: list[tried_plans.Point], cost: str, by_kl: bool
) -> None:  # fmt: skip
    lines: list[Line] = []
    even = len({(b.attention, b.ffn) for b in model.shape.blocks}) == 1
    if by_kl and now.heads is not None and even and cost != "Speed-up":
        lines = tried_plans.curves(scores, scores.digest, now.heads, cost)
    task = task_of(model.shape)
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
        if st.session_state.get("front-click") != target:
            st.session_state["front-click"] = target
            if target != now:
                st.session_state["move-to"] = target
                st.rerun()


def _measure(
    model: OpenModel, scores: ImportanceScores, now: WhatIf, spec: str, found: list[Candidate], small: bool,
    measuring: jobs.Job | None, finding: jobs.Job | None,
) -> None:  # fmt: skip
    with st.container(key="slot-front"):
        if finding is not None and finding.active:
            progress.progress(finding)
        elif measuring is not None and measuring.active:
            progress.progress(measuring)
        elif measuring is not None and measuring.state == "failed":
            st.error(measuring.error)
        elif small and model.has_weights and spec and found and (measuring is None or measuring.state == "cancelled"):
            label = f"Measure these {len(found)} plans"
            if st.button(
                label,
                icon=":material/speed:",
                key="measure-front",
                help=f"{task_of(model.shape).name} and KL, without training.",
            ):
                measure(model, scores, now, spec, found)
                st.rerun()


@dataclass(frozen=True)
class Candidate:
    """A plan and what is known of it before anything is measured."""

    name: str
    plan: PruningPlan
    entry: TriedPlan


def start(model: OpenModel, scores: ImportanceScores, now: WhatIf) -> jobs.Job:
    """The job that finds the best plans at ten shares of the MACs, of three kinds; its result is [Candidate]."""

    def work(report: jobs.Report) -> list[Candidate]:
        basis = "directions" if scores.basis == "directions" else now.basis
        own = {} if model.shape.one_share else {"heads": now.heads, "round_to": now.round_to, "basis": basis}
        found = candidate_plans(scores, **own)  # type: ignore[arg-type]
        plain = replace(now, widths="", repair=False, depth=None)
        made = []
        for name, plan in found:
            shape = plan.shape_after
            if shape.one_share:
                what_if = replace(plain, **percents_of(plan), allocation="uniform", round_to=1)
            else:
                what_if = what_if_from_widths(widths_of(shape), model.shape, plain)
            costs = count_parameters(shape), count_macs(shape), predicted_loss(scores, plan)
            made.append(Candidate(name, plan, TriedPlan(what_if, *costs, speed_up=0.0)))
        return made

    return jobs.start(_key("front", model, scores, now), work, "Finding good plans")


def _key(what: str, model: OpenModel, scores: ImportanceScores, now: WhatIf) -> str:
    return f"{what} {open_model.identity(model)} {scores.digest} {now.heads} {now.round_to} {now.basis}"


def measure_key(model: OpenModel, scores: ImportanceScores, now: WhatIf, spec: str) -> str:
    return f"{_key('measure front', model, scores, now)} {spec}"


def measure(model: OpenModel, scores: ImportanceScores, now: WhatIf, spec: str, found: list[Candidate]) -> jobs.Job:
    """The job that cuts and evaluates every candidate; its result is {digest of the plan: Evaluation}."""

    def work(report: jobs.Report) -> dict[str, Evaluation]:
        results = {}
        for number, candidate in enumerate(found):
            plan = candidate.plan
            report.say(f"plan {number + 1} of {len(found)}", number / len(found))
            results[plan.digest] = evaluation.evaluate_plan(model, plan, spec, report.quietly(), repair=False)
        return results

    return jobs.start(measure_key(model, scores, now, spec), work, "Measuring the front", long=True)


def tried(
    model: OpenModel, scores: ImportanceScores, found: list[Candidate], results: dict[str, Evaluation]
) -> list[tuple[str, TriedPlan]]:
    """Candidates as entries of the front, with what has been measured of them."""
    known, batch, task = device.calibration(model.shape), device.batch_of(model), task_of(model.shape)
    before = device.milliseconds(model.shape, batch) if known is not None else None
    entries = []
    for candidate in found:
        plan, entry = candidate.plan, candidate.entry
        after = device.milliseconds(plan.shape_after, batch) if before is not None else None
        if before and after:
            entry = replace(entry, speed_up=before / after)
        result = results.get(plan.digest)
        if result is not None:
            low, high = task.interval(result)
            entry = replace(
                entry, value=task.value(result), low=low, high=high, kl=result.kl, images=result.images
            )  # fmt: skip
        entries.append((candidate.name, entry))
    return entries
