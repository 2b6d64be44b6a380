"""Criteria side by side at the ratios set: channels kept, accuracy and KL after the cut, seconds to score."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd
import streamlit as st

from pages.services import block_removals, jobs
from pages.services.open_model import OpenModel
from pages.widgets import progress
from pages.widgets.tables import table
from upvit_core import units
from upvit_core.figures.theme import TITLES
from upvit_core.files import digest
from upvit_core.planning.what_if import WhatIf
from upvit_core.records.criteria import BY_LABEL, CRITERIA
from upvit_core.records.scores import ImportanceScores
from upvit_core.records.task import Task

if TYPE_CHECKING:
    from upvit_core.comparison import CriterionResult

OFFERED = [name for name, entry in CRITERIA.items() if entry.kl not in ("exact", "refined")]
SCORE_IMAGES, TEST_IMAGES = 200, 1000


def panel(model: OpenModel, scores: ImportanceScores, what_if: WhatIf) -> None:
    with st.expander("Criteria side by side", icon=":material/balance:", key="criteria", on_change="rerun") as box:
        if not box.open:
            return
        if not model.can_measure or scores.basis != "channels":
            needs = model.task.wanted if model.has_weights else "a model with weights"
            needs = "scores of channels" if scores.basis != "channels" else needs
            st.html(f'<p class="quiet">Each criterion cuts a copy of the model here. That needs {needs}.</p>')
            return
        st.html(
            '<p class="quiet">The same widths, chosen by different criteria; no training. The first row is the scores '
            f"on this page; the others are scored on {SCORE_IMAGES} {model.task.batch_items}.</p>"
        )
        left, right = st.columns([0.8, 0.2], vertical_alignment="bottom")
        others = [name for name in OFFERED if name != scores.criterion]
        chosen = tuple(left.multiselect("Criteria", OFFERED, default=others, key="rivals"))
        if right.button("Compare", type="primary", key="compare-criteria", disabled=not chosen, width="stretch"):
            start_comparison(model, scores, what_if, chosen)
        job = jobs.find(_key(model, scores, what_if, chosen))
        with st.container(key="slot-criteria"):
            if job is None:
                st.html('<p class="quiet">Press Compare for a table at the ratios set.</p>')
            elif (results := progress.show(job)) is not None:
                criteria_table(results, model.task)


def _key(model: OpenModel, scores: ImportanceScores, what_if: WhatIf, names: tuple[str, ...]) -> str:
    plan = what_if.plan(scores, block_removals.records())
    return f"criteria {digest(f'{model.data_key} {scores.digest} {plan.digest} {names}', 24)}"


def start_comparison(
    model: OpenModel, scores: ImportanceScores, what_if: WhatIf, names: tuple[str, ...]
) -> jobs.Job[list[CriterionResult]]:
    """The job that scores by each criterion, cuts the model and measures the result."""

    def work(report: jobs.Report) -> list[CriterionResult]:
        report.step("reading the weights")
        from upvit_core.comparison import compare_criteria

        labelled = not BY_LABEL.isdisjoint({scores.criterion, *names})
        train, test = model.images("train", labelled=labelled, apart=True), model.images("val", apart=True)
        weights = model.weights()
        return compare_criteria(
            weights,
            train,
            test,
            list(dict.fromkeys((scores.criterion, *names))),
            what_if.plan,
            score_images=SCORE_IMAGES,
            test_images=TEST_IMAGES,
            known=[scores],
            report=report,
            on_criterion=lambda name, done, total: report.step(f"{name}, {done + 1} of {total}", done / total),
        )

    return jobs.start(_key(model, scores, what_if, names), work, "Comparing criteria")


def criteria_table(results: list[CriterionResult], task: Task) -> None:
    """Draw the results, least KL first, with a CSV file."""
    first, digits = results[0], task.digits
    components = [component for component in TITLES if component in first.overlap]
    head = (
        "criterion",
        f"KL, {task.nats}",
        f"{task.axis} of {first.images:,} {task.samples}",
        "95 % interval",
        "seconds",
        *(f"{TITLES[component]}: kept as {first.criterion}" for component in components),
    )
    ranked = sorted(results, key=lambda r: r.kl)
    rows = [
        (
            r.criterion,
            f"{r.kl:.3f}",
            f"{r.value:.{digits}f}",
            f"{r.interval[0]:.{digits}f} – {r.interval[1]:.{digits}f}",
            f"{r.seconds:,.1f}",
            *(units.percent(r.overlap[component]) for component in components),
        )
        for r in ranked
    ]
    caption = "Right after the cut, least KL first; seconds of scoring, on the machine that did it"
    table(head, rows, caption=caption, bold=ranked.index(first))
    names = ("kl_nats", task.key, f"{task.key}_low", f"{task.key}_high", "seconds", *(f"kept_{c}" for c in components))
    figures = [(r.kl, r.value, *r.interval, r.seconds, *(r.overlap[c] for c in components)) for r in results]
    frame = pd.DataFrame(figures, pd.Index([r.criterion for r in results], name="criterion"), names)
    file = (frame.to_csv(float_format="%.6g"), "criteria.csv", "text/csv", "criteria-csv-file")
    st.download_button("Table (CSV)", *file, type="tertiary", icon=":material/download:", on_click="ignore")
