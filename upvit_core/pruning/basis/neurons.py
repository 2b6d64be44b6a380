"""FFN channels in the order in which the others can make up for them.

GELU allows no rotation, so FFN channels stay channels. But fc2 is refitted after the cut, so a channel is worth what
the rest cannot reconstruct of it. Backward elimination on second moments (kin: Optimal
Brain Surgeon, Hassibi & Stork 1993): with K the second moment of [activation; 1] and W fc2, removing channel c with the
best refit of the rest costs |w_c|²_M / (K⁻¹)_cc; the cheapest goes, W and K⁻¹ are updated, and so on. M is the metric
of what fc2 writes: half gradients, half plain distance.
"""

import torch
from torch import Tensor

from upvit_core.pruning.basis.reading import unit_trace
from upvit_core.pruning.basis.statistics import ProxyStatistics

STALE = 0.2
"""The share of columns without use at which the matrices are copied without them."""


def elimination_scores(stats: ProxyStatistics, block: int, at_once: int | None = None) -> Tensor:
    """The cost (H,), in nats, of each FFN channel of `block` when it was removed; the last one removed scores highest.

    at_once: how many cheapest channels leave together, with one update; by default 1 in 256 of all.
    """
    hidden = stats.mean(f"hidden.{block}")
    H = len(hidden) - 1
    at_once = at_once or max(1, H // 256)
    gradient = stats.grams[f"written_gradient.{block}"]
    metric = unit_trace(gradient) + torch.eye(len(gradient)).to(gradient) / len(gradient)
    weight = stats.state[f"blocks.{block}.mlp.fc2.weight"]
    left = _root(metric * gradient.trace() / 2) @ torch.cat([weight, torch.zeros_like(weight[:, :1])], 1)  # (D, H + 1)
    inverse = torch.linalg.inv(hidden + 1e-6 * torch.diag(hidden.diagonal() + 1e-12))
    stands_for = torch.arange(H + 1, device=hidden.device)  # the channel of each column; entry H is the bias
    gone = torch.zeros(H + 1, dtype=torch.bool, device=hidden.device)
    scores = torch.zeros(H, dtype=torch.float64, device=hidden.device)
    reached, remaining, stale = scores.new_zeros(()), H, 0
    while remaining:
        cost = left.square().sum(0) / inverse.diagonal() / 2
        count = min(at_once, remaining)
        cheapest = cost.masked_fill(gone, torch.inf)[:-1].argsort(stable=True)[:count]
        # A channel costs at least what those before it did, so that scores keep the order of removal.
        ordered = torch.cummax(cost[cheapest].maximum(reached * (1 + 1e-9)), 0).values
        scores[stands_for[cheapest]], reached = ordered, ordered[-1]
        bridge = torch.linalg.solve(inverse[cheapest][:, cheapest], inverse[cheapest])  # (gone, columns)
        left.addmm_(left[:, cheapest], bridge, alpha=-1)
        inverse.addmm_(inverse[:, cheapest], bridge, alpha=-1)
        gone[cheapest] = True
        remaining, stale = remaining - count, stale + count
        if stale > STALE * len(gone):  # what is gone is computed along until it is worth a copy
            stays = (~gone).nonzero().flatten()
            left, inverse, stands_for = left[:, stays], inverse[stays][:, stays], stands_for[stays]
            gone, stale = torch.zeros_like(stands_for, dtype=torch.bool), 0
    return scores


def _root(matrix: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    return (vectors * values.clamp_min(0).sqrt()) @ vectors.T
