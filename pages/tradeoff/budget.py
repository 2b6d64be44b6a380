"""The best plan under a budget of parameters, MACs and time: the solver's plan becomes the one under the sliders."""

import time
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd
import streamlit as st

from pages.services import block_removals, device, maps
from pages.services.open_model import OpenModel
from pages.services.session import session
from pages.tradeoff.state import state
from pages.widgets.plain import plain
from upvit_core import units
from upvit_core.errors import PlanError
from upvit_core.planning.budget import BestPlan, Budget, Family, best_plan
from upvit_core.planning.budget_depth import best_over_depth
from upvit_core.planning.budget_stages import best_shares, percents_of
from upvit_core.planning.curves import total_score
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
CAVEAT = (
    "The score leaves out that removals interact: it ranks plans, and tells no accuracy; measure the plan for that."
)
WIDEST_UNIFORM = 400  # residual channels up to which the uniform family is solved for comparison too


@dataclass(frozen=True)
class BudgetResult:
    """The best plans within one budget, by family; `chosen` names the one under the sliders."""

    source: str
    limits: dict[str, float]
    chosen: Family
    best: dict[Family, BestPlan]
    seconds: float


@dataclass(frozen=True)
class Search:
    """A budget to be met: limits by name; `removals` where blocks may go too; `known`: the map, which ranks plans."""

    model: OpenModel
    scores: ImportanceScores
    now: WhatIf
    limits: dict[str, float]
    removals: BlockRemovals | None
    known: maps.Known | None = None

    def solve(self, family: Family) -> BestPlan:
        """The best plan of one family; where blocks may go, of every depth, the cost of their removal included."""
        scores, latency = self.scores, device.latency(self.model)
        if self.model.shape.one_share:
            best = best_shares(scores, self.limits, stock=family == "stock", latency=latency)
            return BestPlan(best.plan, best.predicted, best.predicted, best.params, best.macs, best.latency_ms)
        choices: dict[str, Any] = {
            "family": family,
            "latency": latency,
            "heads": self.now.heads,
            "round_to": self.now.round_to,
            "basis": "directions" if scores.basis == "directions" else self.now.basis,
        }
        if self.removals is None:
            budget = Budget(**self.limits)
            if self.known is None:
                return best_plan(scores, budget, **choices)
            from upvit_core.mapping.choose import rank

            ranked = rank(self.known.surrogate, scores, lambda own: best_plan(own, budget, **choices))
            return ranked.plans[ranked.best]
        chosen, every = best_over_depth(scores, self.removals, Budget(**self.limits), **choices)
        bound = min(choice.best.bound + choice.blocks for choice in every)
        return replace(chosen.best, predicted=chosen.predicted, bound=min(bound, chosen.predicted))

    def solve_all(self, chosen: Family) -> BudgetResult:
        """The best of the chosen family and, for comparison, of the others. Raises PlanError where nothing fits."""
        began = time.perf_counter()
        best = {chosen: self.solve(chosen)}
        seconds = time.perf_counter() - began
        for other in families(self.model):
            if other not in best and (other != "uniform" or self.model.shape.embed_dim < WIDEST_UNIFORM):
                try:
                    best[other] = self.solve(other)
                except PlanError:
                    continue
        return BudgetResult(self.model.source, self.limits, chosen, best, seconds)


def families(model: OpenModel) -> list[Family]:
    """In a model of stages all shares are equal."""
    return [family for family in FAMILIES if family != "best" or not model.shape.one_share]


def family_name(model: OpenModel, family: Family) -> str:
    return FAMILIES[family].format(library=model.shape.library)


def budget_panel(model: OpenModel, scores: ImportanceScores | None, now: WhatIf, plan: PruningPlan) -> None:
    """Draw the form in its popover; its button sets the plan."""
    help_text = "The plan that removes least of the score within a budget, found exactly."
    with st.popover("Budget…", width="content", help=help_text, key="best-under", on_change="rerun") as box:
        if not box.open:
            return
        if scores is None:
            st.caption("Needs scores: make them on Importance.")
            return
        if model.shape.one_share:
            st.caption("One share of each component, the same in all stages: what a stage costs depends on the others.")
        limits = limit_fields(model, plan)
        chosen: Family = st.radio(
            "Among",
            families(model),
            format_func=lambda family: family_name(model, family),
            key="budget-family",
            persist_state="session",
        )
        own = model.shape.num_heads
        if now.heads is not None and own is not None and now.heads != own:
            st.caption(f"With {now.heads} heads, as the slider says; scores do not predict what merging {own} does.")
        if now.round_to > 1:
            st.caption(f"Widths are multiples of {now.round_to}.")
        search = Search(model, scores, now, limits, _removals(model, now, plan), maps.find(model, scores, now))
        if st.button(
            "Find the best plan", type="primary", icon=":material/target:", key="find-best", disabled=not limits
        ):
            apply_best(search, chosen)
        if not limits:
            st.caption("Tick at least one limit.")


