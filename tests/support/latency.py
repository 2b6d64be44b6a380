"""Made-up calibrations, of which every estimate of time can be computed by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from upvit_core.models.gpt2 import language_shape
from upvit_core.profiling import bench
from upvit_core.profiling.calibration import Calibration, Grid, Ladder, geometry, scope
from upvit_core.records.shape import BlockShape, ModelShape


def pyramid_device(shape: ModelShape, **changes: Any) -> Calibration:
    grids = {"linear": powers(3e-9, 0.9, 0.8, 0.7), "norm": powers(1e-9, 1, 0.9), "add": powers(5e-10, 1, 1)}
    for stage, own in enumerate(shape.stages):
        by = 1 + stage
        grids |= {f"opening.{stage}": powers(2e-6 * by, 0.9, 0.5, 0.4), f"attention.{stage}": powers(6e-7 * by, 1, 0.6),
                  f"depthwise.{stage}": powers(8e-8 * by, 0.9, 0.95)}  # fmt: skip
        if own.reduction_ratio > 1:
            grids[f"reduction.{stage}"] = powers(5e-8 * by, 0.9, 0.8, 0.7)
    values = {
        "device": "made up", "dtype": "float32", "threads": 1, "scope": scope(shape), "grids": grids,
        "ladders": LADDERS, "embeddings": {},
        "weights": {"linear": 1.1, "attention": 0.9, "norm": 0.5, "add": 1.2, "depthwise": 0.7, "reduction": 1.3,
                    "block": 1e-5},
    }  # fmt: skip
    return Calibration(**(values | changes))


LADDERS = {name: Ladder(np.ones(32)) for name in ("inputs", "outputs", "head_dim")}


def powers(factor: float, *exponents: float) -> Grid:
    """A grid of `factor` times powers of the sizes, which interpolation in logarithms meets exactly."""
    sizes = np.meshgrid(*[np.array(AXIS)] * len(exponents), indexing="ij")
    return Grid((AXIS,) * len(exponents), factor * np.prod([s**p for s, p in zip(sizes, exponents, strict=True)], 0))


def device(**changes) -> Calibration:
    """A device whose times are powers of the sizes, which interpolation in logarithms meets exactly."""
    axis = (1.0, 10.0, 1000.0)

    def grid(*factors: float) -> Grid:
        sizes = np.meshgrid(*[np.array(axis)] * (len(factors) - 1), indexing="ij")
        return Grid(
            (axis,) * len(sizes), factors[0] * np.prod([s**p for s, p in zip(sizes, factors[1:], strict=True)], 0)
        )

    values = {
        "device": "made up", "dtype": "float32", "threads": 1,
        "grids": {"linear": grid(3e-9, 0.9, 0.8, 0.7), "attention": grid(2e-9, 1, 1.9, 0.6), "norm": grid(1e-9, 1, 0.9),
                  "gelu": grid(4e-9, 1, 1), "add": grid(5e-10, 1, 1)},
        "ladders": {name: Ladder(np.ones(32)) for name in ("inputs", "outputs", "head_dim")},
        "embeddings": {geometry(SHAPE): grid(7e-6, 0.5, 0.25)},
        "weights": {"linear": 1.1, "attention": 0.9, "norm": 0.5, "gelu": 0.8, "add": 1.2, "block": 1e-5},
    }  # fmt: skip
    return Calibration(**(values | changes))


SHAPE = replace(bench.DEMO, blocks=(BlockShape(6, 96, 384), BlockShape(3, 60, 100), BlockShape(2, 22, 31)))


AXIS = (1.0, 10.0, 1000.0)


TEXT = language_shape(
    "text", vocabulary=40, context=12, embed_dim=24, blocks=(BlockShape(4, 24, 96), BlockShape(2, 10, 31))
)


def language_device(**changes: Any) -> Calibration:
    values = {
        "device": "made up", "dtype": "float32", "threads": 1, "scope": scope(TEXT), "ladders": LADDERS,
        "grids": {"linear": powers(3e-9, 0.9, 0.8, 0.7), "attention": powers(2e-9, 1, 1.9, 0.6),
                  "norm": powers(1e-9, 1, 1), "gelu": powers(9e-9, 1, 1), "add": powers(5e-10, 1, 1),
                  "head": powers(4e-8, 0.9, 0.5)},
        "embeddings": {geometry(TEXT): powers(7e-6, 0.5, 0.25)},
        "weights": {"linear": 1.1, "attention": 0.9, "norm": 0.5, "gelu": 0.8, "add": 1.2, "block": 1e-5},
    }  # fmt: skip
    return Calibration(**(values | changes))
