"""The forecast of a plan's top-1 after distillation, from finished runs of the same model."""

from __future__ import annotations

from typing import TYPE_CHECKING

import streamlit as st

from pages.services import folders, jobs
from pages.services.open_model import OpenModel
from upvit_core.errors import UPViTError
from upvit_core.runs.forecast import Forecast, Outcome, forecast, kinds, outcomes
from upvit_core.runs.store import RunStore

if TYPE_CHECKING:
    from upvit_core.evaluation import Evaluation


def forecast_of(model: OpenModel, accuracy: jobs.Job[Evaluation] | None) -> Forecast | None:
    """The forecast for a plan once its KL is measured, from the commonest kind of run with enough runs."""
    result = jobs.result_of(accuracy)
    if result is None or not result.kl or not folders.runs().is_dir():
        return None
    predictions = (
        forecast(known, result.kl, epochs) for epochs, known in _outcomes(model.model, model.dataset, _stamp())
    )
    return next((prediction for prediction in predictions if prediction is not None), None)


def forecast_line(ahead: Forecast | None) -> None:
    if ahead is not None:
        st.html(
            f'<p class="quiet">○ After {ahead.epochs} epochs of distillation: <b>{ahead.low:.1f} – {ahead.high:.1f} '
            f"%</b> top-1, forecast (80 % band) from {ahead.runs} finished runs of this model by one recipe in this "
            "studio.</p>"
        )


def _stamp() -> float:
    """A number that changes when a run begins or ends."""
    times = [entry.stat().st_mtime for entry in folders.runs().iterdir() if entry.is_dir()]
    return max(times, default=0.0) + len(times)


@st.cache_data(max_entries=8, show_spinner=False, ttl=60)
def _outcomes(teacher: str, data: str, stamp: float) -> list[tuple[int, list[Outcome]]]:
    """Finished runs by their number of epochs and their recipe, the commonest first."""
    store = RunStore(folders.runs())
    try:
        return [(kind[0], outcomes(store, teacher, data, *kind)) for kind in kinds(store, teacher, data)]
    except (UPViTError, OSError):
        return []
