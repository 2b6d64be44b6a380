"""How a run is to be trained, as the form of Distil says: the same for the run and for the command line."""

from __future__ import annotations

from dataclasses import dataclass

import streamlit as st

from pages.services.open_model import OpenModel
from upvit_core.planning.what_if import WhatIf
from upvit_core.training.settings import PRESETS, DistillSettings, usual_preset

USUAL = "usual"
MOST_ANSWERS = 100  # of the teacher's logits an image
NAMES = {
    "letter": "the letter's", "released_code": "released code's", "demo": "minutes on a CPU",
    "repaired": "small steps, after repair", "language": "a language model's",
}  # fmt: skip
HELP = (
    "letter: Eq. 2 as written; released code's: the KL weight of the authors' script; minutes on a CPU: small batches; "
    "small steps: that with a tenth of the learning rate and unmixed images, which leave what repair reached as it is. "
    "Usual: small steps for a repaired start, else what suits the size; each run of a form takes its own."
)


@dataclass(frozen=True)
class Training:
    """What the form says; `recipe` is the name of a preset, or USUAL."""

    epochs: int
    images: str
    recipe: str = USUAL
    feature_weight: float = 0.0
    answers_kept: bool = False

    def preset(self, model: OpenModel, what_if: WhatIf) -> str:
        return usual(model, what_if) if self.recipe == USUAL else self.recipe

    def settings(self, model: OpenModel, what_if: WhatIf) -> DistillSettings:
        changes: dict[str, object] = {"feature_weight": self.feature_weight}
        if self.answers_kept:
            changes["teacher_top_k"] = min(model.shape.num_classes, MOST_ANSWERS)
        return PRESETS[self.preset(model, what_if)].model_copy(update=changes)


def is_small(model: OpenModel) -> bool:
    """Whether a CPU trains it in minutes."""
    return model.shape.is_small


def usual(model: OpenModel, what_if: WhatIf) -> str:
    """Name of the preset that suits this start."""
    return usual_preset(model.shape.family, repaired=what_if.repair, small=is_small(model))


def asked(model: OpenModel) -> Training:
    """What the form stands at, or will open with."""
    start = Training(4 if is_small(model) else 30, model.dataset)
    state = st.session_state
    return Training(
        int(state.get(f"distil-epochs-{model.source}", start.epochs)),
        str(state.get(f"distil-images-{model.source}", start.images)).strip(),
        str(state.get("distil-recipe", start.recipe)),
        float(state.get("distil-features", start.feature_weight)),
    )
