"""How a run is to be trained, as the form of Distil says: the same for the run and for the command line."""

from __future__ import annotations

from dataclasses import dataclass, replace

import streamlit as st

from pages.shared import measured
from pages.shared.opened import Opened
from pages.shared.whatif import WhatIf
from upvit_core.models.judge import judge_of
from upvit_core.recipe import PRESETS, DistillSettings, usual_preset

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

    def preset(self, model: Opened, what_if: WhatIf) -> str:
        return usual(model, what_if) if self.recipe == USUAL else self.recipe

    def settings(self, model: Opened, what_if: WhatIf) -> DistillSettings:
        changes: dict[str, object] = {"feature_weight": self.feature_weight}
        if self.answers_kept:
            changes["teacher_top_k"] = min(model.shape.num_classes, MOST_ANSWERS)
        return PRESETS[self.preset(model, what_if)].model_copy(update=changes)


def is_small(model: Opened) -> bool:
    """Whether a CPU trains it in minutes."""
    return model.shape.img_size[0] < 100


def usual(model: Opened, what_if: WhatIf) -> str:
    """Name of the preset that suits this start."""
    return usual_preset(model.shape.family, repaired=what_if.repair, small=is_small(model))


def asked(model: Opened) -> Training:
    """What the form stands at, or will open with."""
    start = Training(4 if is_small(model) else 30, measured.image_spec(model))
    state = st.session_state
    return Training(
        int(state.get(f"distil-epochs-{model.source}", start.epochs)),
        str(state.get(f"distil-images-{model.source}", start.images)).strip(),
        str(state.get("distil-recipe", start.recipe)),
        float(state.get("distil-features", start.feature_weight)),
    )


def form(model: Opened, chosen: list[WhatIf]) -> Training:
    """The inputs; `chosen` are the starts that will be trained so."""
    start, judge = asked(model), judge_of(model.shape)
    st.text_input(
        judge.inputs, value=measured.image_spec(model), key=f"distil-images-{model.source}", help=judge.source,
        persist_state="session",
    )  # fmt: skip
    one, two = st.columns([0.35, 0.65])
    one.number_input("Epochs", 1, 1000, start.epochs, key=f"distil-epochs-{model.source}", persist_state="session")
    own = list(dict.fromkeys(NAMES[usual(model, what_if)] for what_if in chosen))
    two.selectbox(
        "Recipe", [USUAL, *PRESETS], key="distil-recipe", help=HELP, persist_state="session",
        format_func=lambda name: f"usual: {' / '.join(own)}" if name == USUAL else NAMES[name],
    )  # fmt: skip
    st.number_input(
        "Weight of the last feature", 0.0, 1000.0, 0.0, step=0.5, key="distil-features", persist_state="session",
        help="Above 0, what the classifier reads is matched too: the mean square by which the student's last "
        "feature, through a linear map that is learnt with it, misses the teacher's.",
    )  # fmt: skip
    training = asked(model)
    ways = [training.settings(model, what_if) for what_if in chosen]
    same = len(ways) > 1 and ways.count(ways[0]) == len(ways)
    if same and not training.feature_weight and model.shape.answers == 1:
        kept = st.toggle(
            "Ask the teacher once", key="distil-answers", persist_state="session",
            help="The first run stores the teacher's answers on every image of every epoch (the "
            f"{min(model.shape.num_classes, MOST_ANSWERS)} likeliest classes); the others read them instead of asking "
            "again. They are removed after the last run.",
        )  # fmt: skip
        return replace(training, answers_kept=kept)
    return training
