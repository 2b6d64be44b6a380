"""Directions on Importance: the same pictures for the other basis, and what the removal of one direction does."""

from __future__ import annotations

from pages.services import scoring, slider_state
from pages.services.open_model import OpenModel
from pages.widgets import progress, sliders
from upvit_core.records.scores import ImportanceScores
from upvit_core.records.shape import Component

WHAT: dict[Component, str] = {
    "residual": "Directions of the stream: fixed mixtures of its channels, the one that the layers need most first. "
    "Number 0 is the constant, which LayerNorm takes and every plan keeps.",
    "attention": "Factors inside the heads: each is one mixture of q, of k and of v, the strongest of its head first.",
    "ffn": "Hidden channels, as they are: GELU allows no mixing. The score is what the others cannot make up for.",
}


def switch(model: OpenModel, scores: ImportanceScores) -> ImportanceScores | None:
    """Draw the switch of the basis; the scores to show: of channels, or of directions. None while these are made."""
    if scores.basis == "directions" or not model.shape.has_directions:
        return scores
    sliders.basis_control(model.shape, model.can_measure)
    if not model.can_measure or slider_state.current(model.shape).basis == "channels":
        return scores
    return progress.show(scoring.directions(model), height=560)
