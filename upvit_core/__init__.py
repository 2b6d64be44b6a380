"""Prune Vision Transformers: load, score, plan, prune, evaluate, distil; `upvit_core.api` has the six verbs.

Names are imported when they are first used, so that `import upvit_core` costs neither torch nor timm.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from upvit_core.api import (
        ElasticModel,
        PrunedModel,
        distill,
        evaluate,
        make_elastic,
        plan,
        prune,
        save_model,
        score,
        slice_model,
    )
    from upvit_core.data import ImageSet, open_images
    from upvit_core.errors import UPViTError
    from upvit_core.evaluation import Evaluation
    from upvit_core.models.checkpoint import LoadedModel, load_model
    from upvit_core.planning.what_if import WhatIf
    from upvit_core.profiling.macs import count_macs, count_parameters
    from upvit_core.records.block_removals import BlockRemovals
    from upvit_core.records.plan import PruningPlan
    from upvit_core.records.scores import ImportanceScores
    from upvit_core.records.shape import BlockShape, ModelShape
    from upvit_core.training.settings import DistillSettings

_MODULES = {
    "api": (
        "ElasticModel",
        "PrunedModel",
        "distill",
        "evaluate",
        "make_elastic",
        "plan",
        "prune",
        "save_model",
        "score",
        "slice_model",
    ),
    "data": ("ImageSet", "open_images"),
    "errors": ("UPViTError",),
    "evaluation": ("Evaluation",),
    "models.checkpoint": ("LoadedModel", "load_model"),
    "planning.what_if": ("WhatIf",),
    "profiling.macs": ("count_macs", "count_parameters"),
    "records.block_removals": ("BlockRemovals",),
    "records.plan": ("PruningPlan",),
    "records.scores": ("ImportanceScores",),
    "records.shape": ("BlockShape", "ModelShape"),
    "training.settings": ("DistillSettings",),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}

__all__ = [
    "BlockRemovals",
    "BlockShape",
    "DistillSettings",
    "ElasticModel",
    "Evaluation",
    "ImageSet",
    "ImportanceScores",
    "LoadedModel",
    "ModelShape",
    "PrunedModel",
    "PruningPlan",
    "UPViTError",
    "WhatIf",
    "count_macs",
    "count_parameters",
    "distill",
    "evaluate",
    "load_model",
    "make_elastic",
    "open_images",
    "plan",
    "prune",
    "save_model",
    "score",
    "slice_model",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
