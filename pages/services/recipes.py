"""The training settings of a run, from the Distil form: the same for the run and for the command line."""

from dataclasses import dataclass

import streamlit as st

from pages.services.open_model import OpenModel
from upvit_core.planning.what_if import WhatIf
from upvit_core.ranks import own_cores
from upvit_core.runs import slurm
from upvit_core.training.settings import PRESETS, DistillSettings, usual_preset

USUAL = "usual"
MOST_ANSWERS = 100  # of the teacher's logits an image
NAMES = {
    "letter": "the letter's",
    "released_code": "released code's",
    "demo": "minutes on a CPU",
    "repaired": "small steps, after repair",
    "language": "a language model's",
}
HELP = (
    "letter: Eq. 2 as written; released code's: the KL weight of the authors' script; minutes on a CPU: small batches; "
    "small steps: that with a tenth of the learning rate and unmixed images, which leave what repair reached as it is. "
    "Usual: small steps for a repaired start, else what suits the size; each run of a form takes its own."
)


@dataclass(frozen=True)
class Training:
    """The values of the form; `recipe` is the name of a preset, or USUAL."""

    epochs: int
    images: str
    recipe: str = USUAL
    feature_weight: float = 0.0
    answers_kept: bool = False
    workers: int | None = None
    compile: bool = False

    def preset(self, model: OpenModel, what_if: WhatIf) -> str:
        return usual(model, what_if) if self.recipe == USUAL else self.recipe

    def settings(self, model: OpenModel, what_if: WhatIf) -> DistillSettings:
        names = ("feature_weight", "workers", "compile")
        changes: dict[str, object] = {name: getattr(self, name) for name in names}
        if self.answers_kept:
            changes["teacher_top_k"] = min(model.shape.num_classes, MOST_ANSWERS)
        return PRESETS[self.preset(model, what_if)].model_copy(update=changes)


def is_small(model: OpenModel) -> bool:
    """True if a CPU trains the model in minutes."""
    return model.shape.is_small


def usual(model: OpenModel, what_if: WhatIf) -> str:
    """Name of the preset that suits this plan."""
    return usual_preset(model.shape.family, repaired=what_if.repair or model.is_elastic, small=is_small(model))


@dataclass(frozen=True)
class TrainingKeys:
    """Keys of the form's widgets; images and epochs are by model."""

    source: str
    recipe = "distil-recipe"
    features = "distil-features"
    workers = "distil-workers"
    compile = "distil-compile"

    @property
    def images(self) -> str:
        return f"distil-images-{self.source}"

    @property
    def epochs(self) -> str:
        return f"distil-epochs-{self.source}"


def requested_training(model: OpenModel) -> Training:
    """The training that the form stands at, or will open with."""
    start, keys = Training(4 if is_small(model) else 30, model.dataset), TrainingKeys(model.source)
    state = st.session_state
    return Training(
        int(state.get(keys.epochs, start.epochs)),
        str(state.get(keys.images, start.images)).strip(),
        str(state.get(keys.recipe, start.recipe)),
        float(state.get(keys.features, start.feature_weight)),
        workers=state.get(keys.workers),
        compile=bool(state.get(keys.compile)),
    )


def workers_field(key: str) -> int | None:
    """The field for the number of processes that load images; None: the default."""
    most = 256 if slurm.available() else own_cores()
    tip = DistillSettings.model_fields["workers"].description
    return st.number_input("Workers", 0, most, None, key=key, persist_state="session", placeholder="auto", help=tip)
