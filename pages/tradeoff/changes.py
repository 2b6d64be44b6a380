"""The answers that a plan changes: how many become wrong or right, a few of the images, and class by class."""

import streamlit as st

from pages.services import evaluation, jobs
from pages.services.open_model import OpenModel
from pages.tradeoff.measurements import Measurements
from pages.widgets import by_class, progress
from pages.widgets.tables import changed_tiles, gallery
from upvit_core.planning.what_if import WhatIf
from upvit_core.records.plan import PruningPlan

SHOWN = 4


def has_classes(model: OpenModel) -> bool:
    """True of an image classifier that can be measured."""
    return model.can_measure and model.task.has_pictures and not model.shape.features


def draw(model: OpenModel, plan: PruningPlan, now: WhatIf, found: Measurements) -> None:
    """Draw a few images; before the plan is measured, a frame of the same height."""
    if found.accuracy is None or not model.task.has_pictures:
        return

    def body() -> None:
        st.html('<h3 class="part">Which answers change</h3>')
        if (known := _known(model, plan, now, found)) is None:
            st.html('<p class="quiet">They are here once the plan is measured.</p>')
            return
        changed = known.by_class
        st.html(
            f'<p class="quiet">Of {changed.images:,} images, {len(changed.lost):,} become wrong and '
            f"{len(changed.won):,} right.</p>"
        )
        gallery(changed_tiles(known.examples[:SHOWN]), columns=SHOWN)

    with st.container(key="changes"):
        progress.redraw_when_done([found.accuracy], body)


def class_by_class(model: OpenModel, plan: PruningPlan, now: WhatIf, found: Measurements) -> None:
    """Draw what the plan loses, class by class."""

    def body() -> None:
        if (known := _known(model, plan, now, found)) is None:
            st.caption("What each class loses is shown here once the plan is measured.")
        else:
            by_class.draw(known.by_class, known.names, changed_tiles(known.examples))

    progress.redraw_when_done([found.accuracy], body)


def _known(model: OpenModel, plan: PruningPlan, now: WhatIf, found: Measurements) -> evaluation.Changes | None:
    if jobs.result_of(found.accuracy) is None:
        return None
    return evaluation.changes(model, plan, repair=now.repair)
