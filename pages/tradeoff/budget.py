"""Best under a budget of parameters, MACs and time, one or two at once: the solver's plan becomes the current one."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import pandas as pd
import streamlit as st

from pages.services import block_removals, device
from pages.services.open_model import OpenModel
from pages.services.session import session
from pages.tradeoff.estimates import is_kl
from pages.tradeoff.state import state
from pages.tradeoff.tried_plans import with_shares
from upvit_core import units
from upvit_core.errors import PlanError
from upvit_core.planning.budget import BestPlan, Budget, Family, best_plan
from upvit_core.planning.budget_depth import best_over_depth
from upvit_core.planning.budget_stages import best_shares
from upvit_core.planning.what_if import WhatIf, what_if_from_widths
from upvit_core.planning.widths import whole_widths
from upvit_core.profiling.macs import count_macs, count_parameters
from upvit_core.records.block_removals import BlockRemovals
from upvit_core.records.plan import PruningPlan
from upvit_core.records.scores import ImportanceScores

FAMILIES: dict[Family, str] = {
    "best": "every block its own widths",
    "uniform": "equal shares in all blocks",
    "stock": "a shape of stock {library}",
}
STOPS = "The sum leaves out that removals interact: trust it to rank plans, and what is measured for the loss itself."


@dataclass(frozen=True)
class BudgetResult:
    """What the solver found for one budget, by family; `chosen` is the current plan."""

    source: str
    limits: dict[str, float]
    chosen: Family
    found: dict[Family, BestPlan]
    seconds: float


def budget_panel(model: OpenModel, scores: ImportanceScores | None, now: WhatIf, plan: PruningPlan) -> None:
    """The form in its popover; pressing its button sets the plan."""
    with st.popover(
        "Best under…", icon=":material/target:", width="stretch",
        help="The plan that is predicted to lose least within a budget, found exactly.",
        key="best-under", on_change="rerun",
    ) as box:  # fmt: skip
        if not box.open:
            return
        if scores is None:
            st.caption("Needs scores: make them on Importance.")
            return
        if model.shape.one_share:
            st.caption("One share of each component, the same in all stages: what a stage costs depends on the others.")
        limits = inputs(model, plan)
        family = st.radio(
            "Among", families(model), format_func=lambda family: family_name(model, family), key="budget-family",
            persist_state="session",
        )  # fmt: skip
        own = model.shape.num_heads
        if now.heads is not None and own is not None and now.heads != own:
            st.caption(f"With {now.heads} heads, as the slider says; scores cannot foretell what merging {own} does.")
        if now.round_to > 1:
            st.caption(f"Widths are multiples of {now.round_to}.")
        removals = None if model.shape.one_share else block_removals.records().of_model(plan.model_digest)
        if removals is not None and not st.toggle(
            "Blocks may go too", value=now.depth is not None, key="budget-depth", persist_state="session",
            help="Tries every depth with its best widths. What blocks cost was measured; channels are added up.",
        ):  # fmt: skip
            removals = None
        ready = bool(limits)
        if st.button(
            "Find the best plan", type="primary", icon=":material/target:", key="find-best", disabled=not ready
        ):
            find(model, scores, now, limits, family, removals)
        if not ready:
            st.caption("Tick at least one limit.")


def inputs(model: OpenModel, plan: PruningPlan) -> dict[str, float]:
    """Limits that are ticked; each begins at what the current plan has."""
    limits: dict[str, float] = {}
    shape = plan.shape_after
    full = {"params": count_parameters(model.shape), "macs": count_macs(model.shape)}
    one = f"MACs of one {model.task.batch_item}"
    for name, label, value in (
        ("params", "Parameters", count_parameters(shape)), ("macs", one, count_macs(shape)),
    ):  # fmt: skip
        suffix, scale = ("G", 1e9) if full[name] >= 2e9 else ("M", 1e6)
        key, ticked = f"{name}-{model.source}", name == "params"
        given = _limit(key, f"{label}, {suffix}", value / scale, full[name] / scale, ticked)
        if given is not None:
            limits[name] = (given + 5e-5) * scale
    batch = device.batch_of(model)
    now, before = (device.milliseconds(s, batch) for s in (shape, model.shape))
    if now is None or before is None:
        st.caption("A limit on time needs this device calibrated.")
        return limits
    given = _limit(f"ms-{model.source}-{batch}", f"Time of a batch of {batch}, ms (estimated)", now, before, False)
    if given is not None:
        limits["latency_ms"] = given
    return limits


def _limit(key: str, label: str, value: float, most: float, ticked: bool) -> float | None:
    one, two = st.columns([0.12, 0.88], vertical_alignment="bottom")
    on = one.checkbox(f"Limit {label}", value=ticked, key=f"limit-{key}", label_visibility="collapsed",
                      persist_state="session")  # fmt: skip
    given = two.number_input(
        f"{label}, at most", min_value=0.0, max_value=float(most), value=float(value), format="%.4f",
        key=f"limit-{key}-value", disabled=not on,
    )  # fmt: skip
    return float(given) if on and given > 0 else None


def find(
    model: OpenModel, scores: ImportanceScores, now: WhatIf, limits: dict[str, float], family: Family,
    removals: BlockRemovals | None,
) -> None:  # fmt: skip
    """Solve for the family asked for and, to compare, for the others; then move the sliders."""
    began = time.perf_counter()
    try:
        with st.spinner("Searching…"):
            solved = {family: _solve(model, scores, now, limits, family, removals)}
    except PlanError as error:
        st.warning(str(error))
        return
    seconds = time.perf_counter() - began
    for other in families(model):
        if other not in solved and (other != "uniform" or model.shape.embed_dim < 400):
            try:
                solved[other] = _solve(model, scores, now, limits, other, removals)
            except PlanError:
                continue
    state().budget = BudgetResult(model.source, limits, family, solved, seconds)
    best = solved[family].plan
    if model.shape.one_share:
        session().move_to = with_shares(now, best)
    else:
        depth = best.shape_after.depth
        now = replace(now, widths="", depth=depth if depth < model.shape.depth else None, order="together")
        session().move_to = what_if_from_widths(whole_widths(best, now.round_to), model.shape, now)
    st.rerun()


def family_name(model: OpenModel, family: Family) -> str:
    return FAMILIES[family].format(library=model.shape.library)


def families(model: OpenModel) -> list[Family]:
    """In a model of stages all shares are equal."""
    return [family for family in FAMILIES if family != "best" or not model.shape.one_share]


def _solve(
    model: OpenModel, scores: ImportanceScores, now: WhatIf, limits: dict[str, float], family: Family,
    removals: BlockRemovals | None,
) -> BestPlan:  # fmt: skip
    """The best of this family; where blocks may go, of every depth, what their removal costs included."""
    if model.shape.one_share:
        return best_shares(scores, limits, stock=family == "stock", latency=device.latency(model))
    basis = "directions" if scores.basis == "directions" else now.basis
    choices = {"family": family, "latency": device.latency(model), "heads": now.heads, "round_to": now.round_to,
               "basis": basis}  # fmt: skip
    if removals is None:
        return best_plan(scores, Budget(**limits), **choices)
    chosen, every = best_over_depth(scores, removals, Budget(**limits), **choices)
    bound = min(choice.best.bound + choice.blocks for choice in every)
    return replace(chosen.best, predicted=chosen.predicted, bound=min(bound, chosen.predicted))


def budget_result(model: OpenModel, scores: ImportanceScores | None, plan: PruningPlan) -> None:
    """Under the numbers, as long as the plan is the one that was found: how good it is, and what others would cost."""
    found = state().budget
    if found is None or found.source != model.source or scores is None:
        return
    best = found.found[found.chosen]
    if best.plan.shape_after != plan.shape_after:
        return
    unit = "nats" if is_kl(scores) else scores.unit or "of score"
    gap = "the least possible, exactly" if best.gap == 0 else f"at most {best.gap:.2g} above the least possible"
    among = family_name(model, found.chosen)
    st.success(
        f"Best within {_limits(found.limits)}, {among}: predicted KL {best.predicted:.3g} {unit}, {gap}; found in "
        f"{1e3 * found.seconds:,.0f} ms. {STOPS}",
        icon=":material/target:",
    )
    rows, least = [], min(other.predicted for other in found.found.values())
    for family, other in found.found.items():
        row = {
            "Among": family_name(model, family), f"Predicted KL, {unit}": other.predicted,
            "Against the best": other.predicted / least if least > 0 else 1.0, "Blocks": other.plan.shape_after.depth,
            "Parameters": other.params, "MACs": other.macs,
            f"Stock {model.shape.library}": other.plan.shape_after.is_uniform,
        }  # fmt: skip
        if other.latency_ms is not None:
            row["Time, ms (estimated)"] = other.latency_ms
        rows.append(row)
    number = st.column_config.NumberColumn
    st.dataframe(
        pd.DataFrame(rows).sort_values(f"Predicted KL, {unit}"), hide_index=True, width="stretch",
        column_config={"Parameters": number(format="localized"), "MACs": number(format="localized"),
                       f"Predicted KL, {unit}": number(format="%.4g"),
                       "Against the best": number(format="%.2f×", help="Predicted KL as a multiple of the least.")},
    )  # fmt: skip


def _limits(limits: dict[str, float]) -> str:
    names = {"params": "parameters", "macs": "MACs"}
    told = {name: f"{units.short(value)} {names[name]}" for name, value in limits.items() if name in names}
    if "latency_ms" in limits:
        told["latency_ms"] = f"{units.figure(limits['latency_ms'])} ms"
    return " and ".join(told.values())
