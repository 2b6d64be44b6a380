"""Ridge regression from second moments: rows are seen once, and nothing grows with their number."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

RIDGES = (1e-9, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Ridges to try, in units of each feature's second moment."""


class Moments:
    """Sums over rows of one problem: the change of a layer, a linear map of its features x (n), that supplies the
    difference y (m) between its output and the target. A ridge therefore shrinks towards the layer as it is."""

    def __init__(self, features: int, outputs: int, device: torch.device | str = "cpu"):
        self.xx = torch.zeros(features, features, dtype=torch.float64, device=device)
        self.xy = torch.zeros(features, outputs, dtype=torch.float64, device=device)
        self.yy = torch.zeros((), dtype=torch.float64, device=device)

    def add(self, x: Tensor, y: Tensor) -> None:
        """x: (..., n), y: (..., m); products in their dtype, sums in float64."""
        x, y = x.flatten(0, -2), y.flatten(0, -2)
        self.xx += x.T @ x
        self.xy += x.T @ y
        self.yy += y.double().square().sum()

    def __add__(self, other: Moments) -> Moments:
        both = Moments(self.xy.shape[0], self.xy.shape[1], self.xy.device)
        both.xx, both.xy, both.yy = self.xx + other.xx, self.xy + other.xy, self.yy + other.yy
        return both

    def error(self, change: Tensor) -> float:
        """Σ |y - changeᵀ x|² over the rows; change: (n, m)."""
        return float(self.yy + (change * (self.xx @ change - 2 * self.xy)).sum())

    @property
    def scale(self) -> Tensor:
        """Of each feature (n, 1), to unit second moment."""
        diagonal = self.xx.diagonal()
        return diagonal.maximum(1e-12 * diagonal.mean() + 1e-300).rsqrt()[:, None]

    def solve_one(self, ridge: float) -> Tensor:
        """`solve` for one ridge, by a Cholesky factor where rounding leaves one."""
        scale = self.scale
        scaled = self.xx * scale * scale.T
        scaled.diagonal().add_(ridge)
        factor, failed = torch.linalg.cholesky_ex(scaled)
        if bool(failed):
            return self.solve((ridge,))[0]
        return scale * torch.cholesky_solve(self.xy * scale, factor)

    def solve(self, ridges: tuple[float, ...]) -> list[Tensor]:
        """For each ridge the change (n, m) with the least squared error, features scaled to unit second moment."""
        scale = self.scale
        values, vectors = torch.linalg.eigh(self.xx * scale * scale.T)
        projected = vectors.T @ (self.xy * scale)
        return [scale * (vectors @ (projected / (values.clamp_min(0) + ridge)[:, None])) for ridge in ridges]


@dataclass(frozen=True)
class Solution:
    """change: (n, m) from all rows with the ridge that did best on held-out rows; errors are held-out sums."""

    change: Tensor
    ridge: float
    before: float
    after: float


def solve(train: Moments, held_out: Moments) -> Solution:
    """Choose the ridge by the held-out rows, then solve on all rows with it."""
    tried = zip(RIDGES, train.solve(RIDGES), strict=True)
    after, ridge = min((held_out.error(change), ridge) for ridge, change in tried)
    return Solution((train + held_out).solve_one(ridge), ridge, float(held_out.yy), after)
