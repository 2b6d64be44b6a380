"""One layer's least squares, gathered batch by batch, and what became of it; every repair fits its layers so."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from upvit_core.errors import PlanError
from upvit_core.importance.criterion import Proxy
from upvit_core.pruning.repair.least_squares import Moments, solve


@dataclass(frozen=True)
class LayerRepair:
    """What became of one layer: squared error on held-out images over the target's own square, before and after."""

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

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def check_enough(proxy: Proxy, held_out: int, unit: str) -> None:
    """Raises PlanError where there are fewer images (or blocks of tokens) than one in `held_out` needs."""
    if len(proxy) < held_out:
        raise PlanError(
            f"Repair needs at least {held_out} {unit}, of which one in {held_out} is held out; got {len(proxy)}."
        )


class LinearFit:
    """What a linear layer still misses of its target, for some proxy images; it is changed in place at the end.

    weight: (outputs, inputs), which may be a view of some rows, of a transposed or of a flattened weight; bias:
    (outputs,) or None; weights: (T,), by which each token counts, where such are given.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, weights: Tensor | None = None):
        self.weight, self.bias = weight, bias
        self.root = None if weights is None else weights.sqrt()[:, None]  # (T, 1)
        outputs, inputs = weight.shape
        self.train, self.held_out = (Moments(inputs + (bias is not None), outputs, weight.device) for _ in range(2))
        self.energy = 0.0

    @classmethod
    def of(
        cls, linear: nn.Linear, rows: slice = slice(None), bias: bool = True, weights: Tensor | None = None
    ) -> LinearFit:
        """Of some output rows of a linear layer, with or without its bias."""
        has_bias = bias and linear.bias is not None
        return cls(linear.weight.data[rows], linear.bias.data[rows] if has_bias else None, weights)

    def add(self, x: Tensor, target: Tensor, held: Tensor) -> None:
        """x: (B, ..., inputs), target: (B, ..., outputs), held: (B,) marks images that choose the ridge."""
        missing = target - F.linear(x, self.weight, self.bias)
        if self.bias is not None:
            x = F.pad(x, (0, 1), value=1)
        if self.root is not None:
            x, missing, target = (t * self.root[: x.shape[1]] for t in (x, missing, target))
        self.train.add(x[~held], missing[~held])
        self.held_out.add(x[held], missing[held])
        self.energy += float(target[held].double().square().sum())

    def finish(self, name: str) -> LayerRepair:
        """Change the layer where that lowers the held-out error."""
        solution = solve(self.train, self.held_out)
        kept = solution.after < solution.before
        if kept:
            change = solution.change.T.to(self.weight.dtype)  # (outputs, inputs + 1)
            self.weight += change[:, : self.weight.shape[1]]
            if self.bias is not None:
                self.bias += change[:, -1]
        energy = max(self.energy, 1e-300)
        return LayerRepair(name, kept, solution.ridge, solution.before / energy, solution.after / energy)
