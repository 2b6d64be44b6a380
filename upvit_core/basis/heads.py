"""Factor bases of attention: per head, low rank for q·k and for v·proj.

"Beyond the letter", step 3. The logits of a head are qᵀk. With C_q the second moment of q and C_k the covariance of k
within an image (softmax ignores what all keys share), the best rank r for Σ (qᵀk - q'ᵀk')² is the SVD of
C_q^½ C_k^½ = U S Vᵀ: q' = S^½ Uᵀ C_q^-½ q, k' = S^½ Vᵀ C_k^-½ k. A head's output o reaches the residual through proj;
with M the metric of what it does there, the SVD of M^½ C_o^½ gives v' and proj's columns the same way.

Where heads are merged, the merged head has one set of logits: the weighted sum of its heads'.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from upvit_core.basis.residual import matrix_power
from upvit_core.basis.statistics import ProxyStatistics
from upvit_core.planning.plan import KeptAttention


@dataclass(frozen=True)
class HeadFactors:
    """Maps of one block, for all its heads side by side: q' = query·q, k' = key·k, v' = value·v, each (A', A) and
    block-diagonal; o ≈ output·o', (A, A'). timm's scale of the new head width is folded into query and key."""

    query: Tensor
    key: Tensor
    value: Tensor
    output: Tensor

    def to(self, like: Tensor) -> HeadFactors:
        """On the device and in the dtype of `like`."""
        return HeadFactors(self.query.to(like), self.key.to(like), self.value.to(like), self.output.to(like))


def head_factors(stats: ProxyStatistics, block: int, attention: KeptAttention) -> HeadFactors:
    """Factors of the source's `block` that stay; entry i of a (merged) head is its i-th strongest factor."""
    own, heads = stats.shape.blocks[block], attention.heads
    group = own.attention // heads  # source channels of one merged head
    rank = len(attention.keep) // heads
    scale = (rank / own.head_dim) ** 0.25 * (heads / own.num_heads) ** 0.5
    parts: dict[str, list[Tensor]] = {"query": [], "key": [], "value": [], "output": []}
    for h in range(heads):
        here = slice(h * group, (h + 1) * group)
        proj = stats.state[f"blocks.{block}.attn.proj.weight"][:, here]  # (D, group)
        query, key = _logit_factors(stats.mean(f"query.{block}")[here, here], stats.mean(f"key.{block}")[here, here])
        metric = proj.T @ proj
        value, output = _output_factors(stats.mean(f"mixed.{block}")[here, here], metric)
        stay = [c - h * group for c in attention.keep if c // group == h] if heads == own.num_heads else range(rank)
        chosen = torch.tensor(list(stay))
        parts["query"].append(query[chosen] * scale)
        parts["key"].append(key[chosen] * scale)
        parts["value"].append(value[chosen])
        parts["output"].append(output[:, chosen])
    return HeadFactors(**{name: torch.block_diag(*tensors) for name, tensors in parts.items()})


def _logit_factors(query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
    """All factors (d, d) of q·k, the strongest first."""
    left, singular, right = torch.linalg.svd(matrix_power(query, 0.5) @ matrix_power(key, 0.5))
    root = singular.sqrt()[:, None]
    return root * (left.T @ matrix_power(query, -0.5)), root * (right @ matrix_power(key, -0.5))


def _output_factors(mixed: Tensor, metric: Tensor) -> tuple[Tensor, Tensor]:
    """All factors of a head's output: v' = F·v (d, d) and o = F⁺·o' (d, d), the strongest first."""
    left, singular, right = torch.linalg.svd(matrix_power(metric, 0.5) @ matrix_power(mixed, 0.5))
    root = singular.sqrt()
    value = root[:, None] * (right @ matrix_power(mixed, -0.5))
    return value, (matrix_power(metric, -0.5) @ left) * root
