"""The right basis: function-preserving folds and rotations, and cuts along directions instead of channels."""

from upvit_core.pruning.basis.fold import fold
from upvit_core.pruning.basis.scores import directions_scores
from upvit_core.pruning.basis.slice import CutBasis, basis_for, channel_basis, prune_directions
from upvit_core.pruning.basis.statistics import ProxyStatistics, collect_statistics

__all__ = [
    "CutBasis",
    "ProxyStatistics",
    "basis_for",
    "channel_basis",
    "collect_statistics",
    "directions_scores",
    "fold",
    "prune_directions",
]
