"""Least squares of one layer, gathered batch by batch, and its result."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from upvit_core.importance import sharding
from upvit_core.pruning.repair.least_squares import Moments, solve


@dataclass(frozen=True)
class LayerRepair:
    """One layer's squared error on held-out images over the square of its target, before and after."""

    layer: str
    kept: bool
    ridge: float
    before: float
    after: float


@dataclass(frozen=True)
class RepairReport:
    """layers in the order of their repair; images of the proxy set, of which held_out chose the ridges."""

    layers: tuple[LayerRepair, ...]
    images: int
    held_out: int
    seconds: float

    def to_dict(self) -> dict[str, object]:
        return asdict(self)


class LinearFit:
    """The difference between a linear layer's output and its target; the layer is changed in place at the end.

    weight: (outputs, inputs), which may be a view of some rows, of a transposed or of a flattened weight; bias:
    (outputs,) or None; weights: (T,), by which each token counts, where such are given.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, weights: Tensor | None = None):
        self.weight, self.bias = weight, bias
        self.root = None if weights is None else weights.sqrt()[:, None]  # (T, 1)
        outputs, inputs = weight.shape
        self.train, self.held_out = (Moments(inputs + (bias is not None), outputs, weight.device) for _ in range(2))
        self.energy = torch.zeros((), dtype=torch.float64, device=weight.device)

    @classmethod
    def of(
        cls, layer: nn.Module, rows: slice = slice(None), bias: bool = True, weights: Tensor | None = None
    ) -> LinearFit:
        """The fit of some outputs of a linear layer, a convolution (as a map of patches) or a `Conv1D`."""
        parameters = dict(layer.named_parameters())
        weight = parameters["weight"].data
        weight = weight.flatten(1) if isinstance(layer, nn.Linear | nn.Conv2d) else weight.T  # (outputs, inputs)
        has_bias = bias and "bias" in parameters
        return cls(weight[rows], parameters["bias"].data[rows] if has_bias else None, weights)

    def add(self, x: Tensor, target: Tensor, held: Tensor) -> None:
        """x: (B, ..., inputs), target: (B, ..., outputs), held: (B,) marks images that choose the ridge."""
        missing = target - F.linear(x, self.weight, self.bias)
        if self.bias is not None:
            x = F.pad(x, (0, 1), value=1)
        if self.root is not None:
            x, missing, target = (t * self.root[: x.shape[1]] for t in (x, missing, target))
        self.train.add(x[~held], missing[~held])
        self.held_out.add(x[held], missing[held])
        self.energy += target[held].double().square().sum()

    def finish(self, name: str) -> LayerRepair:
        """Change the layer where that lowers the held-out error, by the inputs of all processes."""
        sums = [tensor for of in (self.train, self.held_out) for tensor in (of.xx, of.xy, of.yy)]
        sharding.add_up(self.energy, *sums)
        solution = solve(self.train, self.held_out)
        kept = solution.after < solution.before
        if kept:
            change = solution.change.T.to(self.weight.dtype)  # (outputs, inputs + 1)
            self.weight += change[:, : self.weight.shape[1]]
            if self.bias is not None:
                self.bias += change[:, -1]
        sharding.agree(self.weight, *([] if self.bias is None else [self.bias]))
        energy = max(float(self.energy), 1e-300)
        return LayerRepair(name, kept, solution.ridge, solution.before / energy, solution.after / energy)
