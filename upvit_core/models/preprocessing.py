"""Normalisation of a model's images, from the settings in its checkpoint or as a person says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import timm

from upvit_core.errors import CheckpointError, UPViTError
from upvit_core.files import Json, Values
from upvit_core.models.build import Untyped, shape_of
from upvit_core.models.recognition import Recognition
from upvit_core.records.shape import ModelShape

Colours = float | str | Sequence[float] | None
"""One number for every colour, or one a colour (`0.5,0.5,0.5` or a sequence); None: not given."""
NAMES = ("model", "arch", "model_name", "timm_name")
CROPS = ("crop_pct", "eval_crop_ratio")


@dataclass(frozen=True)
class RunSettings:
    """Facts about a model from the settings of its training run: timm's name for it, heads, preprocessing."""

    model: str = ""
    heads: tuple[int, ...] = ()
    cfg: Json = field(default_factory=dict)
    images: str = ""


def settings_of_run(settings: Mapping[str, object], shape: ModelShape) -> RunSettings:
    """Read the settings that timm's and DeiT's training scripts, and others like them, leave in a checkpoint.

    A model's name counts only where its widths are those of the tensors.
    """
    cfg: Json = {}
    for name in ("mean", "std"):
        if isinstance(value := settings.get(name), (list, tuple)) and all(isinstance(v, (int, float)) for v in value):
            cfg[name] = tuple(float(v) for v in value)
    images = "as the settings in the file say" if len(cfg) == 2 else ""
    if crop := next((value for name in CROPS if isinstance(value := settings.get(name), float)), None):
        cfg["crop_pct"] = crop
    if isinstance(settings.get("interpolation"), str) and settings["interpolation"]:
        cfg["interpolation"] = settings["interpolation"]
    model = next((str(settings[name]) for name in NAMES if isinstance(settings.get(name), str)), "")
    named = _named(model, shape)
    if named is None:
        return RunSettings(cfg=cfg, images=images)
    known: Values = named.pretrained_cfg
    wanted = [key for key in ("mean", "std", "interpolation", "crop_pct") if known.get(key) is not None]
    if model.startswith("deit"):
        wanted = [key for key in wanted if key != "crop_pct"]  # DeiT itself crops 0.875, timm's copy of it 0.9
    heads = tuple(block.num_heads for block in shape_of(named, model).blocks)
    images = images or f"those of {model}, which the settings in the file name"
    return RunSettings(model, heads, {key: known[key] for key in wanted} | cfg, images)


def _named(model: str, shape: ModelShape) -> Untyped:
    """timm's model of that name, without weights, where its blocks have the same widths; else None."""
    if not model or not timm.is_model(model.split(".")[0]):
        return None
    try:
        built: Untyped = timm.create_model(model, pretrained=False, device="meta")
        theirs = [(block.attention, block.ffn) for block in shape_of(built, model).blocks]
    except (RuntimeError, TypeError, UPViTError):
        return None
    return built if theirs == [(block.attention, block.ffn) for block in shape.blocks] else None


def chosen_cfg(
    cfg: Values | None, mean: Colours, std: Colours, recognised: Recognition
) -> tuple[Values | None, Recognition]:
    """The preprocessing with the mean and standard deviation that a person gave, and what that changes in the account.

    Raises CheckpointError where they are no numbers.
    """
    given = {name: _colours(value, name) for name, value in (("mean", mean), ("std", std)) if value not in (None, "")}
    if not given:
        return cfg, recognised
    told = " and ".join(f"{name} {', '.join(f'{v:g}' for v in values)}" for name, values in given.items())
    return {**(cfg or {}), **given}, replace(recognised, images=f"with {told} as given", images_assumed=False)


def _colours(given: Colours, name: str) -> tuple[float, ...]:
    parts = given.split(",") if isinstance(given, str) else given if isinstance(given, Sequence) else [given]
    try:
        values = tuple(float(part) for part in parts)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        values = ()
    least = 0.0 if name == "std" else float("-inf")
    if not values or not all(least < value < float("inf") for value in values):
        raise CheckpointError(
            f"{str(given)[:40]!r} is not a {name} of normalisation; give one number, or one for each colour with "
            "commas between, for pixels from 0 to 1."
        )
    return values
