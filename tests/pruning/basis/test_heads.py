"""Merged heads and the choice of those that attend alike."""

import pytest
import torch

from tests.support.basis import statistics_of
from tests.support.tiny import tiny
from upvit_core.pruning.basis import basis_for
from upvit_core.pruning.basis.heads import group_heads
from upvit_core.pruning.basis.scores import whole_plan


def test_merged_heads_of_full_width_average_their_logits():
    shape = tiny()[1]
    stats = statistics_of()
    whole = whole_plan(shape)
    blocks = tuple(
        b.model_copy(update={"attention": b.attention.model_copy(update={"heads": 2})}) for b in whole.blocks
    )
    maps = basis_for(whole.model_copy(update={"blocks": blocks}), stats).heads[0]
    groups, weights = group_heads(stats, 0, 2)
    q, k = torch.randn(2, 16, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    merged = ((maps.query @ q) * (maps.key @ k)).unflatten(0, (2, 8)).sum(1) / 8**0.5
    own = (q * k).unflatten(0, (4, 4)).sum(-1) / 4**0.5
    expected = [float((weights[g] * own[g]).sum() / weights[g].sum()) for g in groups]
    assert merged.tolist() == pytest.approx(expected)
    assert torch.allclose(maps.output @ maps.value, torch.eye(16).double(), atol=1e-8)


@pytest.mark.parametrize("block", [0, 1, 2])
def test_heads_that_attend_most_alike_are_merged(block):
    """Against every way of pairing, each paid for by logits of random tokens with the gathered second moments."""
    stats = statistics_of()
    generator = torch.Generator().manual_seed(1)
    Q, K = (
        torch.randn(4000, 16, generator=generator, dtype=torch.float64)
        @ torch.linalg.cholesky(stats.mean(f"{name}.{block}") + 1e-9 * torch.eye(16).double()).T
        for name in ("query", "key")
    )
    logits = (Q * K).unflatten(1, (4, 4)).sum(-1)  # (4000, heads) of independent queries and keys
    groups, weights = group_heads(stats, block, 2)
    importance = [
        float(torch.trace(stats.mean(f"mixed.{block}")[h, h] @ stats.grams[f"mixed_gradient.{block}"][h, h]))
        for h in (slice(4 * i, 4 * i + 4) for i in range(4))
    ]
    assert weights.tolist() == pytest.approx(importance)

    def cost(pairs):
        total = 0.0
        for pair in pairs:
            own, w = logits[:, pair], weights[pair]
            mean = (own * w).sum(1, keepdim=True) / w.sum()
            total += float((w * (own - mean) ** 2).sum(1).mean())
        return total

    every = [[[0, 1], [2, 3]], [[0, 2], [1, 3]], [[0, 3], [1, 2]]]
    assert sorted(map(sorted, groups)) in every
    assert cost(groups) <= min(map(cost, every)) * 1.1
