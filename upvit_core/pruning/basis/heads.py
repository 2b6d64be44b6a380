"""Factor bases of attention: per head, low rank for q·k and for v·proj.

"Beyond the letter", step 3. The logits of a head are qᵀk. With C_q the second moment of q and C_k the covariance of k
within an image (softmax ignores what all keys share), the best rank r for Σ (qᵀk - q'ᵀk')² is the SVD of
C_q^½ C_k^½ = U S Vᵀ: q' = S^½ Uᵀ C_q^-½ q, k' = S^½ Vᵀ C_k^-½ k. A head's output o reaches the residual through proj;
with M the metric of what it does there, the SVD of M^½ C_o^½ gives v' and proj's columns the same way.

Where heads are merged, a merged head has one set of logits: the mean of its heads', each weighed by how much its output
matters. Rotating does not depend on the order of heads, so those that attend most alike are merged (`group_heads`),
neighbours or not.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations, product

import torch
from torch import Tensor

from upvit_core.pruning.basis.residual import matrix_power
from upvit_core.pruning.basis.statistics import ProxyStatistics
from upvit_core.records.plan import KeptAttention


@dataclass(frozen=True)
class HeadFactors:
    """Maps of one block, for all its heads side by side: q' = query·q, k' = key·k, v' = value·v, each (A', A) with rows
    of the merged heads one after another; o ≈ output·o', (A, A'). timm's scale is folded into query and key."""

    query: Tensor
    key: Tensor
    value: Tensor
    output: Tensor

    def to(self, like: Tensor) -> HeadFactors:
        """A copy on the device and in the dtype of `like`."""
        return HeadFactors(self.query.to(like), self.key.to(like), self.value.to(like), self.output.to(like))


def head_factors(stats: ProxyStatistics, block: int, attention: KeptAttention) -> HeadFactors:
    """Factors of the source's `block` that stay; entry i of a (merged) head is its i-th strongest factor."""
    own, heads = stats.shape.blocks[block], attention.heads
    d, rank = own.head_dim, len(attention.keep) // heads
    groups, weights = group_heads(stats, block, heads)
    parts: dict[str, list[Tensor]] = {"query": [], "key": [], "value": [], "output": []}
    for h, members in enumerate(groups):
        here = torch.cat([torch.arange(m * d, (m + 1) * d) for m in members])
        root = (weights[members] / weights[members].sum()).sqrt().repeat_interleave(d)  # of each head's share
        q, k, o = (stats.mean(f"{name}.{block}")[here][:, here] for name in ("query", "key", "mixed"))
        proj = stats.state[f"blocks.{block}.attn.proj.weight"][:, here]  # (D, group)
        query, key = _logit_factors(root[:, None] * q * root, root[:, None] * k * root)
        value, output = _output_factors(o, proj.T @ proj)
        group = len(here)
        stay = [c - h * group for c in attention.keep if c // group == h] if heads == own.num_heads else range(rank)
        chosen = torch.tensor(list(stay))
        scale = (rank / d) ** 0.25
        for name, rows in (("query", query * root), ("key", key * root), ("value", value), ("output", output.T)):
            wide = rows.new_zeros(rank, own.attention)
            wide[:, here] = rows[chosen] * (scale if name in ("query", "key") else 1.0)
            parts[name].append(wide)
    whole = {name: torch.cat(rows) for name, rows in parts.items()}
    return HeadFactors(whole["query"], whole["key"], whole["value"], whole["output"].T)


def group_heads(stats: ProxyStatistics, block: int, heads: int) -> tuple[list[list[int]], Tensor]:
    """Source heads in `heads` groups of equal size whose logits differ least, and each head's weight (num_heads,).

    The weight w of a head is the importance of its output, tr(C_o G_o), with G_o its gradients. A group costs
    Σ w |l - l̄|², l a head's logits and l̄ the group's weighted mean, with ⟨l_a, l_b⟩ = tr(C_q,ab C_k,baᵀ). Groups of
    neighbours are improved by the best exchange of two heads until none helps.
    """
    own = stats.shape.blocks[block]
    size = own.num_heads // heads
    gradients = stats.grams[f"mixed_gradient.{block}"]
    query, key, mixed, gradient = (
        gram.unflatten(0, (own.num_heads, -1)).unflatten(2, (own.num_heads, -1)).transpose(1, 2)  # (h, h, d, d)
        for gram in (*(stats.mean(f"{name}.{block}") for name in ("query", "key", "mixed")), gradients)
    )
    weights = (mixed * gradient).sum((-1, -2)).diagonal()
    weights = weights.clamp_min(1e-6 * float(weights.mean()) + 1e-300)
    inner = (query * key).sum((-1, -2))  # (h, h)
    groups = [list(range(h * size, (h + 1) * size)) for h in range(heads)]

    def cost(members: list[int]) -> float:
        w, own_inner = weights[members], inner[members][:, members]
        return float((w * own_inner.diagonal()).sum() - w @ own_inner @ w / w.sum())

    while size > 1:
        best, exchange = 1e-9 * sum(map(cost, groups)), None
        for (i, a), (j, b) in combinations(enumerate(groups), 2):
            for x, y in product(a, b):
                new = [y if m == x else m for m in a], [x if m == y else m for m in b]
                saved = cost(a) + cost(b) - cost(new[0]) - cost(new[1])
                if saved > best:
                    best, exchange = saved, ((i, new[0]), (j, new[1]))
        if exchange is None:
            break
        for i, members in exchange:
            groups[i] = sorted(members)
    return groups, weights


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
