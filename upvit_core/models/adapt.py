"""From a loaded model to its adapter; the one place that knows which adapter understands which architecture."""

from __future__ import annotations

from torch import nn

from upvit_core.models.adapter import Adapter
from upvit_core.models.shape import ModelShape
from upvit_core.models.vit import ViTAdapter


def adapt(model: nn.Module, shape: ModelShape) -> Adapter:
    """The adapter of a model that `load_model` accepted."""
    return ViTAdapter(model, shape)
