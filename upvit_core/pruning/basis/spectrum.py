"""The residual's spectrum: how much of the stream the best channels carry, and how much the best directions."""

import torch
from torch import Tensor

from upvit_core.pruning.basis.reading import unit_trace
from upvit_core.pruning.basis.statistics import ProxyStatistics


def spectrum(stats: ProxyStatistics) -> tuple[Tensor, Tensor]:
    """Shares of the energy of the normalised stream, channel by channel and direction by direction, each (D,) falling.

    Energy is the second moment at the readers, each reader with weight 1; shares sum to 1. Directions are the
    eigenvectors, so that no other k of them carry more than the first k. Of the D directions one, the constant, carries
    nothing, since the stream is mean-free.
    """
    moments, _ = stats.readers()
    mean = unit_trace(torch.stack(moments)).mean(0)
    channels = mean.diagonal().sort(descending=True).values
    directions = torch.linalg.eigvalsh(mean).flip(0).clamp_min(0)
    return channels / channels.sum(), directions / directions.sum()
