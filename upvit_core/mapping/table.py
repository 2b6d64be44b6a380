"""A map's estimates at every position of a grid of sliders, for a browser that has no Gaussian processes."""

from collections.abc import Mapping, Sequence

import numpy as np

from upvit_core.mapping.points import Worth
from upvit_core.mapping.surrogate import Estimates, Surrogate
from upvit_core.planning.live_counts import widths_at
from upvit_core.records.shape import Component, ModelShape


def estimate_table(
    surrogate: Surrogate,
    worth: Worth,
    shape: ModelShape,
    heads: int | None,
    percents: Mapping[Component, Sequence[int]],
) -> Estimates:
    """Estimates at all combinations of percents removed by component; the last component runs fastest."""
    counts = {b: heads or block.num_heads for b, block in enumerate(shape.blocks)}
    points = []
    for place in np.ndindex(*map(len, percents.values())):
        at = {c: own[n] for (c, own), n in zip(percents.items(), place, strict=True)}
        points.append(worth.at(widths_at(shape, heads, at), counts))
    return surrogate.estimate(points)
