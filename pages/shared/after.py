"""Accuracy after distillation, forecast from the runs that this studio has finished, once there are enough."""

from __future__ import annotations

import streamlit as st

from pages.shared import jobs, places
from pages.shared.opened import Opened
from upvit_core.errors import UPViTError
from upvit_core.runs.forecast import Forecast, Outcome, forecast, kinds, outcomes
from upvit_core.runs.store import RunStore


def forecast_of(model: Opened, spec: str, accuracy: jobs.Job | None) -> Forecast | None:
    """For the plan under the sliders, once its KL is measured, as in the commonest kind of run that suffices."""
    if accuracy is None or accuracy.state != "done" or not accuracy.result.kl or not places.runs().is_dir():
        return None
    for epochs, known in _known(model.model, spec, _stamp()):
        found = forecast(known, accuracy.result.kl, epochs)
        if found is not None:
            return found
    return None


def line(model: Opened, spec: str, accuracy: jobs.Job | None) -> None:
    found = forecast_of(model, spec, accuracy)
    if found is not None:
        st.html(
            f'<p class="quiet">○ After {found.epochs} epochs of distillation: <b>{found.low:.1f} – {found.high:.1f} '
            f"%</b> top-1, forecast (80 % band) from {found.runs} finished runs of this model by one recipe in this "
            "studio.</p>"
        )


def _stamp() -> float:
    """Changes when a run ends or begins."""
    folders = [entry.stat().st_mtime for entry in places.runs().iterdir() if entry.is_dir()]
    return max(folders, default=0.0) + len(folders)


@st.cache_data(max_entries=8, show_spinner=False, ttl=60)
def _known(teacher: str, data: str, stamp: float) -> list[tuple[int, list[Outcome]]]:
    """Finished runs by their number of epochs and their recipe, the commonest first."""
    store = RunStore(places.runs())
    try:
        return [(kind[0], outcomes(store, teacher, data, *kind)) for kind in kinds(store, teacher, data)]
    except (UPViTError, OSError):
        return []
