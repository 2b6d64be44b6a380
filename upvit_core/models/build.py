"""Between a `ModelShape` and a live model: build one of any shape, read the shape of one, adapt one.

What no `ModelShape` can say is refused by name rather than dropped.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NoReturn

import torch
from torch import nn

from upvit_core.errors import UnsupportedModelError
from upvit_core.models.adapter import Adapter
from upvit_core.models.layout import layout
from upvit_core.records.family import FAMILIES, load
from upvit_core.records.shape import ModelShape

Untyped = Any
"""A module of another library, whose attributes have no types."""


def expected_tensors(shape: ModelShape) -> dict[str, tuple[int, ...]]:
    """Name and dimensions of every tensor that the library's model of this shape holds."""
    return {name: part.size for name, part in layout(shape).items()}


def build_model(
    shape: ModelShape,
    *,
    seed: int = 0,
    weight_init: str = "",
    drop_path_rate: float = 0.0,
    device: torch.device | str = "cpu",
) -> nn.Module:
    """A fresh model of any shape, in training mode, its weights drawn by `seed` (global RNG untouched).

    `weight_init` is timm's (`""`, `"jax"`, …) for Vision Transformers; other families leave it out. On the device
    `"meta"` nothing is drawn or stored.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: nn.Module = load(shape.architecture.build)(
            shape, weight_init=weight_init, drop_path_rate=drop_path_rate, device=device
        )
    return model


def shape_of(model: nn.Module, name: str = "model") -> ModelShape:
    """Shape of a live timm model of a known architecture.

    Raises UnsupportedModelError, naming the part, where the model has anything that a `ModelShape` cannot say.
    """
    kind = f"{type(model).__module__}:{type(model).__name__}"
    for family in FAMILIES.values():
        if kind in family.live:
            shape: ModelShape = load(family.live[kind])(model, name)
            return shape
    raise UnsupportedModelError(
        f"{name} is a {type(model).__name__}, not a plain Vision Transformer; give a ViT, DeiT or PVTv2 of timm's "
        "classes VisionTransformer, VisionTransformerDistilled or PyramidVisionTransformerV2."
    )


def adapt(model: nn.Module, shape: ModelShape) -> Adapter:
    """The adapter of a model that `load_model` accepted."""
    adapter: Adapter = load(shape.architecture.adapter)(model, shape)
    return adapter


def mlp_ratio(hidden: int, width: int) -> float:
    """The ratio from which timm's `int(width * ratio)` gives exactly `hidden`."""
    ratio = hidden / width
    return ratio if int(width * ratio) == hidden else (hidden + 0.5) / width


class Reader:
    """Checks of a live model called `name`; each raises UnsupportedModelError that names the part."""

    def __init__(self, name: str):
        self.name = name

    def refuse(self, part: str, value: object, wanted: str) -> NoReturn:
        raise UnsupportedModelError(f"{self.name}: {part} is {value}, which is not understood; only {wanted} is.")

    def check(self, part: str, module: object, *kinds: type) -> None:
        if type(module) not in kinds:
            self.refuse(part, type(module).__name__, " or ".join(dict.fromkeys(kind.__name__ for kind in kinds)))

    def one_eps(self, norms: Iterable[nn.LayerNorm]) -> float:
        epsilons = {norm.eps for norm in norms}
        if len(epsilons) > 1:
            self.refuse("the norms' eps", sorted(epsilons), "one value for all")
        return epsilons.pop()

    def check_tensors(self, model: nn.Module, shape: ModelShape) -> None:
        """The model's tensors are exactly those of the shape."""
        expected = expected_tensors(shape)
        sizes = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
        for key in [*expected, *sizes]:
            if expected.get(key) != sizes.get(key):
                self.refuse(key, sizes.get(key, "absent"), str(expected.get(key, "a model without it")))
