"""Two plans side by side: numbers, what stays, what one keeps and the other drops; and plans kept under a name."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

import streamlit as st

from pages.services import block_removals, evaluation, jobs, limits, scoring, slider_state
from pages.services.open_model import OpenModel
from pages.services.plan_commands import commands
from pages.tradeoff import saved_plans, tried_plans
from pages.tradeoff.estimates import stock_words
from pages.tradeoff.saved_plans import SavedPlan
from pages.tradeoff.state import state
from pages.widgets import charts, progress
from pages.widgets.tables import table
from upvit_core import units
from upvit_core.errors import PlanError, UPViTError
from upvit_core.figures.heatmaps import strips
from upvit_core.figures.plan_difference import versus
from upvit_core.planning.curves import predicted_loss
from upvit_core.planning.difference import difference
from upvit_core.planning.what_if import WhatIf, preset_what_ifs
from upvit_core.profiling.macs import count_macs, count_parameters
from upvit_core.records.plan import PruningPlan
from upvit_core.records.scores import ImportanceScores
from upvit_core.records.task import Task

if TYPE_CHECKING:
    from upvit_core.evaluation import Evaluation

SLIDERS = "Under the sliders"
MOST_TRIED = 8
Choices = dict[str, SavedPlan]


def choices(model: OpenModel, scores: ImportanceScores, now: WhatIf, plan: PruningPlan) -> Choices:
    """What can be compared: the sliders, plans kept under a name, presets, and plans tried lately."""
    found = {SLIDERS: SavedPlan(now.words, plan, now)}
    for kept in saved_plans.every(model):
        found[f"Saved: {kept.name}"] = kept
    if scores.basis == "channels":
        for name, preset in preset_what_ifs(model.shape).items():
            found[f"Preset {name}"] = SavedPlan(preset.words, preset.plan(scores, block_removals.records()), preset)
        lately = [entry.what_if for entry in tried_plans.tried(model, scores).values()][-MOST_TRIED:]
        for what_if in reversed(lately):
            found.setdefault(
                f"Tried: {what_if.words}",
                SavedPlan(what_if.words, what_if.plan(scores, block_removals.records()), what_if),
            )
    return found


def compare_panel(model: OpenModel, scores: ImportanceScores, now: WhatIf, plan: PruningPlan) -> None:
    with st.expander("Compare two plans", icon=":material/compare_arrows:", key="versus", on_change="rerun") as box:
        if not box.open:
            return
        found = choices(model, scores, now, plan)
        names = list(found)
        for key, start in (("plan-a", names[0]), ("plan-b", names[min(1, len(names) - 1)])):
            chosen = state().compared.pop(key, None) or st.session_state.get(key)
            st.session_state[key] = chosen if chosen in found else start

        def swap() -> None:
            st.session_state["plan-a"], st.session_state["plan-b"] = (
                st.session_state["plan-b"], st.session_state["plan-a"],
            )  # fmt: skip

        left, middle, right = st.columns([0.44, 0.12, 0.44], vertical_alignment="bottom")
        one = left.selectbox("A", names, key="plan-a")
        middle.button("Swap", icon=":material/swap_horiz:", on_click=swap, key="swap", width="stretch")
        two = right.selectbox("B", names, key="plan-b")
        _keep(model, found[one], "a", left)
        _keep(model, found[two], "b", right)
        _numbers(model, scores, found[one], found[two])
        _pictures(model, scores, found[one], found[two])


def _keep(model: OpenModel, kept: SavedPlan, key: str, place: st.delta_generator.DeltaGenerator) -> None:
    """Save, take away, forget, set the sliders, or bring a file."""
    with place.container(horizontal=True, wrap=True):
        with st.popover("Save…", icon=":material/bookmark:"), st.form(f"keep-{key}", border=False):
            name = st.text_input("Name", value=kept.name[: saved_plans.LONGEST_NAME], key=f"keep-name-{key}")
            if st.form_submit_button("Save"):
                try:
                    saved_plans.save(model, name, kept.plan, kept.what_if)
                    state().compared[f"plan-{key}"] = f"Saved: {' '.join(name.split())}"
                    st.rerun()
                except UPViTError as error:
                    st.error(str(error))
        st.download_button(
            "File", data=lambda: saved_plans.content(kept.name, kept.plan, kept.what_if), file_name="plan.json",
            mime="application/json", icon=":material/download:", on_click="ignore", key=f"keep-file-{key}",
            help="A plan.json: `python -m upvit_core prune MODEL plan.json` cuts by it, and another studio opens it.",
        )  # fmt: skip
        if kept.what_if is not None:
            st.button("Set the sliders", icon=":material/tune:", on_click=slider_state.set_to, args=(kept.what_if,),
                      key=f"keep-set-{key}")  # fmt: skip
        if any(kept.name == other.name for other in saved_plans.every(model)):
            st.button("Forget", icon=":material/delete:", on_click=saved_plans.remove, args=(model, kept.name),
                      key=f"keep-forget-{key}")  # fmt: skip
        if not limits.limits().uploads:
            return
        with st.popover("Bring…", icon=":material/upload:"):
            file = st.file_uploader("A plan.json", "json", key=f"keep-bring-{key}")
            if file is not None:
                try:
                    brought = saved_plans.read(file.getvalue(), file.name.removesuffix(".json"), model.shape)
                    if st.button(f"Keep {brought.name}", key=f"keep-brought-{key}"):
                        saved_plans.save(model, brought.name, brought.plan, brought.what_if)
                        st.rerun()
                except PlanError as error:
                    st.error(str(error))


def _preview(model: OpenModel, kept: SavedPlan) -> jobs.Job[Evaluation] | None:
    """The preview of a plan: by itself for a small model, else when asked for."""
    if not model.can_measure:
        return None
    if evaluation.measures_at_once(model):
        return evaluation.preview(model, kept.plan, repair=kept.repair)
    return jobs.find(evaluation.preview_key(model, kept.plan, repair=kept.repair))


def _numbers(model: OpenModel, scores: ImportanceScores, a: SavedPlan, b: SavedPlan) -> None:
    found = [_preview(model, kept) for kept in (a, b)]
    before, task = model.shape, model.task

    def draw() -> None:
        shapes = [kept.plan.shape_after for kept in (a, b)]
        params, macs = [count_parameters(s) for s in shapes], [count_macs(s) for s in shapes]
        rows: list[tuple[str, ...]] = [
            ("Removed", *(kept.what_if.words if kept.what_if else kept.name for kept in (a, b)), ""),
            ("Parameters, counted", *map(units.short, params), _times(params)),
            (f"MACs of one {task.batch_item}, counted", *map(units.short, macs), _times(macs)),
            ("Speed-up from MACs, estimated ○", *(units.times(count_macs(before) / m) for m in macs), ""),
        ]
        if a.plan.basis == b.plan.basis == scores.basis:
            removed = [predicted_loss(scores, kept.plan) for kept in (a, b)]
            told = [f"{value:.3g} {task.nats}" for value in removed]
            rows.append(("Score removed, summed ○", *told, f"{removed[1] - removed[0]:+.2g}"))
            stock = [stock_words(model, scores, kept.plan, kept.what_if) for kept in (a, b)]
            rows.append((f"Stock {before.library}, at these MACs, estimated ○", *stock, ""))
        rows += _measured_rows(found, task)
        table(("", "A", "B", "B against A"), rows, row_heads=True)

    progress.redraw_when_done(found, draw)
    missing = model.can_measure and None in found
    if missing and st.button("Measure both", icon=":material/speed:", key="versus-measure"):
        for kept in (a, b):
            evaluation.preview(model, kept.plan, repair=kept.repair)
        st.rerun()
    for job in found:
        if job is not None and not job.active:
            progress.show(job)


def _measured_rows(found: list[jobs.Job[Evaluation] | None], task: Task) -> list[tuple[str, ...]]:
    """Top-1 or perplexity, and KL, with their 95 % intervals, as far as they are there."""
    results = [jobs.result_of(job) for job in found]
    waiting = ["being measured" if job is not None and job.active else "—" for job in found]
    values, kl = [], []
    for result, otherwise in zip(results, waiting, strict=True):
        told = f"{task.format(task.value(result))} ({task.format_interval(result)})" if result else otherwise
        values.append(told)
        under, over = (result.kl_interval or (result.kl, result.kl)) if result else (0.0, 0.0)
        kl.append(f"{result.kl:.3g} nats ({under:.3g} – {over:.3g})" if result else otherwise)
    gaps, (a, b) = ("", ""), results
    if a is not None and b is not None:
        gaps = task.gap(task.value(b) - task.value(a)), f"{(b.kl or 0.0) - (a.kl or 0.0):+.2g} nats"
    images = next((f", {r.images:,} {task.samples}" for r in results if r), "")
    return [
        (f"{task.name} now, measured ●{images}", *values, gaps[0]),
        ("KL to the original, measured ●", *kl, gaps[1]),
    ]


def _times(pair: list[int]) -> str:
    return units.times(pair[1] / pair[0])


def _pictures(model: OpenModel, scores: ImportanceScores, a: SavedPlan, b: SavedPlan) -> None:
    bases = {kept.plan.basis for kept in (a, b)}
    by_basis: dict[str, ImportanceScores] = {scores.basis: scores}
    if "channels" in bases and scores.basis == "directions" and (plain := scoring.current(model)) is not None:
        by_basis[plain.basis] = plain
    if "directions" in bases - by_basis.keys() and (found := scoring.directions(model).result) is not None:
        by_basis["directions"] = found
    if len(bases) == 1 and a.plan.basis in by_basis:
        charts.show(versus(by_basis[a.plan.basis], difference(a.plan, b.plan), charts.theme()), "versus-difference")
    elif len(bases) > 1:
        st.caption("One plan counts channels, the other directions: they have no channel in common to compare.")
    for place, kept, name in zip(st.columns(2, gap="medium"), (a, b), ("A", "B"), strict=True):
        with place:
            st.html(f'<h3 class="part">{name}: {escape(kept.name)}</h3>')
            if kept.plan.basis in by_basis:
                charts.show(strips(by_basis[kept.plan.basis], kept.plan, charts.theme()), f"versus-{name}")
            else:
                st.caption("The picture needs the scores of directions; they are being found.")


def command_button(model: OpenModel, scores: ImportanceScores | None, what_if: WhatIf, plan: PruningPlan) -> None:
    with st.popover(
        "Copy command", icon=":material/terminal:", width="stretch", help="For a machine without a browser.",
        key="command-box", on_change="rerun",
    ) as box:  # fmt: skip
        if not box.open:
            return
        st.code(commands(model, scores, what_if, plan), language=None, wrap_lines=True, width=560)
        if not model.has_weights:
            st.caption(
                "MODEL is a checkpoint of this shape, IMAGES a folder of classes: this app has only its scores open."
            )
