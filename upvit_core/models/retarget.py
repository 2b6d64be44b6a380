"""The same backbone for another task: a new head, other image channels, another image size.

Only the parts that do not fit the new images or classes are made anew, by timm's rules where it has one (channels of
the first convolution, position embeddings).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from timm.models._manipulate import adapt_input_conv
from torch import Tensor

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


def classes_differ(loaded: LoadedModel, class_names: tuple[str, ...]) -> bool:
    """True where the model's head has other classes, or none that are known by name."""
    return loaded.class_names != class_names


def retarget(
    loaded: LoadedModel,
    class_names: tuple[str, ...],
    *,
    head: HeadChoice = "auto",
    in_chans: int | None = None,
    img_size: int | None = None,
    seed: int = 0,
) -> LoadedModel:
    """A copy of the model for `class_names`; `head="auto"` gives it a head of zeros where the classes differ.

    `in_chans`: 3 to 1 sums the first convolution over colours, as timm does; 1 to 3 spreads a third of it over each,
    so that a grey image given in colour is seen as before. `img_size`: position embeddings are resampled by timm.
    A new head starts at zero, as in the fine-tuning of the first ViTs: every class is as likely.
    Raises UnsupportedModelError where `head="keep"` does not fit, and as `at_size` for the image size.
    """
    refuse_language(loaded.shape, FINE_TUNING, DISTIL)
    old = loaded.shape
    count = len(class_names)
    if head == "keep" and count != old.num_classes:
        raise UnsupportedModelError(
            f"{loaded.name} has a head of {old.num_classes} classes and the images have {count}; give it a new head."
        )
    size = old.img_size if img_size is None else (img_size, img_size)
    state = {key: value.detach().clone() for key, value in loaded.model.state_dict().items()}
    state, shape = at_size(state, replace(old, num_classes=count, in_chans=in_chans or old.in_chans), size)
    fresh = head == "new" or (head == "auto" and classes_differ(loaded, class_names))
    model = build_model(shape, seed=seed)
    if fresh:
        for key, value in model.state_dict().items():
            if key.startswith(HEADS):
                state[key] = value.new_zeros(value.shape)
    if shape.in_chans != old.in_chans:
        state[FIRST_CONVOLUTION] = _other_channels(state[FIRST_CONVOLUTION], shape.in_chans)
    model.load_state_dict(state)
    cfg = complete_cfg(loaded.pretrained_cfg, shape)
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
