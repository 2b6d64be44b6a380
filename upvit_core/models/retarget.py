"""The same backbone for another task: a new head, other image channels, another image size.

Only the parts that do not fit the new images or classes are made anew, by timm's rules where it has one (channels of
the first convolution, position embeddings).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from timm.models._manipulate import adapt_input_conv
from torch import Tensor

from upvit_core.data.classes import known_names, match_classes
from upvit_core.errors import UnsupportedModelError
from upvit_core.models.build import build_model
from upvit_core.models.checkpoint import LoadedModel
from upvit_core.models.config import complete_cfg
from upvit_core.models.resize import at_size
from upvit_core.records.task import refuse_language

HeadChoice = Literal["auto", "new", "keep"]
FINE_TUNING = "Fine-tuning on other images is defined for models of images"
DISTIL = "distil it on the other text instead (distill --preset language --data TEXT)"
HEADS = ("head.", "head_dist.")
FIRST_CONVOLUTION = "patch_embed.proj.weight"


@dataclass(frozen=True)
class HeadFit:
    """The rows of the old head that the new one takes, class by class (None: a new head of zeros), and why."""

    rows: tuple[int, ...] | None
    told: str


def fit_head(loaded: LoadedModel, class_names: tuple[str, ...], head: HeadChoice = "auto") -> HeadFit:
    """The fate of a trained head for the classes `class_names`.

    By name where all of them are classes of the model; whole where the model names none and has as many; else new.
    Raises UnsupportedModelError where `head="keep"` does not fit.
    """
    outputs, count = loaded.shape.num_classes, len(class_names)
    if loaded.shape.features:
        if head == "keep":
            raise UnsupportedModelError(f"{loaded.name} has no classifier to keep; give it a new head.")
        return HeadFit(None, f"The head is new, for {count} classes: the model has none.")
    known = known_names(loaded.class_names, loaded.pretrained_cfg)
    found = match_classes(class_names, known, outputs)
    rows = tuple(row for row in found if row is not None)
    if head == "new":
        return HeadFit(None, "The head is new, as was asked for.")
    if len(rows) == len({*rows}) == count:
        part = "stays" if count == outputs else f"is cut to these {count} of its {outputs} classes"
        return HeadFit(rows, f"The trained head {part}: all classes are the model's by name.")
    if count == outputs and (head == "keep" or known is None):
        why = "as was asked for" if head == "keep" else "since the model names none; --head new begins with a new one"
        return HeadFit(tuple(range(count)), f"The trained head stays, for {count} classes in their order, {why}.")
    if head == "keep":
        raise UnsupportedModelError(
            f"{loaded.name} has a head of {outputs} classes and the images have {count}; give it a new head."
        )
    why = f"the model has {outputs} classes" if count != outputs else "not all are classes of the model by name"
    return HeadFit(None, f"The head is new, for {count} classes: {why}.")


def retarget(
    loaded: LoadedModel,
    class_names: tuple[str, ...],
    *,
    head: HeadChoice = "auto",
    in_chans: int | None = None,
    img_size: int | None = None,
    seed: int = 0,
) -> LoadedModel:
    """A copy of the model for `class_names`; `fit_head` says which rows of the head stay.

    `in_chans`: 3 to 1 sums the first convolution over colours, as timm does; 1 to 3 spreads a third of it over each,
    so that a grey image given in colour is seen as before. `img_size`: position embeddings are resampled by timm.
    A new head starts at zero, as in the fine-tuning of the first ViTs: every class is as likely.
    Raises UnsupportedModelError as `fit_head`, and as `at_size` for the image size.
    """
    refuse_language(loaded.shape, FINE_TUNING, DISTIL)
    old = loaded.shape
    rows = fit_head(loaded, class_names, head).rows
    size = old.img_size if img_size is None else (img_size, img_size)
    state = {key: value.detach().clone() for key, value in loaded.model.state_dict().items()}
    new = replace(old, num_classes=len(class_names), features=False, in_chans=in_chans or old.in_chans)
    state, shape = at_size(state, new, size)
    model = build_model(shape, seed=seed)
    for key, value in model.state_dict().items():
        if key.startswith(HEADS):
            state[key] = value.new_zeros(value.shape) if rows is None else state[key][list(rows)]
    if shape.in_chans != old.in_chans:
        state[FIRST_CONVOLUTION] = _other_channels(state[FIRST_CONVOLUTION], shape.in_chans)
    model.load_state_dict(state)
    named = {key: value for key, value in loaded.pretrained_cfg.items() if not key.startswith("label_")}
    cfg = complete_cfg(named, shape)
    model.pretrained_cfg = model.default_cfg = cfg  # type: ignore[assignment]
    device = next(loaded.model.parameters()).device
    return replace(
        loaded, model=model.eval().to(device), shape=shape, digest="", pretrained_cfg=cfg, class_names=class_names
    )


def head_parameters(names: list[str]) -> set[str]:
    """The names of parameters that belong to a head."""
    return {name for name in names if name.startswith(HEADS)}


def _other_channels(weight: Tensor, channels: int) -> Tensor:
    """First convolution (D, C, p, p) for another number of image channels."""
    if weight.shape[1] == 1 and channels == 3:
        return weight.repeat(1, 3, 1, 1) / 3
    return adapt_input_conv(channels, weight)
