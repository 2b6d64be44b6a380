"""Criteria side by side at the sliders' plan: what each keeps, what its cut does to the model, how long it took."""

from __future__ import annotations

import hashlib
from html import escape

import streamlit as st

from pages.services import block_removals, evaluation, jobs, open_model
from pages.services.open_model import OpenModel
from pages.widgets import progress
from upvit_core import units
from upvit_core.figures.theme import TITLES
from upvit_core.importance.criterion_names import CriterionName
from upvit_core.planning.what_if import WhatIf
from upvit_core.records.scores import ImportanceScores
from upvit_core.records.task import Task, task_of

OFFERED = [name.value for name in CriterionName if name not in (CriterionName.KL, CriterionName.REFINE)]
SCORE_IMAGES, TEST_IMAGES = 200, 1000


def panel(model: OpenModel, scores: ImportanceScores, what_if: WhatIf) -> None:
    with st.expander("Criteria side by side", icon=":material/balance:", key="criteria", on_change="rerun") as box:
        if not box.open:
            return
        spec = evaluation.image_spec(model)
        if not model.has_weights or not spec or scores.basis != "channels":
            needs = (
                "scores of channels" if scores.basis != "channels" else "a model with weights"
                if not model.has_weights else task_of(model.shape).wanted
            )  # fmt: skip
            st.html(f'<p class="quiet">Each criterion cuts a copy of the model here. That needs {needs}.</p>')
            return
        st.html(
            '<p class="quiet">The same widths, chosen by different criteria; no training. The first row is the scores '
            f"on this page; the others are scored on {SCORE_IMAGES} {task_of(model.shape).batch_items}.</p>"
        )
        left, right = st.columns([0.8, 0.2], vertical_alignment="bottom")
        chosen = left.multiselect(
            "Criteria", OFFERED, default=[n for n in OFFERED if n != scores.criterion], key="rivals"
        )
        key = _key(model, scores, what_if, spec, tuple(chosen))
        if right.button("Compare", type="primary", key="compare-criteria", disabled=not chosen, width="stretch"):
            start(model, scores, what_if, spec, tuple(chosen))
        job = jobs.find(key)
        with st.container(key="slot-criteria"):
            if job is None:
                st.html('<p class="quiet">The table is of the sliders as they stand; press Compare.</p>')
            elif progress.ready(job):
                table(job.result, task_of(model.shape))


def _key(model: OpenModel, scores: ImportanceScores, what_if: WhatIf, spec: str, names: tuple[str, ...]) -> str:
    plan = what_if.plan(scores, block_removals.records())
    about = f"{open_model.identity(model)} {scores.digest} {plan.digest} {spec} {names}"
    return f"criteria {hashlib.sha256(about.encode()).hexdigest()[:24]}"


def start(model: OpenModel, scores: ImportanceScores, what_if: WhatIf, spec: str, names: tuple[str, ...]) -> jobs.Job:
    """The job that scores by each criterion, cuts and measures; its result is a list of `CriterionResult`."""

    def work(report: jobs.Report) -> object:
        report.say("reading the weights")
        from upvit_core.comparison import compare_criteria

        live = open_model.live(model)
        train, test = (evaluation.images(model, spec, split) for split in ("train", "val"))
        first = scores.criterion
        return compare_criteria(
            live, train, test, [first, *(name for name in names if name != first)], what_if.plan,
            score_images=SCORE_IMAGES, test_images=TEST_IMAGES, known=[scores], report=report,
            on_criterion=lambda name, done, total: report.say(f"{name}, {done + 1} of {total}", done / total),
        )  # fmt: skip

    return jobs.start(_key(model, scores, what_if, spec, names), work, "Comparing criteria")


def table(results: list, task: Task) -> None:
    """Results as a table; those that lose least first."""
    first = results[0]
    components = list(first.overlap)
    heads = [
        "criterion", f"KL, {task.nats}", f"{task.axis} of {first.images:,} {task.samples}", "95 % interval",
        "seconds",
        *(f"{TITLES[component]}: kept as {first.criterion}" for component in components),
    ]  # fmt: skip
    rows = []
    for r in sorted(results, key=lambda r: r.kl):
        cells = [
            r.criterion, f"{r.kl:.3f}", f"{r.value:.{task.digits}f}",
            f"{r.interval[0]:.{task.digits}f} – {r.interval[1]:.{task.digits}f}",
            f"{r.seconds:,.1f}", *(units.percent(r.overlap[component]) for component in components),
        ]  # fmt: skip
        bold = ("<b>", "</b>") if r is first else ("", "")
        rows.append("".join(f"<td>{bold[0]}{escape(cell)}{bold[1]}</td>" for cell in cells))
    top = "".join(f'<th scope="col">{escape(name)}</th>' for name in heads)
    body = "".join(f"<tr>{row}</tr>" for row in rows)
    told = "Right after the cut, least KL first; seconds are what scoring took, where and when it was done"
    st.html(
        f'<div class="scrolls"><table class="plain"><caption>{told}</caption><thead><tr>{top}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )
    head = [
        "criterion",
        "kl_nats",
        task.key,
        f"{task.key}_low",
        f"{task.key}_high",
        "seconds",
        *(f"kept_{c}" for c in components),
    ]
    lines = [",".join(head)]
    for r in results:
        numbers = (r.kl, r.value, *r.interval, r.seconds, *(r.overlap[c] for c in components))
        lines.append(",".join([r.criterion, *(f"{number:.6g}" for number in numbers)]))
    text = "\n".join(lines)
    st.download_button(
        "Table (CSV)", text + "\n", "criteria.csv", "text/csv", key="criteria-csv-file", type="tertiary",
        icon=":material/download:", on_click="ignore",
    )  # fmt: skip
