"""The full-width model whose prefixes are every size, in the basis E of "beyond the letter", step 6.

With P (D, D-1) the residual's directions in order and B the rows of the Helmert matrix, E = P·B + 1_D·1_Dᵀ/D. The first
k channels of the stream in E differ from the stream of the cut to k-1 directions by a multiple of 1_k, which LayerNorm
takes away. Heads' factors come in order already; FFN channels are put in the order of their elimination.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from upvit_core.pruning.basis.fold import State
from upvit_core.pruning.basis.heads import head_factors
from upvit_core.pruning.basis.scores import whole_plan
from upvit_core.pruning.basis.slice import CutBasis, sliced_state
from upvit_core.pruning.basis.statistics import ProxyStatistics


def helmert(n: int) -> Tensor:
    """Orthonormal rows (n-1, n) orthogonal to 1_n: row j is j times 1/√(j(j+1)), then -j/√(j(j+1)), then 0."""
    j = torch.arange(1, n, dtype=torch.float64)[:, None]
    column = torch.arange(n)
    return ((column < j).double() - j * (column == j)) / (j * (j + 1)).sqrt()


def nested_embedding(directions: Tensor) -> Tensor:
    """E (D, k) from orthonormal directions P (D, k-1); its first columns span the cuts to fewer directions."""
    D, k = directions.shape[0], directions.shape[1] + 1
    return directions @ helmert(k).to(directions) + (D * k) ** -0.5


def full_width_state(stats: ProxyStatistics, ffn_order: Mapping[int, Tensor]) -> State:
    """Tensors, in float64, of a model of the same shape that computes what the source of `stats` computes.

    ffn_order: by block the FFN channels (H,), those that stay longest first.
    """
    plan = whole_plan(stats.shape)
    factors = tuple(head_factors(stats, block.source, block.attention) for block in plan.blocks)
    state = sliced_state(stats, plan, CutBasis(nested_embedding(stats.directions), factors))
    for b, order in ffn_order.items():
        for name, axis in (("fc1.weight", 0), ("fc1.bias", 0), ("fc2.weight", 1)):
            tensor = state[f"blocks.{b}.mlp.{name}"]
            copies = tensor.unflatten(axis, (-1, len(order)))
            state[f"blocks.{b}.mlp.{name}"] = copies.index_select(axis + 1, order).flatten(axis, axis + 1)
    return state


def norm_scales(stats: ProxyStatistics) -> Tensor:
    """Factors of LayerNorm's weights at each width, (sites, D); entry k-1 is of k channels.

    It is the RMS of the stream in its first k channels over that in all D. Sites count norm1 and norm2 of every block,
    then the final norm. One channel is the constant alone, which leaves nothing: its entry is 0.
    """
    P, D = stats.directions, stats.shape.embed_dim
    k = torch.arange(1, D + 1, dtype=torch.float64)
    rows = []
    for site in range(2 * stats.shape.depth + 1):
        C = stats.grams[f"reader.{site}"].cpu()
        energy = torch.cat([torch.zeros(1, dtype=torch.float64), (P.cpu() * (C @ P.cpu())).sum(0).cumsum(0)])
        rows.append((energy / k * D / C.trace()).clamp_min(0).sqrt())
    return torch.stack(rows)
