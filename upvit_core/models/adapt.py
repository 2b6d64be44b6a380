"""From a loaded model to its adapter; the one place that knows which adapter understands which architecture."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from upvit_core.errors import UnsupportedModelError
from upvit_core.models.adapter import Adapter
from upvit_core.models.gpt2 import GPT2Adapter
from upvit_core.models.pvt import PVTAdapter
from upvit_core.models.shape import ModelShape
from upvit_core.models.vit import ViTAdapter

ADAPTERS: dict[str, Callable[[nn.Module, ModelShape], Adapter]] = {
    "vit": ViTAdapter,
    "pvt_v2": PVTAdapter,
    "gpt2": GPT2Adapter,
}


def adapt(model: nn.Module, shape: ModelShape) -> Adapter:
    """The adapter of a model that `load_model` accepted."""
    if shape.family not in ADAPTERS:
        raise UnsupportedModelError(f"{shape.name} is of the family {shape.family!r}, which is not understood.")
    return ADAPTERS[shape.family](model, shape)
