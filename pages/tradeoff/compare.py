"""Two plans side by side: their numbers, the channels that only one of them keeps, and plans saved under a name."""

from __future__ import annotations

from dataclasses import replace
from html import escape
from typing import TYPE_CHECKING

import streamlit as st

from pages.services import block_removals, evaluation, jobs, limits, scoring, slider_state
from pages.services.open_model import OpenModel
from pages.tradeoff import all_plans, saved_plans, tried_plans
from pages.tradeoff.saved_plans import SavedPlan
from pages.tradeoff.state import state
from pages.widgets import charts, progress
from pages.widgets.plain import plain
from pages.widgets.tables import table
from upvit_core import units
from upvit_core.errors import PlanError, UPViTError
from upvit_core.figures.heatmaps import draw_kept_strips
from upvit_core.figures.plan_difference import draw_plan_difference
from upvit_core.planning.curves import share_removed
from upvit_core.planning.difference import difference
from upvit_core.planning.what_if import WhatIf, preset_what_ifs
from upvit_core.profiling.macs import count_macs, count_parameters
from upvit_core.records.plan import PruningPlan
from upvit_core.records.scores import ImportanceScores
from upvit_core.records.task import Task

if TYPE_CHECKING:
    from upvit_core.evaluation import Evaluation

SLIDERS = "This plan"
SHOWN = ("Two plans", "All plans and runs")
MOST_TRIED = 8
PLAN_A, PLAN_B = "plan-a", "plan-b"  # keys of the two choices
Pair = tuple[SavedPlan, SavedPlan]


def compare_panel(model: OpenModel, scores: ImportanceScores, now: WhatIf, plan: PruningPlan) -> None:
    how = st.segmented_control(
        "Show",
        SHOWN,
        default=SHOWN[0],
        required=True,
        key="compared",
        bind="query-params",
        label_visibility="collapsed",
    )
    if how == SHOWN[1]:
        all_plans.draw(model, scores, now)
        return
    plans = comparable_plans(model, scores, now, plan)
    names = list(plans)
    for key, default in ((PLAN_A, names[0]), (PLAN_B, names[min(1, len(names) - 1)])):
        chosen = state().compared.pop(key, None) or st.session_state.get(key)
        st.session_state[key] = chosen if chosen in plans else default

    def swap() -> None:
        now = st.session_state
        now[PLAN_A], now[PLAN_B] = now[PLAN_B], now[PLAN_A]

    left, middle, right = st.columns([0.39, 0.22, 0.39], vertical_alignment="bottom")
    a = plans[left.selectbox("A", names, key=PLAN_A)]
    middle.button("Swap", icon=":material/swap_horiz:", on_click=swap, key="swap", width="stretch")
    b = plans[right.selectbox("B", names, key=PLAN_B)]
    for side, shown, key in ((left, a, PLAN_A), (right, b, PLAN_B)):
        with side.container(horizontal=True, wrap=True):
            _plan_buttons(model, shown, key)
    _draw_numbers(model, scores, (a, b))
    _draw_pictures(model, scores, (a, b))


def comparable_plans(
    model: OpenModel, scores: ImportanceScores, now: WhatIf, plan: PruningPlan
) -> dict[str, SavedPlan]:
    """The sliders' plan, plans saved under a name, presets, and plans tried lately."""

    def planned(what_if: WhatIf) -> SavedPlan:
        return SavedPlan(what_if.words, what_if.plan(scores, block_removals.records()), what_if)

    plans = {SLIDERS: SavedPlan(now.words, plan, now)}
    plans |= {f"Saved: {saved.name}": saved for saved in saved_plans.all_saved(model)}
    for name, preset in preset_what_ifs(model.shape, slider_state.start_of(model)).items():
        plans[f"Preset {name}"] = planned(replace(preset, basis=now.basis, repair=now.repair))
    lately = [entry.what_if for entry in tried_plans.all_tried(model, scores).values()][-MOST_TRIED:]
    plans |= {f"Tried: {what_if.words}": planned(what_if) for what_if in reversed(lately)}
    return plans


def _plan_buttons(model: OpenModel, shown: SavedPlan, key: str) -> None:
    """Save, download, set the sliders, forget, or bring a file."""
    with st.popover("Save…", icon=":material/bookmark:"), st.form(f"{key}-save", border=False):
        name = st.text_input("Name", value=shown.name[: saved_plans.LONGEST_NAME], key=f"{key}-name")
        if st.form_submit_button("Save"):
            try:
                saved_plans.save(model, name, shown.plan, shown.what_if)
                state().compared[key] = f"Saved: {' '.join(name.split())}"
                st.rerun()
            except UPViTError as error:
                st.error(plain(error))
    st.download_button(
        "File",
        data=lambda: saved_plans.file_content(shown.name, shown.plan, shown.what_if),
        file_name="plan.json",
        mime="application/json",
        icon=":material/download:",
        on_click="ignore",
        key=f"{key}-file",
        help="A plan.json: `python -m upvit_core prune MODEL plan.json` cuts by it, and another studio opens it.",
    )
    if (what_if := shown.what_if) is not None:
        set_to = slider_state.set_to
        st.button("Set the sliders", icon=":material/tune:", on_click=set_to, args=(what_if,), key=f"{key}-set")
    if any(shown.name == other.name for other in saved_plans.all_saved(model)):
        remove = saved_plans.remove
        st.button("Forget", icon=":material/delete:", on_click=remove, args=(model, shown.name), key=f"{key}-forget")
    if limits.limits().uploads:
        with st.popover("Load file…", icon=":material/upload:"):
            _bring_file(model, key)


