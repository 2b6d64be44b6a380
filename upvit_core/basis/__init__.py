"""The right basis: function-preserving folds and rotations, and cuts along directions instead of channels."""

from upvit_core.basis.fold import fold
from upvit_core.basis.scores import directions_scores
from upvit_core.basis.slice import Basis, basis_for, channel_basis, prune_directions
from upvit_core.basis.statistics import ProxyStatistics, gather

__all__ = [
    "Basis",
    "ProxyStatistics",
    "basis_for",
    "channel_basis",
    "directions_scores",
    "fold",
    "gather",
    "prune_directions",
]
