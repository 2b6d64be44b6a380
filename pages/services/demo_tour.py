"""The tour that comes with the demo: measured at every percent removed, both ways, all heads kept."""

from functools import lru_cache

from pages.services.open_model import OpenModel
from upvit_core.errors import UPViTError
from upvit_core.paths import DEMO_FOLDER
from upvit_core.planning.what_if import WhatIf
from upvit_core.records.shape import ModelShape
from upvit_core.records.tour import Tour, Way


def known() -> Tour | None:
    """None where its file is missing or broken."""
    path = DEMO_FOLDER / "tour.json"
    try:
        return _load(str(path), path.stat().st_mtime_ns)
    except (OSError, UPViTError):
        return None


def of_model(model: OpenModel) -> Tour | None:
    """The tour where the model is the demo, on its own images."""
    return known() if model.is_demo and model.dataset == "demo" else None


def what_if(shape: ModelShape, way: Way, percent: int) -> WhatIf:
    """The plan at a position of the tour."""
    return WhatIf(percent, percent, shape.num_heads, percent, way.basis, way.repair)


def values_of(model: OpenModel, now: WhatIf) -> dict[str, float] | None:
    """Top-1 of both ways where the tour has this plan: `this`, `other` and `original`, on the evaluation images."""
    tour = of_model(model)
    if tour is None or len(set(now.percents.values())) > 1 or not 0 <= now.residual < len(tour.ways["paper"].top1):
        return None
    for name, other in (("paper", "repaired"), ("repaired", "paper")):
        if now == what_if(model.shape, tour.ways[name], int(now.residual)):
            this, that = (tour.ways[way].top1[int(now.residual)] for way in (name, other))
            return {"this": this, "other": that, "original": tour.original}
    return None


@lru_cache(1)
def _load(path: str, stamp: int) -> Tour:
    return Tour.load(path)
