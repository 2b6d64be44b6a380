"""Ratios spread over the blocks: the same share everywhere, one threshold for all, or one ranking per kind.

- `uniform` is the letter's choice "for simplicity": the same pruning ratio in all blocks.
- `global` puts all channels of all components into one ranking and removes the lowest. Scores in nats are comparable
  between components; `per="params"` or `per="macs"` ranks by score per parameter or MAC that goes with the channel (at
  the model's full widths), so that cheap savings go first.
- `isomorphic` keeps one ranking per kind of layer: residual, all attention channels, all FFN channels (Fang et al.,
  "Isomorphic Pruning for Vision Models", ECCV 2024: structures are ranked only among their like). Each kind loses its
  ratio of channels; blocks lose what their scores say.

Attention channels go in steps of one channel from every merged head, so that heads stay equally wide. Every layer
keeps at least its narrowest legal width. Widths are rounded to the nearest legal ones.
"""

from collections.abc import Sequence
from typing import Any, Literal, get_args

import numpy as np

from upvit_core.errors import PlanError
from upvit_core.planning.cost_model import COUNTS, CostModel
from upvit_core.planning.curves import Curve, Curves, Widths, removal_curves
from upvit_core.planning.pool import pool_per_block
from upvit_core.planning.ratios import NOTHING, plan_widths
from upvit_core.records.basis import Basis
from upvit_core.records.plan import PruningPlan
from upvit_core.records.ratios import Ratios
from upvit_core.records.scores import ImportanceScores
from upvit_core.records.shape import COMPONENTS, ModelShape

Allocation = Literal["uniform", "global", "isomorphic"]
Per = Literal["channel", "params", "macs"]
ALLOCATIONS: tuple[Allocation, ...] = get_args(Allocation)
PERS: tuple[Per, ...] = get_args(Per)


def plan_allocated(
    scores: ImportanceScores,
    ratios: Ratios = NOTHING,
    *,
    heads: int | Sequence[int] | None = None,
    allocation: Allocation = "uniform",
    per: Per = "channel",
    round_to: int = 1,
    basis: Basis = Basis.CHANNELS,
) -> PruningPlan:
    """A plan from the ratios of residual, attention and FFN, spread over the blocks as `allocation` says.

    With `global` the ratios say only how many channels go in total: residual · D + attention · ΣA + ffn · ΣH.

    Raises PlanError for heads that do not divide, and unknown allocations.
    """
    curves = removal_curves(scores, heads=heads, round_to=round_to)
    if allocation == "uniform":
        widths = _uniform_widths(curves, ratios)
    elif allocation == "isomorphic":
        widths = isomorphic_widths(curves, ratios)
    elif allocation == "global":
        ranking = GlobalRanking(curves, per)
        full = curves.shape.embed_dim, _full(curves.attention), _full(curves.ffn)
        total = ratios.residual * full[0] + ratios.attention * full[1] + ratios.ffn * full[2]
        widths = ranking.widths(int(np.searchsorted(ranking.removed, total - 1e-9)))
    else:
        raise PlanError(f"There is no allocation {allocation!r}; choose one of {', '.join(ALLOCATIONS)}.")
    requested: dict[str, Any] = {**ratios.named, "heads": list(curves.heads), "allocation": allocation}
    requested["round_to"] = round_to
    if allocation == "global":
        requested["per"] = per
    return plan_widths(scores, widths.embed_dim, list(widths.blocks), requested=requested, basis=basis)


def _uniform_widths(curves: Curves, ratios: Ratios) -> Widths:
    """Widths nearest to the same ratio in every block."""
    blocks = _blocks(curves, _nearest(curves.attention, ratios.attention), _nearest(curves.ffn, ratios.ffn))
    return Widths(curves.residual.nearest(curves.shape.embed_dim * (1 - ratios.residual)), blocks)


def isomorphic_widths(curves: Curves, ratios: Ratios) -> Widths:
    """Widths by one ranking over all attention channels and one over all FFN channels; the residual as `uniform`."""
    chosen = []
    for kind, ratio in ((curves.attention, ratios.attention), (curves.ffn, ratios.ffn)):
        pool = pool_per_block(kind)
        chosen.append(pool.split(int(np.argmin(np.abs(pool.totals - _full(kind) * (1 - ratio))))))
    return Widths(curves.residual.nearest(curves.shape.embed_dim * (1 - ratios.residual)), _blocks(curves, *chosen))


class GlobalRanking:
    """Every step that any layer can lose, lowest score per channel, parameter or MAC first.

    removed (n + 1,): channels gone after the first 0 … n steps.
    """

    def __init__(self, curves: Curves, per: Per = "channel"):
        if per not in PERS:
            raise PlanError(f"A global ranking is per {', '.join(PERS)}, not per {per!r}.")
        self._curves = curves
        self._layers = (curves.residual, *curves.attention, *curves.ffn)
        prices = _prices(curves.shape, per)
        steps = [-np.diff(layer.widths[::-1]) for layer in self._layers]
        each = [
            np.diff(layer.lost[::-1]) / (step * price)
            for layer, step, price in zip(self._layers, steps, prices, strict=True)
        ]
        owner = np.repeat(np.arange(len(self._layers)), [len(values) for values in each])
        order = np.argsort(np.concatenate(each), kind="stable")
        self._owner = owner[order]
        self.removed = np.concatenate([[0], np.cumsum(np.concatenate(steps)[order])])

    def __len__(self) -> int:
        return len(self._owner)

    def widths(self, steps: int) -> Widths:
        """Widths after the lowest `steps` steps are gone."""
        gone = np.bincount(self._owner[:steps], minlength=len(self._layers))
        kept = [int(layer.widths[-1 - count]) for layer, count in zip(self._layers, gone, strict=True)]
        depth = self._curves.shape.depth
        return Widths(kept[0], _blocks(self._curves, kept[1 : 1 + depth], kept[1 + depth :]))


def _prices(shape: ModelShape, per: Per) -> list[float]:
    """Savings of one channel of each layer at full width: 1, parameters or MACs."""
    if per == "channel":
        return [1.0] * (1 + 2 * shape.depth)
    model, widths = CostModel(COUNTS[per], shape), {group.key: group.width for group in shape.groups}
    layers = [group.key for component in COMPONENTS for group in shape.groups_of(component)]
    return [float(model.slope(key, widths)) for key in layers]


def _full(kind: Sequence[Curve]) -> int:
    return sum(int(curve.widths[-1]) for curve in kind)


def _nearest(kind: Sequence[Curve], ratio: float) -> list[int]:
    return [curve.nearest(curve.widths[-1] * (1 - ratio)) for curve in kind]


def _blocks(curves: Curves, attention: Sequence[int], ffn: Sequence[int]) -> tuple[tuple[int, int, int], ...]:
    return tuple(zip(curves.heads, attention, ffn, strict=True))
