"""The best plan under a budget: least score removed within limits on parameters, MACs and latency, any of them at once.

The score removed is the sum of the scores of the channels that go (`curves.py` says what it leaves out). The problem is
then separable: minimise R(D) + Σ_b R_b(A_b) + Σ_b R_b(H_b) over the widths D of the residual, and A_b of attention and
H_b of the FFN of block b.

- Parameters and MACs are linear in ΣA and ΣH once D is fixed, so blocks are pooled into one curve of each (`pool.py`);
  all D and all ΣA are tried, and ΣH is the largest that fits. Exact. Since pooling takes the largest gain first, the
  optimum is one threshold per kind of layer: the isomorphic ranking, with the three ratios chosen by the budget.
- Latency is separable too, but any function of the widths. Equal blocks are found by trying all; widths that differ
  between blocks by Lagrange multipliers, whose dual gives `bound` (`lagrangian.py`). Wide models are searched in steps.

Heads stay as they are unless asked: scores cannot see what merging heads does by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Literal, Protocol, get_args

import numpy as np

from upvit_core.errors import PlanError
from upvit_core.planning.allocate import GlobalRanking, Per, isomorphic_widths
from upvit_core.planning.cost_model import COUNTS, CostModel, Timed, costs_of, out_of_reach
from upvit_core.planning.curves import Curve, Curves, Widths, removal_curves
from upvit_core.planning.lagrangian import CostVector, lagrangian
from upvit_core.planning.pool import WidthPool, pool_per_block, pool_uniform
from upvit_core.planning.ratios import plan_widths
from upvit_core.records.basis import Basis
from upvit_core.records.plan import PruningPlan
from upvit_core.records.ratios import Ratios
from upvit_core.records.scores import ImportanceScores
from upvit_core.records.shape import BlockShape, ModelShape

Family = Literal["best", "uniform", "stock", "global", "isomorphic"]
FAMILIES: tuple[Family, ...] = get_args(Family)
SUFFIXES = {"k": 1e3, "m": 1e6, "g": 1e9}
LATENCY_WIDTHS = {"residual": 96, "attention": 64, "ffn": 128}


class LatencyParts(Timed, Protocol):
    """Milliseconds of a forward pass at one batch size, as a sum over its parts."""

    def fixed(self, embed_dim: np.ndarray) -> np.ndarray:
        """All but the blocks; (n,) for residual widths (n,)."""

    def attention(self, embed_dim: np.ndarray, heads: int, widths: np.ndarray) -> np.ndarray:
        """The attention half of one block, (n, m) for residual widths (n,) and attention widths (m,)."""

    def ffn(self, embed_dim: np.ndarray, widths: np.ndarray) -> np.ndarray:
        """The FFN half of one block, (n, m)."""


@dataclass(frozen=True)
class Budget:
    """Upper limits; None: no limit. `latency_ms` is of one batch, whose size the latency estimate knows."""

    params: float | None = None
    macs: float | None = None
    latency_ms: float | None = None

    @classmethod
    def parse(cls, texts: Iterable[str]) -> Budget:
        """From `macs=1.2G`, `params=6M`, `latency_ms=4`; each limit at most once."""
        limits: dict[str, float] = {}
        for text in texts:
            name, equals, amount = text.strip().partition("=")
            if not equals or name not in cls.__dataclass_fields__ or name in limits:
                raise PlanError(f"{text!r} is no budget; give macs=1.2G, params=6M or latency_ms=4, each at most once.")
            limits[name] = _amount(amount, text)
        return cls(**limits)

    def limits(self) -> dict[str, float]:
        """The limits that are set. Raises PlanError where there is none, or one is not above 0."""
        limits = {name: value for name, value in asdict(self).items() if value is not None}
        if not limits:
            raise PlanError("No budget was given; give params, macs or latency_ms.")
        for name, value in limits.items():
            if not value > 0:
                raise PlanError(f"A budget of {name}={value:g} leaves nothing; give a number above 0.")
        return limits


@dataclass(frozen=True)
class BestPlan:
    """The plan, what it costs, and how good it is among its like.

    predicted: sum of the scores removed (nats an image, where the scores are in nats). bound: no plan of this family
    within the budget removes less; equal to `predicted` where the search is exact.
    """

    plan: PruningPlan
    predicted: float
    bound: float
    params: int
    macs: int
    latency_ms: float | None

    @property
    def gap(self) -> float:
        return max(self.predicted - self.bound, 0.0)


def best_plan(
    scores: ImportanceScores,
    budget: Budget,
    *,
    family: Family = "best",
    latency: LatencyParts | None = None,
    heads: int | Sequence[int] | None = None,
    round_to: int = 1,
    per: Per = "channel",
    basis: Basis = Basis.CHANNELS,
) -> BestPlan:
    """The plan that loses least score within a budget.

    family: `best` lets every block have its own widths; `uniform` the same share in all blocks; `stock` only shapes
    that stock timm builds (equal blocks, attention as wide as the residual); `isomorphic` the same ratio of each kind
    of layer, lowered until it fits; `global` one threshold over scores per channel, parameter or MAC (`per`).

    Raises PlanError where the budget cannot be met, or asks for a latency that no estimate was given for.
    """
    limits = budget.limits()
    if "latency_ms" in limits and latency is None:
        raise PlanError("A latency budget needs this device's calibration; run `calibrate` first.")
    curves = removal_curves(scores, heads=heads, round_to=round_to)
    problem = BudgetProblem(curves, limits, latency)
    if family in ("global", "isomorphic"):
        widths = _lowered(problem, family, per)
        bound = None
    elif family in ("best", "uniform", "stock"):
        widths, bound = _solve(problem, family)
    else:
        raise PlanError(f"There is no allocation {family!r}; choose one of {', '.join(FAMILIES)}.")
    requested = {"budget": limits, "allocation": family, "heads": list(curves.heads), "round_to": round_to}
    plan = plan_widths(scores, widths.embed_dim, list(widths.blocks), requested=requested, basis=basis)
    predicted, costs = curves.loss_at(widths), costs_of(plan.shape_after, latency)
    bound = predicted if bound is None else min(bound, predicted)
    return BestPlan(plan, predicted, bound, int(costs["params"]), int(costs["macs"]), costs.get("latency_ms"))


class BudgetProblem:
    """Curves, limits, and the costs of widths."""

    def __init__(self, curves: Curves, limits: dict[str, float], latency: LatencyParts | None):
        self.curves, self.limits, self.latency = curves, limits, latency
        self.counts = {name: CostModel(COUNTS[name], curves.shape) for name in limits if name in COUNTS}

    def coefficients(self, name: str, embed_dim: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """A count at residual widths (n,): without any channel in the blocks, of an attention and of an FFN channel."""
        at, model = {"residual": embed_dim}, self.counts[name]
        return model.at(at), model.slope("attention.0", at), model.slope("ffn.0", at)

    def shape(self, widths: Widths) -> ModelShape:
        blocks = tuple(BlockShape(*block) for block in widths.blocks)
        return replace(self.curves.shape, embed_dim=widths.embed_dim, blocks=blocks)

    def fits(self, widths: Widths) -> bool:
        costs = costs_of(self.shape(widths), self.latency)
        return all(costs[name] <= limit for name, limit in self.limits.items())

    def refuse(self) -> PlanError:
        """The error for a budget below the smallest plan."""
        curves = self.curves
        blocks = zip(curves.heads, curves.attention, curves.ffn, strict=True)
        narrowest = tuple((heads, int(a.widths[0]), int(f.widths[0])) for heads, a, f in blocks)
        smallest = self.shape(Widths(int(curves.residual.widths[0]), narrowest))
        return out_of_reach(smallest, self.limits, self.latency)


def _solve(problem: BudgetProblem, family: Family) -> tuple[Widths, float | None]:
    curves = problem.curves
    if problem.latency is not None and "latency_ms" in problem.limits:
        curves = _thinned(curves)
        if family == "best":
            return _by_multipliers(problem, curves)
    pool = {"best": pool_per_block, "uniform": pool_uniform, "stock": _pool_equal}[family]
    attention, ffn = pool(curves.attention), pool(curves.ffn)
    D = curves.residual.widths
    lost = curves.residual.lost[:, None] + attention.lost[None, :]  # (nD, nA)
    if family == "stock":
        depth = curves.shape.depth
        lost[attention.totals[None, :] != depth * D[:, None]] = np.inf
        if len(set(curves.heads)) > 1:
            raise PlanError("Stock timm builds equal blocks only; give one number of heads.")
    widest = np.full(lost.shape, len(ffn.totals) - 1)
    for name in problem.counts:
        const, per_attention, per_ffn = (values[:, None] for values in problem.coefficients(name, D))
        most = np.floor((problem.limits[name] - const - per_attention * attention.totals) / per_ffn)
        widest = np.minimum(widest, np.searchsorted(ffn.totals, most, side="right") - 1)
    if "latency_ms" in problem.limits:
        widest = np.minimum(widest, _widest_in_time(problem, curves, attention, ffn))
    total = np.where(widest >= 0, lost + ffn.lost[widest], np.inf)
    if not np.isfinite(total).any():
        raise problem.refuse()
    i, k = np.unravel_index(np.argmin(total), total.shape)
    blocks = zip(curves.heads, attention.split(int(k)), ffn.split(int(widest[i, k])), strict=True)
    return Widths(int(D[i]), tuple(blocks)), None


def _pool_equal(curves: Sequence[Curve]) -> WidthPool:
    """Only widths that every block can have, all blocks alike."""
    common = sorted(set.intersection(*(set(curve.widths.tolist()) for curve in curves)))
    if not common:
        raise PlanError("Stock timm builds equal blocks only, but these blocks have no width in common.")
    lost = np.zeros(len(common))
    for curve in curves:
        lost += curve.lost[np.searchsorted(curve.widths, common)]
    depth = len(curves)
    return WidthPool(depth * np.array(common), lost, lambda i: (common[i],) * depth)


def _widest_in_time(problem: BudgetProblem, curves: Curves, attention: WidthPool, ffn: WidthPool) -> np.ndarray:
    """Index (nD, nA) of the widest FFN that meets the latency limit, -1 where none; rows of the pools are plans."""
    assert problem.latency is not None
    D = curves.residual.widths
    A, H = (np.array([pool.split(n) for n in range(len(pool.totals))]) for pool in (attention, ffn))  # (plans, blocks)
    a_ms, h_ms = np.zeros((len(D), len(attention.totals))), np.zeros((len(D), len(ffn.totals)))
    for b, heads in enumerate(curves.heads):
        a_ms += problem.latency.attention(D, heads, A[:, b])
        h_ms += problem.latency.ffn(D, H[:, b])
    left = problem.limits["latency_ms"] - problem.latency.fixed(D)[:, None] - a_ms  # (nD, nA)
    fits = h_ms[:, None, :] <= left[:, :, None]
    last = fits.shape[2] - 1 - np.argmax(fits[:, :, ::-1], axis=2)
    return np.where(fits.any(2), last, -1)


def _thinned(curves: Curves) -> Curves:
    """Fewer widths, evenly spaced from the full width down, so that every one can be timed."""

    def thin(curve: Curve, most: int) -> Curve:
        every = -(-len(curve.widths) // most)
        return Curve(curve.widths[::-1][::every][::-1], curve.lost[::-1][::every][::-1])

    return replace(
        curves,
        residual=thin(curves.residual, LATENCY_WIDTHS["residual"]),
        attention=tuple(thin(curve, LATENCY_WIDTHS["attention"]) for curve in curves.attention),
        ffn=tuple(thin(curve, LATENCY_WIDTHS["ffn"]) for curve in curves.ffn),
    )


def _by_multipliers(problem: BudgetProblem, curves: Curves) -> tuple[Widths, float]:
    assert problem.latency is not None
    D, layers = curves.residual.widths, (*curves.attention, *curves.ffn)
    latency, depth = problem.latency, curves.shape.depth
    tables = {
        (h, len(a.widths)): latency.attention(D, h, a.widths)
        for h, a in zip(curves.heads, curves.attention, strict=True)
    }
    in_ms = [tables[h, len(a.widths)] for h, a in zip(curves.heads, curves.attention, strict=True)]
    same: dict[int, np.ndarray] = {}
    in_ms += [same.setdefault(len(f.widths), latency.ffn(D, f.widths)) for f in curves.ffn]
    costs = [CostVector(latency.fixed(D), in_ms, problem.limits["latency_ms"])]
    for name in problem.counts:
        const, per_attention, per_ffn = problem.coefficients(name, D)
        slopes = [per_attention] * depth + [per_ffn] * depth
        counts = [slope[:, None] * layer.widths for slope, layer in zip(slopes, layers, strict=True)]
        costs.append(CostVector(const, counts, problem.limits[name]))
    best = lagrangian(curves.residual.lost, [layer.lost for layer in layers], costs)
    if best is None:
        raise problem.refuse()
    widths = [int(layer.widths[n]) for layer, n in zip(layers, best.options, strict=True)]
    blocks = tuple(zip(curves.heads, widths[:depth], widths[depth:], strict=True))
    return Widths(int(D[best.outer]), blocks), best.bound


def _lowered(problem: BudgetProblem, family: str, per: Per) -> Widths:
    """Turn one ratio, or one threshold, down until the budget is met."""
    if family == "global":
        ranking = GlobalRanking(problem.curves, per)
        turn: Callable[[int], Widths] = ranking.widths
        last = len(ranking)
    else:
        last = 2000

        def turn(step: int) -> Widths:
            return isomorphic_widths(problem.curves, Ratios.equal(step / (last + 1)))

    if not problem.fits(turn(last)):
        raise problem.refuse()
    low, high = -1, last
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if problem.fits(turn(middle)) else (middle, high)
    return turn(high)


def _amount(text: str, whole: str) -> float:
    scale = SUFFIXES.get(text[-1:].lower(), 1.0)
    try:
        value = float(text[:-1] if scale > 1 else text) * scale
    except ValueError:
        value = float("nan")
    if not 0 < value < float("inf"):
        raise PlanError(f"{whole!r} is no budget; give a number above 0, such as macs=1.2G, params=6M or latency_ms=4.")
    return value
