"""Directions that read best, against eigenvectors and random search."""

import pytest
import torch

from tests.support.basis import random_readers, unread
from upvit_core.pruning.basis.reading import best_subspace, reading_directions


@pytest.mark.parametrize("k", [2, 5, 7])
def test_reading_beats_eigenvectors_and_random_search(k):
    C, G = random_readers()
    Q = reading_directions(C, G)
    assert torch.allclose(Q.T @ Q, torch.eye(10).double(), atol=1e-10)
    A, weights = torch.stack(C), torch.stack(G)
    best, rest = best_subspace(A, A @ weights @ A, Q[:, :k], 60)
    assert torch.allclose(torch.cat([best, rest], 1).T @ torch.cat([best, rest], 1), torch.eye(10).double(), atol=1e-10)
    found = unread(C, G, best)
    assert found <= unread(C, G, Q[:, :k])
    generator = torch.Generator().manual_seed(5)
    draws = (torch.linalg.qr(torch.randn(10, k, generator=generator, dtype=torch.float64))[0] for _ in range(300))
    assert found < min(unread(C, G, P) for P in draws)
    leading = torch.linalg.eigh(sum(c / c.trace() for c in C)).eigenvectors[:, -k:]
    assert found < unread(C, G, leading)
