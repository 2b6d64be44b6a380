"""Every uniform plan that four sliders can show: exact cost, and the score removed (`curves.py` says what it tells).

`best_plan` finds better plans, since it may give every block its own widths; this table serves what moves in whole
percents: sliders, and the curves under the plans that were tried.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from upvit_core.errors import PlanError
from upvit_core.planning.cost_model import COUNTS, CostModel
from upvit_core.planning.curves import Curve, removal_curves
from upvit_core.planning.ratios import kept_channels
from upvit_core.records.scores import ImportanceScores


@dataclass(frozen=True)
class UniformChoice:
    """Percent removed of each component, heads, exact cost, and the score removed, an image."""

    residual: int
    attention: int
    ffn: int
    heads: int
    params: int
    macs: int
    removed: float


@dataclass(frozen=True)
class UniformTable:
    """All uniform plans with whole percents up to `most` and one head count.

    removed, params, macs: (P, P, P) over percent removed of residual, attention, ffn; removed: the score that goes
    an image.
    """

    heads: int
    removed: np.ndarray
    params: np.ndarray
    macs: np.ndarray

    def choice(self, residual: int, attention: int, ffn: int) -> UniformChoice:
        at = (residual, attention, ffn)
        return UniformChoice(*at, self.heads, int(self.params[at]), int(self.macs[at]), float(self.removed[at]))

    def front(self, cost: str = "params", every: int = 2) -> list[UniformChoice]:
        """Plans that no other beats in both cost (`params` or `macs`) and score removed, cheapest first.

        Among plans whose percents are multiples of `every`.
        """
        grid = (slice(None, None, every),) * 3
        costs, removed = getattr(self, cost)[grid], self.removed[grid]
        order = np.lexsort((removed.ravel(), costs.ravel()))
        least = np.minimum.accumulate(removed.ravel()[order])
        chosen = order[np.concatenate([[True], least[1:] < least[:-1]])]
        price = costs.ravel()[chosen]
        last = np.concatenate([price[1:] > price[:-1], [True]])
        places = zip(*np.unravel_index(chosen[last], removed.shape), strict=True)
        return [self.choice(*(every * int(i) for i in place)) for place in places]


def uniform_table(scores: ImportanceScores, heads: int, most: int = 95) -> UniformTable:
    """Cost and score removed of every uniform plan with `heads` heads, 0 to `most` percent removed of each component.

    Widths are taken to the nearest that the heads divide, as `plan_uniform(snap=True)` does. Raises PlanError where the
    heads cannot be merged so, or blocks differ in width.
    """
    shape = scores.shape
    if len({(block.attention, block.ffn) for block in shape.blocks}) > 1:
        raise PlanError(f"The blocks of {shape.name} differ in width; a table of uniform plans needs equal blocks.")
    curves, block = removal_curves(scores, heads=heads), shape.blocks[0]
    shares = [percent / 100 for percent in range(most + 1)]
    D = np.array([kept_channels(shape.embed_dim, share, heads, snap=True) for share in shares])
    A = np.array([kept_channels(block.attention, share, heads, snap=True) for share in shares])
    H = np.array([kept_channels(block.ffn, share, snap=True) for share in shares])
    residual = _lost([curves.residual], D)
    attention, ffn = _lost(curves.attention, A), _lost(curves.ffn, H)
    removed = residual[:, None, None] + attention[None, :, None] + ffn[None, None, :]
    every = {"residual": D[:, None, None], "attention": A[None, :, None], "ffn": H[None, None, :]}
    widths = {group.key: every[group.component] for group in shape.groups}
    return UniformTable(heads, removed, *(CostModel(count, shape).at(widths) for count in COUNTS.values()))


def _lost(curves: Sequence[Curve], widths: np.ndarray) -> np.ndarray:
    """Score lost at each width, (n,), summed over blocks."""
    return np.sum([curve.lost[np.searchsorted(curve.widths, widths)] for curve in curves], axis=0)
