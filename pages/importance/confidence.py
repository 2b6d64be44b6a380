"""Confidence in the scores shown: standard errors at the cut, and agreement with other scores of the model."""

from html import escape

import streamlit as st

from pages.services import block_removals, scoring
from pages.services.open_model import OpenModel
from pages.widgets import charts
from upvit_core import units
from upvit_core.figures.agreement import rank_against_rank
from upvit_core.figures.theme import TITLES
from upvit_core.importance.agreement import compare, uncertain
from upvit_core.planning.what_if import WhatIf
from upvit_core.records.criteria import kl_of
from upvit_core.records.plan import PruningPlan
from upvit_core.records.scores import ImportanceScores
from upvit_core.records.task import criterion_name, task_of


def certainty(scores: ImportanceScores, plan: PruningPlan) -> None:
    """A line on how the scores were made, and how many channels their errors leave too close to call."""
    facts = (_images(scores), _near_the_cut(scores, plan), _exactness(scores))
    line = " · ".join(f"{name}: <b>{escape(value)}</b> ({escape(note)})" for name, value, note in facts)
    st.html(f'<p class="quiet">{line}</p>')


def _images(scores: ImportanceScores) -> tuple[str, str, str]:
    notes, items = scores.notes, task_of(scores.shape).batch_items
    if not scores.images:
        return items.capitalize(), "none", "not needed"
    if (stability := notes.get("stability")) is not None:
        wanted = units.percent(1 - float(notes.get("tolerance", 0)))
        reached = "as wanted" if notes.get("stable") else f"wanted: {wanted}, but the {items} ran out"
        note = f"half as many keep {units.percent(stability, 1)} of the same channels ({reached})"
    else:
        note = f"seed {scores.seed}" if scores.seed is not None and scores.data_digest else scores.data
    return items.capitalize(), f"{scores.images:,}", note


def _near_the_cut(scores: ImportanceScores, plan: PruningPlan) -> tuple[str, str, str]:
    undecided = uncertain(scores, plan)
    if not undecided:
        return "Too close to call at this cut", "unknown", "these scores have no standard errors"
    count, of = (sum(pair[i] for pair in undecided.values()) for i in (0, 1))
    parts = " · ".join(f"{TITLES[component]} {pair[0]:,}" for component, pair in undecided.items())  # type: ignore[index]
    return "Too close to call at this cut", f"{count:,} of {of:,}", f"less than 2 standard errors from the cut: {parts}"


def _exactness(scores: ImportanceScores) -> tuple[str, str, str]:
    notes, directions = scores.notes, ""
    if (share := notes.get("trace_share")) is not None:
        each = task_of(scores.shape).nats.removeprefix("nats ")
        directions = f"{notes.get('num_directions')} directions {each}, {units.percent(share, 1)} of the Fisher trace"
    if (exact := notes.get("exact_share")) is not None:
        return "Exact", units.percent(exact), f"of the channels; the others from {directions}"
    if kl_of(scores.criterion) == "exact":
        return "Exact", "100 %", "each channel was removed alone"
    if share is not None:
        return "Exact", "0 %", f"estimated from {directions}"
    return "Exact", "no", f"{criterion_name(scores)} does not use the model's answers"


def agreement(model: OpenModel, scores: ImportanceScores, what_if: WhatIf) -> None:
    """Compare these scores with others of the same model: rank correlation, channels kept by both, rank plots."""
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
                "an estimate at once, then computes exact values near the cut.</p>"
            )
            return
        names = list(others)
        if st.session_state.get("agree-with") not in others:
            st.session_state["agree-with"] = _first(scores, others)
        name = st.selectbox(
            "Compared with", names, key="agree-with", format_func=lambda name: scoring.label(name, others[name])
        )
        other = others[name]
        plans = [what_if.plan(record, block_removals.records()) for record in (scores, other)]
        parts = {part.component: part for part in compare(scores, other, *plans)}
        names_drawn = criterion_name(scores), criterion_name(other)
        if names_drawn[0] == names_drawn[1]:
            names_drawn = f"these {names_drawn[0]}", f"the other {names_drawn[1]}"
        exact = scores.notes.get("exact_channels")
        for component, column in zip(scores.shape.components, st.columns(len(scores.shape.components)), strict=True):
            part = parts[component]
            with column:
                lowest = f", lowest block {part.spearman_lowest:.3f}" if component != "residual" else ""
                st.html(
                    f'<h3 class="part {component}">{TITLES[component]}</h3><p class="quiet">Spearman '
                    f"<b>{part.spearman:.3f}</b>{lowest} · the others keep "
                    f"<b>{units.percent(part.overlap, 1)}</b> of the same channels</p>"
                )
                chart = rank_against_rank(
                    scores, other, component, charts.theme(), names=names_drawn, exact=exact, height=290
                )
                charts.show(chart, f"{component}-ranks")
        colours = "Colour: exact by now; grey: still the estimate. " if exact else ""
        st.html(
            f'<p class="quiet">{colours}One point a channel, ranked inside its block: 100 % is the most important; on '
            "the dashed line both agree.</p>"
        )


def _first(scores: ImportanceScores, others: dict[str, ImportanceScores]) -> str:
    """The scores to compare with first: exact ones for an estimate, the estimate for refined scores."""
    wanted = "estimated" if kl_of(scores.criterion) == "refined" else "exact"
    of_kind = (name for name, record in others.items() if kl_of(record.criterion) == wanted)
    return next(of_kind, next(iter(others)))
