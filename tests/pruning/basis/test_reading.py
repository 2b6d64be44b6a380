"""Directions that readers can guess their former input from best, by regression and random search."""

import numpy as np
import pytest
import torch

from upvit_core.pruning.basis.reading import best_subspace, reading_directions
from upvit_core.pruning.basis.residual import explained_gain, pool_blocks


def random_readers(n=10, sites=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    make = lambda: torch.randn(n, n, generator=generator, dtype=torch.float64)  # noqa: E731
    C = [a @ torch.diag(torch.logspace(0, -3, n).double()) @ a.T for a in (make() for _ in range(sites))]
    G = [a @ a.T for a in (make() for _ in range(sites))]
    return C, G


def unread(C, G, P):
    """Half the weighted error of the best linear guess from P, by explicit regression."""
    total = 0.0
    for c, g in zip(C, G, strict=True):
        guess = c @ P @ torch.linalg.inv(P.T @ c @ P) @ P.T
        rest = torch.eye(len(c)).double() - guess
        total += 0.5 * torch.trace(g @ rest @ c @ rest.T)
    return float(total)


def test_gains_add_up_to_what_is_read():
    C, G = random_readers()
    Q = torch.linalg.qr(torch.randn(10, 10, generator=torch.Generator().manual_seed(4), dtype=torch.float64))[0]
    everything = sum(float(0.5 * torch.trace(g @ c)) for c, g in zip(C, G, strict=True))
    found = explained_gain(C, G, Q)
    steps = [unread(C, G, Q[:, :j]) for j in range(1, 10)]
    exact = -np.diff([everything, *steps, 0.0])
    assert np.allclose(found.numpy(), pool_blocks(torch.tensor(exact)).numpy(), rtol=1e-3, atol=1e-3)
    assert (found.diff() <= 1e-12).all()


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


def test_pooled_is_the_nearest_non_increasing_sequence():
    values = torch.tensor([3.0, 5.0, 1.0, 2.0, 2.5, 0.0])
    assert pool_blocks(values).tolist() == pytest.approx([4, 4, 11 / 6, 11 / 6, 11 / 6, 0])
