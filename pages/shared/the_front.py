"""The front: loss against cost over many plans; a click sets the sliders."""

from __future__ import annotations

import json

import streamlit as st

from pages.shared import candidates, charts, device, jobs, measured, plans, terms
from pages.shared.opened import Opened
from pages.shared.whatif import WhatIf
from upvit_core.figures.front import Line, front
from upvit_core.importance.scores import ImportanceScores
from upvit_core.models.judge import judge_of
from upvit_core.runs.forecast import Forecast

TITLES = {"Parameters": "parameters", "MACs": "MACs of one {item}", "Speed-up": "speed-up against the original, ×"}


def section(
    model: Opened, scores: ImportanceScores, now: WhatIf, spec: str, ahead: Forecast | None, *, small: bool
) -> None:
    """Choices of axes, the chart, and the button that measures every plan on it where the model is small."""
    st.subheader(
        "The front: what you pay, what you lose", anchor=False,
        help=terms.tip(
            "Plans by what they cost and what they lose; the best of them make the front.", "front", "kl", "plan"
        ),
    )  # fmt: skip
    judge = judge_of(model.shape)
    one, two = st.columns([0.36, 0.64])
    loss = one.segmented_control(
        "Loss", (plans.KL, judge.name), default=plans.KL, required=True, wrap=True, key="loss", bind="query-params"
    )
    cost = two.segmented_control(
        "Cost", plans.COSTS, default=plans.COSTS[0], required=True, wrap=True, key="cost", bind="query-params"
    )
    hide = st.toggle(
        "Hide dominated", key="hide-dominated", bind="query-params",
        help="Leaves out plans that another of the same kind beats, or equals, in cost and in loss.",
    )  # fmt: skip
    by_kl = loss == plans.KL
    job = candidates.start(model, scores, now)
    found = job.result if job.state == "done" else []
    measuring = jobs.find(candidates.measure_key(model, scores, now, spec))
    results = measuring.result if measuring is not None and measuring.state == "done" else {}
    look = jobs.find(measured.look_key(model, spec))
    known = look.result if look is not None and look.state == "done" else measured.remembered_look(model, spec)
    others = candidates.tried(model, scores, found, results)
    drawn = plans.points(model, scores, now, cost, loss, known.value if known is not None else None, others)
    if ahead is not None and not by_kl and (here := next((p for p in drawn if p.now), None)) is not None:
        detail = f"top-1 after {ahead.epochs} epochs of distillation, forecast from {ahead.runs} runs: 80 % band"
        name = f"after {ahead.epochs} epochs"
        drawn.append(plans.Point(name, here.x, ahead.middle, "estimated", detail, ahead.low, ahead.high))
    if hide:
        drawn = plans.without_dominated(drawn, more_is_better=(cost == "Speed-up", not by_kl and judge.more_is_better))
    if cost == "Speed-up" and device.calibration(model.shape) is None:
        st.caption("Not calibrated: speed-ups are drawn where they were measured. Calibrate this device to see all.")
    if not drawn:
        st.info(
            "Measured plans will be here, beside the model itself." if model.has_weights
            else f"{judge.name} of a plan needs weights."
        )  # fmt: skip
    else:
        _chart(model, scores, now, drawn, cost, by_kl)
    _measure(model, scores, now, spec, found, small, measuring, job)
    st.html(
        '<p class="quiet">Click a plan to set the sliders to it. Estimated KL adds up what each removed channel costs '
        "alone; channels that go together cost more, which is what measuring shows.</p>"
    )


def _chart(
    model: Opened, scores: ImportanceScores, now: WhatIf, drawn: list[plans.Point], cost: str, by_kl: bool
) -> None:  # fmt: skip
    lines: list[Line] = []
    even = len({(b.attention, b.ffn) for b in model.shape.blocks}) == 1
    if by_kl and now.heads is not None and even and cost != "Speed-up":
        lines = plans.curves(scores, scores.digest, now.heads, cost)
    judge = judge_of(model.shape)
    y = f"KL to the original, {judge.nats}" if by_kl else judge.axis
    chart = front(
        drawn,
        lines,
        charts.theme(),
        x_title=TITLES[cost].format(item=judge.item),
        y_title=y,
        log_y=by_kl or not judge.more_is_better,
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
    model: Opened, scores: ImportanceScores, now: WhatIf, spec: str, found: list[candidates.Candidate], small: bool,
    measuring: jobs.Job | None, finding: jobs.Job | None,
) -> None:  # fmt: skip
    with st.container(key="slot-front"):
        if finding is not None and finding.active:
            jobs.progress(finding)
        elif measuring is not None and measuring.active:
            jobs.progress(measuring)
        elif measuring is not None and measuring.state == "failed":
            st.error(measuring.error)
        elif small and model.has_weights and spec and found and (measuring is None or measuring.state == "cancelled"):
            label = f"Measure these {len(found)} plans"
            if st.button(
                label,
                icon=":material/speed:",
                key="measure-front",
                help=f"{judge_of(model.shape).name} and KL, without training.",
            ):
                candidates.measure(model, scores, now, spec, found)
                st.rerun()
