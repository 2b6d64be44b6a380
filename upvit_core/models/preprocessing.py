"""Normalisation of a model's images, from the settings in its checkpoint or as a person says."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import timm
from torch import Tensor

from upvit_core.errors import CheckpointError, UnsupportedModelError, UPViTError
from upvit_core.files import Json, Values
from upvit_core.models.build import Untyped, shape_of
from upvit_core.models.config import DEIT_CFG, VIT_CFG, class_names_of
from upvit_core.models.heads import given_heads, numbers_of, with_heads
from upvit_core.models.recognition import Recognition
from upvit_core.models.unpickle import Modules
from upvit_core.records.shape import Activation, ModelShape

Colours = float | str | Sequence[float] | None
"""One number for every colour, or one a colour (`0.5,0.5,0.5` or a sequence); None: not given."""
NAMES = ("model", "arch", "model_name", "timm_name", "architecture")
CROPS = ("crop_pct", "eval_crop_ratio")
HEADS = ("num_heads", "n_heads", "n_head", "nhead", "num_attention_heads", "attention_heads", "heads")
HEAD_DIMS = ("head_dim", "dim_head", "attention_head_dim")
MEANS = ("mean", "image_mean", "img_mean", "norm_mean", "pixel_mean", "rgb_mean", "dataset_mean")
POOLS = ("global_pool", "gp", "pool", "pooling", "pool_type")
SIZES = ("img_size", "image_size", "input_size", "resolution", "crop_size")
SIDES = [
    [f"{stem}{side}" for side in pair] for stem in ("img_", "image_", "") for pair in (("height", "width"), ("h", "w"))
]
ACTIVATIONS = {
    "GELU": "gelu", "GELUActivation": "gelu", "GELUTanh": "gelu_tanh", "PytorchGELUTanh": "gelu_tanh",
    "QuickGELU": "quick_gelu", "QuickGELUActivation": "quick_gelu", "SiLU": "silu",
}  # fmt: skip
OTHER_ACTIVATIONS = re.compile("ReLU6?|LeakyReLU|PReLU|C?ELU|Mish|Hardswish|Softplus")
BYTES, LARGEST_MEAN = 255.0, 2.0
"""The mean of pixels from 0 to 1 is at most 1; a larger one is of pixels from 0 to 255."""


@dataclass(frozen=True)
class RunSettings:
    """Facts about a model from what lies beside its tensors: timm's name for it, heads, preprocessing, classes.

    `heads_said` and `images` are clauses. `average`: its classifier reads the mean over patches.
    """

    model: str = ""
    heads: tuple[int, ...] = ()
    heads_said: str = ""
    cfg: Json = field(default_factory=dict)
    images: str = ""
    average: bool = False
    class_names: tuple[str, ...] | None = None


def settings_of_run(settings: Values, modules: Modules, shape: ModelShape) -> RunSettings:
    """Read the settings that training scripts leave in a checkpoint, and the attributes of saved modules.

    A model's name, heads and classes count only where they fit the tensors.
    """
    cfg, images = _colours_of_run(settings)
    crop = next((v for name in CROPS if isinstance(v := settings.get(name), (int, float)) and 0 < v < 2), None)
    if crop is not None:
        cfg["crop_pct"] = crop
    if isinstance(settings.get("interpolation"), str) and settings["interpolation"]:
        cfg["interpolation"] = settings["interpolation"]
    average = any(str(settings.get(name)).lower() in ("avg", "mean", "gap", "true") for name in POOLS)
    heads, said = _heads_of_run(settings, modules, shape)
    run = RunSettings("", heads, said, cfg, images, average, class_names_of(settings, shape.num_classes))
    model = next((str(settings[name]) for name in NAMES if isinstance(settings.get(name), str)), "")
    named = _named(model, shape)
    if named is None:
        return run
    known: Values = named.pretrained_cfg
    wanted = [key for key in ("mean", "std", "interpolation", "crop_pct") if known.get(key) is not None]
    if model.startswith("deit"):
        wanted = [key for key in wanted if key != "crop_pct"]  # DeiT itself crops 0.875, timm's copy of it 0.9
    if not heads:
        heads = tuple(block.num_heads for block in shape_of(named, model).blocks)
        said = f"those of {model}, which the file's own settings name"
    images = images or f"those of {model}, which the settings in the file name"
    cfg = {key: known[key] for key in wanted} | cfg
    return replace(run, model=model, heads=heads, heads_said=said, cfg=cfg, images=images)


def _colours_of_run(settings: Values) -> tuple[Json, str]:
    """Mean and standard deviation in the settings, those of pixels from 0 to 255 divided, and what is to be said."""
    pairs = [(settings.get(name), settings.get(name.replace("mean", "std"))) for name in MEANS]
    mean, std = next((pair for pair in map(_pair, pairs) if pair), ((), ()))
    if mean:
        return {"mean": mean, "std": std}, "as the settings in the file say"
    # `imagenet_default_mean_and_std` is from BEiT's and ConvNeXt's scripts; `inception` is from old timm
    default = settings.get("imagenet_default_mean_and_std")
    if isinstance(default, bool) or settings.get("inception") is True:
        cfg = DEIT_CFG if default else VIT_CFG
        return {key: cfg[key] for key in ("mean", "std")}, "as the settings in the file say"
    return {}, ""


def _pair(values: tuple[object, object]) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    try:
        mean, std = (_numbers(value) for value in values)
    except (TypeError, ValueError):
        return None
    if not mean or not std or min(std) <= 0:
        return None
    scale = BYTES if max(map(abs, mean)) > LARGEST_MEAN else 1.0
    return tuple(v / scale for v in mean), tuple(v / scale for v in std)


def _numbers(value: Any) -> tuple[float, ...]:
    """A number, several, or a text of several. Raises TypeError or ValueError for anything else."""
    parts = value.replace(",", " ").split() if isinstance(value, str) else value
    return tuple(map(float, parts if isinstance(parts, (list, tuple)) else [parts]))


def _heads_of_run(settings: Values, modules: Modules, shape: ModelShape) -> tuple[tuple[int, ...], str]:
    """Numbers of heads in saved modules or in the settings, where they divide the blocks; and how they are known."""
    counts = {path: v for path, (_, own) in modules.items() for name in HEADS if type(v := own.get(name)) is int}
    inside = [count for path, count in counts.items() if not any(other.startswith(f"{path}.") for other in counts)]
    inside = inside[:1] if len({*inside}) == 1 else inside
    stated = next((settings[name] for name in HEADS if settings.get(name)), None)
    widths = next((settings[name] for name in HEAD_DIMS if settings.get(name)), None)
    for given, is_width, who in ((inside, False, "modules"), (stated, False, ""), (widths, True, "")):
        try:
            numbers = numbers_of(given, "heads") if given else ()
            heads = given_heads(shape, () if is_width else numbers, numbers if is_width else (), "")
            if heads:
                blocks = with_heads(shape, heads, "").blocks
                said = "as the saved modules say" if who else "as the settings in the file say"
                return tuple(block.num_heads for block in blocks), said
        except (CheckpointError, TypeError):
            continue
    return (), ""


def size_of_run(settings: Values, tensors: Mapping[str, Tensor]) -> tuple[int, int] | None:
    """The size of images in the settings, where the position embedding has as many patches; else None."""
    weight, positions = tensors.get("patch_embed.proj.weight"), tensors.get("pos_embed")
    if weight is None or positions is None or weight.ndim != 4 or positions.ndim != 3:
        return None
    for size in (*map(settings.get, SIZES), *([settings.get(name) for name in pair] for pair in SIDES)):
        sides = [size, size] if isinstance(size, int) else size[-2:] if isinstance(size, (list, tuple)) else []
        if len(sides) == 2 and all(type(side) is int and side > 0 for side in sides):
            patches = math.prod(side // part for side, part in zip(sides, weight.shape[2:], strict=True))
            registers = tensors["reg_token"].shape[1] if "reg_token" in tensors else 0
            if patches and positions.shape[1] - patches in (0, 1, 2, registers, registers + 1):
                return sides[0], sides[1]
    return None


def as_modules_say(shape: ModelShape, modules: Modules, settings: Values, source: str) -> ModelShape:
    """The shape with the norms' eps and the activation of saved modules, which no tensor tells.

    Raises UnsupportedModelError where they do what is not supported: other activations, or norms after each part.
    """
    if settings.get("norm_first") is False or any(own.get("norm_first") is False for _, own in modules.values()):
        raise UnsupportedModelError(
            f"{source} has its norms after attention and FFN (norm_first=False), which is not supported; give a "
            "pre-norm ViT."
        )
    kinds = [(kind.rpartition(".")[2], own) for kind, own in modules.values()]
    tanh = {"GELU": "gelu_tanh"}
    acts = {
        (tanh if own.get("approximate") == "tanh" else ACTIVATIONS)[kind] for kind, own in kinds if kind in ACTIVATIONS
    }
    acts |= {kind for kind, _ in kinds if OTHER_ACTIVATIONS.fullmatch(kind)}
    acts |= {"ReLU" for _, own in kinds if own.get("activation_relu_or_gelu") == 1}
    if acts - {*ACTIVATIONS.values()}:
        raise UnsupportedModelError(
            f"{source} has the activation {', '.join(sorted(acts))}, which is not supported; give a ViT with GELU."
        )
    eps = {float(own["eps"]) for kind, own in kinds if kind.startswith("LayerNorm") and "eps" in own}  # type: ignore[arg-type]
    act = cast(Activation, acts.pop()) if len(acts) == 1 else shape.act
    return replace(shape, norm_eps=eps.pop() if len(eps) == 1 else shape.norm_eps, act=act)


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
    if len(values) not in (1, 3) or not all(least < value < float("inf") for value in values):
        raise CheckpointError(
            f"{str(given)[:40]!r} is not a {name} of normalisation; give one number, or one for each colour with "
            "commas between, for pixels from 0 to 1."
        )
    if name == "mean" and max(map(abs, values)) > LARGEST_MEAN:
        raise CheckpointError(
            f"The mean {str(given)[:40]} is one of pixels from 0 to 255; give mean and std divided by 255."
        )
    return values