def _removals(model: OpenModel, now: WhatIf, plan: PruningPlan) -> BlockRemovals | None:
    """The record of block removals, where there is one and blocks may go."""
    known = None if model.shape.one_share else block_removals.records().of_model(plan.model_digest)
    help_text = "Tries every depth with its best widths. What blocks cost was measured; channels are added up."
    if known is not None and st.toggle(
        "Blocks may go too", value=now.depth is not None, key="budget-depth", persist_state="session", help=help_text
    ):
        return known
    return None


def limit_fields(model: OpenModel, plan: PruningPlan) -> dict[str, float]:
    """Draw the limits; returns those that are ticked. Each begins at what the current plan has."""
    before, after = model.shape, plan.shape_after
    limits: dict[str, float] = {}
    for name, label, value, full in (
        ("params", "Parameters", count_parameters(after), count_parameters(before)),
        ("macs", f"MACs of one {model.task.batch_item}", count_macs(after), count_macs(before)),
    ):
        suffix, scale = ("G", 1e9) if full >= 2e9 else ("M", 1e6)
        key = f"{name}-{model.source}"
        limit = _limit_field(key, f"{label}, {suffix}", value / scale, full / scale, ticked=name == "params")
        if limit is not None:
            limits[name] = (limit + 5e-5) * scale
    batch = device.batch_of(model)
    times = device.milliseconds(batch, after, before)
    if times is None:
        st.caption("A limit on time needs this device calibrated.")
        return limits
    label = f"Time of a batch of {batch}, ms (estimated)"
    limit = _limit_field(f"ms-{model.source}-{batch}", label, *times, ticked=False)
    return limits if limit is None else {**limits, "latency_ms": limit}


def _limit_field(key: str, label: str, value: float, most: float, *, ticked: bool) -> float | None:
    key = f"limit-{key}"
    one, two = st.columns([0.12, 0.88], vertical_alignment="bottom")
    with one:
        on = st.checkbox(f"Limit {label}", value=ticked, key=key, label_visibility="collapsed", persist_state="session")
    name = f"{label}, at most"
    limit = two.number_input(name, 0.0, float(most), float(value), format="%.4f", key=f"{key}-value", disabled=not on)
    return float(limit) if on and limit > 0 else None


def apply_best(search: Search, chosen: Family) -> None:
    """Solve, and move the sliders to the plan of the chosen family."""
    try:
        with st.spinner("Searching…"):
            result = search.solve_all(chosen)
    except PlanError as error:
        st.warning(plain(error))
        return
    state().budget = result
    model, now, best = search.model, search.now, result.best[chosen].plan
    if model.shape.one_share:
        session().move_to = now.with_percents(percents_of(best))
    else:
        depth = best.shape_after.depth
        now = replace(now, widths="", depth=depth if depth < model.shape.depth else None, order="together")
        session().move_to = what_if_from_widths(whole_widths(best, now.round_to), model.shape, now)
    st.rerun()


def budget_result(model: OpenModel, scores: ImportanceScores | None, plan: PruningPlan) -> None:
    """While the plan is the solver's: how good it is, and what plans of the other families would cost."""
    result = state().budget
    if result is None or result.source != model.source or scores is None:
        return
    best = result.best[result.chosen]
    if best.plan.shape_after != plan.shape_after:
        return
    whole = total_score(scores) or 1.0
    gap = "the least possible, exactly" if best.gap == 0 else f"at most {units.share(best.gap / whole)} above the least"
    st.success(
        f"Best within {_limit_words(result.limits)}, {family_name(model, result.chosen)}: it removes "
        f"{units.share(best.predicted / whole)} of the score, {gap}; found in {1e3 * result.seconds:,.0f} ms. {CAVEAT}",
        icon=":material/target:",
    )
    removed, library = "Score removed, %", model.shape.library
    least = min(other.predicted for other in result.best.values())
    rows = [
        {
            "Among": family_name(model, family),
            removed: 100 * other.predicted / whole,
            "Against the best": other.predicted / least if least > 0 else 1.0,
            "Blocks": other.plan.shape_after.depth,
            "Parameters": other.params,
            "MACs": other.macs,
            f"Stock {library}": other.plan.shape_after.is_uniform,
        }
        | ({} if other.latency_ms is None else {"Time, ms (estimated)": other.latency_ms})
        for family, other in result.best.items()
    ]
    number = st.column_config.NumberColumn
    formats = {
        "Parameters": number(format="localized"),
        "MACs": number(format="localized"),
        removed: number(format="%.3g"),
        "Against the best": number(format="%.2f×", help="The score removed as a multiple of the least."),
    }
    st.dataframe(pd.DataFrame(rows).sort_values(removed), hide_index=True, width="stretch", column_config=formats)


def _limit_words(limits: dict[str, float]) -> str:
    names = {"params": "parameters", "macs": "MACs"}
    words = [f"{units.short(limits[key])} {name}" for key, name in names.items() if key in limits]
    if "latency_ms" in limits:
        words.append(f"{units.figure(limits['latency_ms'])} ms")
    return " and ".join(words)
