"""Two plans side by side: numbers, what stays, what one keeps and the other drops; and plans kept under a name."""

from __future__ import annotations

from html import escape

import streamlit as st

from pages.services import block_removals, evaluation, jobs, limits, scoring, slider_state
from pages.services.open_model import OpenModel
from pages.services.plan_commands import commands
from pages.tradeoff import saved_plans, tried_plans
from pages.tradeoff.estimates import stock_words
from pages.tradeoff.saved_plans import Kept
from pages.widgets import charts, progress
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
from upvit_core.records.task import Task, task_of

SLIDERS = "Under the sliders"
MOST_TRIED = 8
Choices = dict[str, Kept]


def choices(model: OpenModel, scores: ImportanceScores, now: WhatIf, plan: PruningPlan) -> Choices:
    """What can be compared: the sliders, plans kept under a name, presets, and plans tried lately."""
    found = {SLIDERS: Kept(now.words, plan, now)}
    for kept in saved_plans.every(model):
        found[f"Saved: {kept.name}"] = kept
    if scores.basis == "channels":
        for name, preset in preset_what_ifs(model.shape).items():
            found[f"Preset {name}"] = Kept(preset.words, preset.plan(scores, block_removals.records()), preset)
        lately = [entry.what_if for entry in tried_plans.tried(model, scores).values()][-MOST_TRIED:]
        for what_if in reversed(lately):
            found.setdefault(
                f"Tried: {what_if.words}", Kept(what_if.words, what_if.plan(scores, block_removals.records()), what_if)
            )
    return found


def panel(model: OpenModel, scores: ImportanceScores, now: WhatIf, plan: PruningPlan, spec: str) -> None:
    with st.expander("Compare two plans", icon=":material/compare_arrows:", key="versus", on_change="rerun") as box:
        if not box.open:
            return
        found = choices(model, scores, now, plan)
        names = list(found)
        for key, start in (("plan-a", names[0]), ("plan-b", names[min(1, len(names) - 1)])):
            told = st.session_state.pop(f"{key}-next", None) or st.session_state.get(key)
            st.session_state[key] = told if told in found else start

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
        _numbers(model, scores, found[one], found[two], spec)
        _pictures(model, scores, found[one], found[two], spec)


def _keep(model: OpenModel, kept: Kept, key: str, place: st.delta_generator.DeltaGenerator) -> None:
    """Save, take away, forget, set the sliders, or bring a file."""
    with place.container(horizontal=True, wrap=True):
        with st.popover("Save…", icon=":material/bookmark:"), st.form(f"keep-{key}", border=False):
            name = st.text_input("Name", value=kept.name[: saved_plans.LONGEST_NAME], key=f"keep-name-{key}")
            if st.form_submit_button("Save"):
                try:
                    saved_plans.save(model, name, kept.plan, kept.what_if)
                    st.session_state[f"plan-{key}-next"] = f"Saved: {' '.join(name.split())}"
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


def _measure(model: OpenModel, kept: Kept, spec: str) -> jobs.Job | None:
    """The preview of a plan: by itself for a small model, else when asked for."""
    if not model.has_weights or not spec:
        return None
    key = evaluation.preview_key(model, kept.plan, spec, repair=kept.repair)
    known = jobs.find(key)
    if known is not None and known.state in ("done", "failed"):
        return known
    if count_macs(model.shape) <= evaluation.AUTOMATIC_MACS or (known is not None and known.active):
        return evaluation.preview(model, kept.plan, spec, repair=kept.repair)
    return None


def _numbers(model: OpenModel, scores: ImportanceScores, a: Kept, b: Kept, spec: str) -> None:
    found = [_measure(model, kept, spec) for kept in (a, b)]
    before, task = model.shape, task_of(model.shape)

    def draw() -> None:
        shapes = [kept.plan.shape_after for kept in (a, b)]
        params, macs = [count_parameters(s) for s in shapes], [count_macs(s) for s in shapes]
        rows = [
            ("Removed", *(kept.what_if.words if kept.what_if else kept.name for kept in (a, b)), ""),
            ("Parameters, counted", *map(units.short, params), _times(params)),
            (f"MACs of one {task.batch_item}, counted", *map(units.short, macs), _times(macs)),
            ("Speed-up from MACs, estimated ○", *(units.times(count_macs(before) / m) for m in macs), ""),
        ]
        if a.plan.basis == b.plan.basis == scores.basis:
            removed = [predicted_loss(scores, kept.plan) for kept in (a, b)]
            told = [f"{value:.3g} {task.nats}" for value in removed]
            rows.append(("Score removed, summed ○", *told, f"{removed[1] - removed[0]:+.2g}"))
            stock = [stock_words(scores, kept.plan, kept.what_if) for kept in (a, b)]
            rows.append((f"Stock {before.library}, at these MACs, estimated ○", *stock, ""))
        rows += _measured_rows(found, task)
        head = "".join(f"<th scope='col'>{name}</th>" for name in ("", "A", "B", "B against A"))
        body = "".join(
            f"<tr><th scope='row'>{escape(first)}</th>{''.join(f'<td>{escape(cell)}</td>' for cell in rest)}</tr>"
            for first, *rest in rows
        )
        st.html(f'<div class="scrolls"><table class="plain"><tr>{head}</tr>{body}</table></div>')

    progress.redraw_when_done(found, draw)
    missing = model.has_weights and spec and None in found
    if missing and st.button("Measure both", icon=":material/speed:", key="versus-measure"):
        for kept in (a, b):
            evaluation.preview(model, kept.plan, spec, repair=kept.repair)
        st.rerun()
    for job in found:
        if job is not None and job.state == "failed":
            st.error(job.error)


def _measured_rows(found: list[jobs.Job | None], task: Task) -> list[tuple[str, str, str, str]]:
    """Top-1 or perplexity, and KL, with their 95 % intervals, as far as they are there."""
    results = [job.result if job is not None and job.state == "done" else None for job in found]
    waiting = ["being measured" if job is not None and job.active else "—" for job in found]
    values, kl = [], []
    for result, otherwise in zip(results, waiting, strict=True):
        told = f"{task.format(task.value(result))} ({task.format_interval(result)})" if result else otherwise
        values.append(told)
        under, over = (result.kl_interval or (result.kl, result.kl)) if result else (0.0, 0.0)
        kl.append(f"{result.kl:.3g} nats ({under:.3g} – {over:.3g})" if result else otherwise)
    gaps = ["", ""]
    if None not in results:
        change = task.value(results[1]) - task.value(results[0])
        gaps = [task.gap(change), f"{results[1].kl - results[0].kl:+.2g} nats"]
    images = next((f", {r.images:,} {task.samples}" for r in results if r), "")
    return [
        (f"{task.name} now, measured ●{images}", *values, gaps[0]),
        ("KL to the original, measured ●", *kl, gaps[1]),
    ]


def _times(pair: list[int]) -> str:
    return units.times(pair[1] / pair[0])


def _pictures(model: OpenModel, scores: ImportanceScores, a: Kept, b: Kept, spec: str) -> None:
    bases = {kept.plan.basis for kept in (a, b)}
    by_basis: dict[str, ImportanceScores] = {scores.basis: scores}
    if "channels" in bases and scores.basis == "directions" and (plain := scoring.current(model)) is not None:
        by_basis[plain.basis] = plain
    if "directions" in bases and "directions" not in by_basis:
        job = scoring.directions(model, spec)
        if job.state == "done":
            by_basis["directions"] = job.result
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
