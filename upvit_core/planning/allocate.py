"""How much of each block goes: the same share everywhere, one threshold for all, one ranking per kind, or by hand.

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

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal, get_args

import numpy as np

from upvit_core.errors import PlanError
from upvit_core.planning.curves import Curve, Curves, Widths, removal_curves
from upvit_core.planning.pool import pool_per_block
from upvit_core.planning.ratios import plan_widths
from upvit_core.profiling.macs import count_macs, count_parameters
from upvit_core.records.plan import PruningPlan
from upvit_core.records.scores import ImportanceScores
from upvit_core.records.shape import ModelShape

Allocation = Literal["uniform", "global", "isomorphic"]
Per = Literal["channel", "params", "macs"]
ALLOCATIONS: tuple[Allocation, ...] = get_args(Allocation)
PERS: tuple[Per, ...] = get_args(Per)


def plan_allocated(
    scores: ImportanceScores,
    *,
    residual: float = 0.0,
    attention: float = 0.0,
    ffn: float = 0.0,
    heads: int | Sequence[int] | None = None,
    allocation: Allocation = "uniform",
    per: Per = "channel",
    round_to: int = 1,
    basis: str = "channels",
) -> PruningPlan:
    """A plan from three pruning ratios, spread over the blocks as `allocation` says.

    With `global` the ratios say only how many channels go in total: residual · D + attention · ΣA + ffn · ΣH.

    Raises PlanError for ratios outside [0, 1), heads that do not divide, and unknown allocations.
    """
    curves = removal_curves(scores, heads=heads, round_to=round_to)
    ratios = {"residual": residual, "attention": attention, "ffn": ffn}
    for name, ratio in ratios.items():
        _check_ratio(name, ratio)
    if allocation == "uniform":
        widths = uniform_widths(curves, residual, attention, ffn)
    elif allocation == "isomorphic":
        widths = isomorphic_widths(curves, residual, attention, ffn)
    elif allocation == "global":
        ranking = global_ranking(curves, per)
        full = (curves.shape.embed_dim, _full(curves.attention), _full(curves.ffn))
        total = sum(ratio * width for ratio, width in zip(ratios.values(), full, strict=True))
        widths = ranking.widths(int(np.searchsorted(ranking.removed, total - 1e-9)))
    else:
        raise PlanError(f"There is no allocation {allocation!r}; choose one of {', '.join(ALLOCATIONS)}.")
    requested: dict[str, Any] = {**ratios, "heads": list(curves.heads), "allocation": allocation, "round_to": round_to}
    if allocation == "global":
        requested["per"] = per
    return plan_widths(scores, widths.embed_dim, list(widths.blocks), requested=requested, basis=basis)


def plan_by_block(
    scores: ImportanceScores,
    *,
    residual: float = 0.0,
    attention: float | Sequence[float] = 0.0,
    ffn: float | Sequence[float] = 0.0,
    heads: int | Sequence[int] | None = None,
    round_to: int = 1,
    basis: str = "channels",
) -> PruningPlan:
    """A plan from ratios and heads by block (a single number holds for all), each at its nearest legal width.

    Raises PlanError for ratios outside [0, 1), lists that are not as long as the model is deep, and illegal heads.
    """
    curves = removal_curves(scores, heads=heads, round_to=round_to)
    shares = {name: _by_block(name, given, scores.shape) for name, given in (("attention", attention), ("ffn", ffn))}
    _check_ratio("residual", residual)
    widths = Widths(
        curves.residual.nearest(scores.shape.embed_dim * (1 - residual)),
        _blocks(curves, _nearest(curves.attention, shares["attention"]), _nearest(curves.ffn, shares["ffn"])),
    )
    requested: dict[str, Any] = {
        "residual": residual, "attention": list(shares["attention"]), "ffn": list(shares["ffn"]),
        "heads": list(curves.heads), "allocation": "by block", "round_to": round_to,
    }  # fmt: skip
    return plan_widths(scores, widths.embed_dim, list(widths.blocks), requested=requested, basis=basis)


def uniform_widths(curves: Curves, residual: float, attention: float, ffn: float) -> Widths:
    """The same ratio in every block."""
    depth = curves.shape.depth
    return Widths(
        curves.residual.nearest(curves.shape.embed_dim * (1 - residual)),
        _blocks(curves, _nearest(curves.attention, (attention,) * depth), _nearest(curves.ffn, (ffn,) * depth)),
    )


def isomorphic_widths(curves: Curves, residual: float, attention: float, ffn: float) -> Widths:
    """One ranking over all attention channels and one over all FFN channels."""
    chosen = []
    for kind, ratio in ((curves.attention, attention), (curves.ffn, ffn)):
        pool = pool_per_block(kind)
        chosen.append(pool.split(int(np.argmin(np.abs(pool.totals - _full(kind) * (1 - ratio))))))
    return Widths(curves.residual.nearest(curves.shape.embed_dim * (1 - residual)), _blocks(curves, *chosen))


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


def global_ranking(curves: Curves, per: Per = "channel") -> GlobalRanking:
    """The ranking of `global`."""
    return GlobalRanking(curves, per)


def _prices(shape: ModelShape, per: Per) -> list[float]:
    """What one channel of each layer saves at full width: 1, parameters or MACs."""
    if per == "channel":
        return [1.0] * (1 + 2 * shape.depth)
    count: Callable[[ModelShape], int] = count_parameters if per == "params" else count_macs
    full = count(shape)
    prices = [full - count(replace(shape, embed_dim=shape.embed_dim - 1))]
    for field in ("attention", "ffn"):
        for b, block in enumerate(shape.blocks):
            blocks = list(shape.blocks)
            blocks[b] = replace(block, **{field: getattr(block, field) - 1})
            prices.append(full - count(replace(shape, blocks=tuple(blocks))))
    return [float(price) for price in prices]


def _full(kind: Sequence[Curve]) -> int:
    return sum(int(curve.widths[-1]) for curve in kind)


def _nearest(kind: Sequence[Curve], ratios: Sequence[float]) -> list[int]:
    return [curve.nearest(curve.widths[-1] * (1 - ratio)) for curve, ratio in zip(kind, ratios, strict=True)]


def _blocks(curves: Curves, attention: Sequence[int], ffn: Sequence[int]) -> tuple[tuple[int, int, int], ...]:
    return tuple(zip(curves.heads, attention, ffn, strict=True))


def _check_ratio(name: str, ratio: float) -> None:
    if not 0 <= ratio < 1:
        raise PlanError(f"The {name} ratio is the share removed, in [0, 1), not {ratio}; 0.5 removes half.")


def _by_block(name: str, given: float | Sequence[float], shape: ModelShape) -> tuple[float, ...]:
    ratios = (float(given),) * shape.depth if isinstance(given, int | float) else tuple(float(r) for r in given)
    if len(ratios) != shape.depth:
        raise PlanError(f"{len(ratios)} {name} ratios were given for the {shape.depth} blocks of {shape.name}.")
    for ratio in ratios:
        _check_ratio(name, ratio)
    return ratios
