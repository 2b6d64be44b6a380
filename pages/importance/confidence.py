"""How far the scores on the page can be trusted: their errors against the cut, and how other scores see the same."""

from __future__ import annotations

import streamlit as st

from pages.services import block_removals, scoring
from pages.services.open_model import OpenModel
from pages.widgets import charts
from pages.widgets.cards import Card, cards
from upvit_core import units
from upvit_core.figures.agreement import rank_against_rank
from upvit_core.figures.theme import TITLES
from upvit_core.importance.agreement import compare, uncertain
from upvit_core.planning.what_if import WhatIf
from upvit_core.records.criteria import CRITERIA
from upvit_core.records.plan import PruningPlan
from upvit_core.records.scores import ImportanceScores
from upvit_core.records.task import criterion_name, task_of


def certainty(scores: ImportanceScores, plan: PruningPlan) -> None:
    """How the scores were made, and how many channels their errors leave undecided."""
    with st.container(key="facts-trust"):
        cards([_images(scores), _near_the_cut(scores, plan), _way(scores)])


def _images(scores: ImportanceScores) -> Card:
    notes = scores.notes
    if (stability := notes.get("stability")) is not None:
        asked = 1 - float(notes.get("tolerance", 0))
        reached = (
            "as asked"
            if notes.get("stable")
            else f"{units.percent(asked)} was asked, the {task_of(scores.shape).batch_items} ran out"
        )
        note = f"half as many keep {units.percent(stability, 1)} the same channels ({reached})"
    else:
        note = f"seed {scores.seed}" if scores.seed is not None and scores.data_digest else scores.data
    items = task_of(scores.shape).batch_items
    return Card(
        items.capitalize(), f"{scores.images:,}" if scores.images else "none", note if scores.images else "not needed"
    )


def _near_the_cut(scores: ImportanceScores, plan: PruningPlan) -> Card:
    found = uncertain(scores, plan)
    if not found:
        return Card("Undecided at this cut", "not known", "these scores come without standard errors")
    count, of = (sum(pair[i] for pair in found.values()) for i in (0, 1))
    parts = " · ".join(f"{TITLES[component]} {pair[0]:,}" for component, pair in found.items())  # type: ignore[index]
    return Card("Undecided at this cut", f"{count:,} of {of:,}", f"less than 2 standard errors from it: {parts}")


def _way(scores: ImportanceScores) -> Card:
    notes = scores.notes
    share = notes.get("trace_share")
    directions = ""
    if share is not None:
        kept = f"{units.percent(share, 1)} of the Fisher trace"
        directions = (
            f"{notes.get('num_directions')} directions {task_of(scores.shape).nats.removeprefix('nats ')}, {kept}"
        )
    if (exact := notes.get("exact_share")) is not None:
        return Card("Exact", units.percent(exact), f"of the channels; the others from {directions}")
    if scores.criterion.startswith("kl"):
        return Card("Exact", "100 %", "every channel was removed by itself")
    if share is not None:
        return Card("Exact", "0 %", f"estimated from {directions}")
    return Card("Exact", "no", f"{criterion_name(scores)} does not ask what the model says")


def agreement(model: OpenModel, scores: ImportanceScores, what_if: WhatIf) -> None:
    """These scores against others of the same model: rank correlation, what both keep, rank against rank."""
    others = {
        name: record
        for name, record in scoring.records(model).items()
        if record.digest != scores.digest and record.basis == scores.basis
    }
    with st.expander("Do other scores agree?", icon=":material/join_inner:", key="agreement", on_change="rerun") as box:
        if not box.open:
            return
        if not others:
            st.html(
                '<p class="quiet">There is only one set of scores. Make others with <b>Score…</b>: <i>refine</i> shows '
                "an estimate at once and then fills in exact values near the cut.</p>"
            )
            return
        names = list(others)
        if st.session_state.get("agree-with") not in others:
            st.session_state["agree-with"] = _first(scores, others)
        name = st.selectbox(
            "Compared with", names, key="agree-with", format_func=lambda name: scoring.label(name, others[name])
        )
        other = others[name]
        plan, its = what_if.plan(scores, block_removals.records()), what_if.plan(other, block_removals.records())
        found = {part.component: part for part in compare(scores, other, plan, its)}
        own, theirs = criterion_name(scores), criterion_name(other)
        if own == theirs:
            own, theirs = f"these {own}", f"the other {theirs}"
        exact = scores.notes.get("exact_channels")
        for component, place in zip(scores.shape.components, st.columns(len(scores.shape.components)), strict=True):
            part = found[component]
            with place:
                lowest = f", lowest block {part.spearman_lowest:.3f}" if component != "residual" else ""
                st.html(
                    f'<h3 class="part {component}">{TITLES[component]}</h3><p class="quiet">Spearman '
                    f"<b>{part.spearman:.3f}</b>{lowest} · <b>{units.percent(part.overlap, 1)}</b> of what these keep "
                    "at the sliders, those keep too</p>"
                )
                chart = rank_against_rank(
                    scores, other, component, charts.theme(), names=(own, theirs), exact=exact, height=290
                )
                charts.show(chart, f"{component}-ranks")
        told = "Colour: exact by now; grey: still the estimate. " if exact else ""
        st.html(
            f'<p class="quiet">{told}One point a channel, placed inside its block: 100 % is the most important, on the '
            "dashed line both agree.</p>"
        )


def _first(scores: ImportanceScores, others: dict[str, ImportanceScores]) -> str:
    """What is worth comparing first: an estimate with the exact, refined scores with their own estimate."""
    known = CRITERIA.get(scores.criterion)
    wanted = "fisher" if known and known.kl == "refined" else "kl"
    return next((name for name, record in others.items() if record.criterion == wanted), next(iter(others)))