def _bring_file(model: OpenModel, key: str) -> None:
    file = st.file_uploader("A plan.json", "json", key=f"{key}-bring")
    if file is None:
        return
    try:
        brought = saved_plans.read(file.getvalue(), file.name.removesuffix(".json"), model.shape)
        if st.button(f"Keep {plain(brought.name)}", key=f"{key}-keep"):
            saved_plans.save(model, brought.name, brought.plan, brought.what_if)
            st.rerun()
    except PlanError as error:
        st.error(plain(error))


def _preview(model: OpenModel, shown: SavedPlan) -> jobs.Job[Evaluation] | None:
    """The job that measures a plan: started for a small model, else where it was asked for."""
    if not model.can_measure:
        return None
    if evaluation.measures_at_once(model):
        return evaluation.preview(model, shown.plan, repair=shown.repair)
    return jobs.find(evaluation.preview_key(model, shown.plan, repair=shown.repair))


def _draw_numbers(model: OpenModel, scores: ImportanceScores, pair: Pair) -> None:
    previews = [_preview(model, shown) for shown in pair]
    rows = _counted_rows(model, scores, pair)

    def draw() -> None:
        table(("", "A", "B", "B against A"), rows + _measured_rows(previews, model.task), row_heads=True)

    progress.redraw_when_done(previews, draw)
    missing = model.can_measure and None in previews
    if missing and st.button("Measure both", icon=":material/speed:", key="versus-measure"):
        for shown in pair:
            evaluation.preview(model, shown.plan, repair=shown.repair)
        st.rerun()
    for job in previews:
        if job is not None and not job.active:
            progress.show(job)


def _counted_rows(model: OpenModel, scores: ImportanceScores, pair: Pair) -> list[tuple[str, ...]]:
    task, shapes = model.task, [shown.plan.shape_after for shown in pair]
    params, macs = [count_parameters(s) for s in shapes], [count_macs(s) for s in shapes]
    rows: list[tuple[str, ...]] = [
        ("Removed", *(shown.what_if.words if shown.what_if else shown.name for shown in pair), ""),
        ("Parameters, counted", *map(units.short, params), units.times(params[1] / params[0])),
        (f"MACs of one {task.batch_item}, counted", *map(units.short, macs), units.times(macs[1] / macs[0])),
    ]
    opens = ["✓" if shape.is_uniform else "no" for shape in shapes]
    rows.append((f"Loads in plain {model.shape.library}", *opens, ""))
    if all(shown.plan.basis == scores.basis for shown in pair):
        removed = [share_removed(scores, shown.plan) for shown in pair]
        rows.append(("Share of the score removed, which is no accuracy", *map(units.share, removed), ""))
    return rows


def _measured_rows(previews: list[jobs.Job[Evaluation] | None], task: Task) -> list[tuple[str, ...]]:
    """Top-1 or perplexity, and KL, with their 95 % intervals, as far as they are measured."""
    values, divergences = [], []
    for job in previews:
        if (result := jobs.result_of(job)) is None:
            values.append("being measured" if job is not None and job.active else "—")
            divergences.append(values[-1])
            continue
        low, high = result.kl_interval or (result.kl, result.kl)
        values.append(f"{task.format(task.value(result))} ({task.format_interval(result)})")
        divergences.append(f"{result.kl:.3g} nats ({low:.3g} – {high:.3g})")
    a, b = (jobs.result_of(job) for job in previews)
    gaps = ("", "")
    if a is not None and b is not None:
        gaps = task.gap(task.value(b) - task.value(a)), f"{(b.kl or 0.0) - (a.kl or 0.0):+.2g} nats"
    images = next((f", {result.images:,} {task.samples}" for result in (a, b) if result), "")
    cosines = [result.cosine if result else None for result in (a, b)]
    alike = ("Mean cosine to the original, measured ●", *("—" if c is None else f"{c:.3f}" for c in cosines), "")
    return [
        (f"{task.name} now, measured ●{images}", *values, gaps[0]),
        ("KL to the original, measured ●", *divergences, gaps[1]),
        *([alike] if any(cosine is not None for cosine in cosines) else []),
    ]


def _draw_pictures(model: OpenModel, scores: ImportanceScores, pair: Pair) -> None:
    a, b = pair
    bases = {shown.plan.basis for shown in pair}
    by_basis: dict[str, ImportanceScores] = {scores.basis: scores}
    if "channels" in bases and scores.basis == "directions" and (plain := scoring.current(model)) is not None:
        by_basis[plain.basis] = plain
    if "directions" in bases - by_basis.keys() and (record := scoring.directions(model).result) is not None:
        by_basis["directions"] = record
    if len(bases) == 1 and a.plan.basis in by_basis:
        charts.show(
            draw_plan_difference(by_basis[a.plan.basis], difference(a.plan, b.plan), charts.theme()),
            "versus-difference",
        )
    elif len(bases) > 1:
        st.caption("One plan counts channels, the other directions: they have no channel in common to compare.")
    for place, shown, name in zip(st.columns(2, gap="medium"), pair, ("A", "B"), strict=True):
        with place:
            st.html(f'<h3 class="part">{name}: {escape(shown.name)}</h3>')
            if shown.plan.basis in by_basis:
                charts.show(draw_kept_strips(by_basis[shown.plan.basis], shown.plan, charts.theme()), f"versus-{name}")
            else:
                st.caption("The picture needs the scores of directions; they are being computed.")
