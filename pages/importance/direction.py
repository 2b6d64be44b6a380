"""Directions on Importance: the switch of the basis, and what its pictures show."""

from pages.services import scoring, slider_state
from pages.services.open_model import OpenModel
from pages.widgets import progress, sliders
from upvit_core.records.scores import ImportanceScores
from upvit_core.records.shape import Component

WHAT: dict[Component, str] = {
    "residual": "Directions of the stream: fixed mixtures of its channels, the most needed first. Number 0 is the "
    "constant, which LayerNorm subtracts and every plan keeps.",
    "attention": "Factors inside the heads: each is one mixture of q, k and v, the strongest of its head first.",
    "ffn": "Hidden channels, since GELU allows no mixing. The score is the part that other channels cannot replace.",
}


def switch(model: OpenModel, scores: ImportanceScores) -> ImportanceScores | None:
    """Draw the switch of the basis and return the scores of the chosen one; None while they are being made."""
    if scores.basis == "directions" or not model.shape.has_directions:
        return scores
    sliders.basis_control(model)
    if not model.can_measure or slider_state.current(model).basis == "channels":
        return scores
    return progress.show(scoring.directions(model), height=560)
