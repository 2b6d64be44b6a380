"""Made-up calibrations, of which every estimate of time can be computed by hand."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from upvit_core.models.gpt2 import language_shape
from upvit_core.profiling import bench
from upvit_core.profiling.calibration import Calibration, Grid, Ladder, geometry, scope
from upvit_core.records.shape import BlockShape, ModelShape

SHAPE = replace(bench.DEMO, blocks=(BlockShape(6, 96, 384), BlockShape(3, 60, 100), BlockShape(2, 22, 31)))
TEXT = language_shape(
    "text", vocabulary=40, context=12, embed_dim=24, blocks=(BlockShape(4, 24, 96), BlockShape(2, 10, 31))
)
AXIS = (1.0, 10.0, 1000.0)
GRIDS: dict[str, tuple[float, ...]] = {  # the factor, then the power of each size
    "linear": (3e-9, 0.9, 0.8, 0.7), "attention": (2e-9, 1, 1.9, 0.6), "norm": (1e-9, 1, 0.9), "gelu": (4e-9, 1, 1),
    "add": (5e-10, 1, 1),
}  # fmt: skip
EMBEDDING = (7e-6, 0.5, 0.25)
WEIGHTS = {
    "linear": 1.1, "attention": 0.9, "norm": 0.5, "gelu": 0.8, "add": 1.2, "depthwise": 0.7, "reduction": 1.3,
    "block": 1e-5,
}  # fmt: skip


def powers(factor: float, *exponents: float) -> Grid:
    """A grid of `factor` times powers of the sizes, which interpolation in logarithms meets exactly."""
    sizes = np.meshgrid(*[np.array(AXIS)] * len(exponents), indexing="ij")
    return Grid((AXIS,) * len(exponents), factor * np.prod([s**p for s, p in zip(sizes, exponents, strict=True)], 0))


def made_up(grids: Mapping[str, tuple[float, ...]], shape: ModelShape | None, **changes: Any) -> Calibration:
    """A device of these powers; `shape` is one with an embedding."""
    values = {
        "device": "made up",
        "dtype": "float32",
        "threads": 1,
        "grids": {name: powers(*own) for name, own in grids.items()},
        "ladders": {name: Ladder(np.ones(32)) for name in ("inputs", "outputs", "head_dim")},
        "embeddings": {geometry(shape): powers(*EMBEDDING)} if shape else {},
        "weights": {name: weight for name, weight in WEIGHTS.items() if name in ("block", *grids)},
    }
    return Calibration(**(values | changes))


def device(**changes: Any) -> Calibration:
    """A device that plain ViTs were timed on."""
    return made_up(GRIDS, SHAPE, **changes)


def language_device(**changes: Any) -> Calibration:
    grids = GRIDS | {"norm": (1e-9, 1, 1), "gelu": (9e-9, 1, 1), "head": (4e-8, 0.9, 0.5)}
    return made_up(grids, TEXT, **{"scope": scope(TEXT), **changes})


def pyramid_device(shape: ModelShape, **changes: Any) -> Calibration:
    grids = {name: GRIDS[name] for name in ("linear", "norm", "add")}
    for stage, own in enumerate(shape.stages):
        by = 1 + stage
        grids[f"opening.{stage}"] = (2e-6 * by, 0.9, 0.5, 0.4)
        grids[f"attention.{stage}"] = (6e-7 * by, 1, 0.6)
        grids[f"depthwise.{stage}"] = (8e-8 * by, 0.9, 0.95)
        if own.reduction_ratio > 1:
            grids[f"reduction.{stage}"] = (5e-8 * by, 0.9, 0.8, 0.7)
    weights = {name: weight for name, weight in WEIGHTS.items() if name != "gelu"}
    return made_up(grids, None, **{"scope": scope(shape), "weights": weights, **changes})
