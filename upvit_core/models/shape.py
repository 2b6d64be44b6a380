"""The former place of `records.shape`: scripts that import a model's shape from here go on working."""

from upvit_core.records.known_shapes import deit_shape, pvt_shape
from upvit_core.records.shape import BlockShape, ModelShape

__all__ = ["BlockShape", "ModelShape", "deit_shape", "pvt_shape"]
