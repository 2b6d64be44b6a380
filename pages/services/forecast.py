"""The forecast of a plan's top-1 after distillation, from finished runs of the same model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import streamlit as st

from pages.services import folders, jobs
from pages.services.maps import Estimate
from pages.services.open_model import OpenModel
from upvit_core.errors import UPViTError
from upvit_core.runs.forecast import Forecast, Outcome, forecast, kinds, outcomes
from upvit_core.runs.store import RunStore

if TYPE_CHECKING:
    from upvit_core.evaluation import Evaluation


def forecast_of(model: OpenModel, accuracy: jobs.Job[Evaluation] | None, mapped: Estimate | None) -> Forecast | None:
    """The forecast for a plan, from the commonest kind of run with enough runs.

    It starts from the plan's KL where that is measured, else from what the map estimates, and is as much wider.
    """
    result = jobs.result_of(accuracy)
    kls = (result.kl,) if result is not None else (mapped.kl, mapped.kl_low, mapped.kl_high) if mapped else ()
    return forecast_at(model, [kl or 0.0 for kl in kls])


def forecast_at(model: OpenModel, kls: Sequence[float]) -> Forecast | None:
    """The forecast for a plan of this KL (and its bounds), in nats an image; None where runs are too few or too far."""
    if not kls or not folders.runs().is_dir():
        return None
    for epochs, known in _outcomes(model.model, model.dataset, _stamp()):
        found = [forecast(known, kl, epochs) for kl in kls]
        sure = [prediction for prediction in found if prediction is not None]
        if len(sure) == len(kls):
            return replace(sure[0], low=min(each.low for each in sure), high=max(each.high for each in sure))
    return None


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
