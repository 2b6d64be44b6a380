"""Embeddings, gains of directions, and pooled values."""

import math

import numpy as np
import pytest
import torch

from tests.support.basis import random_readers, unread
from upvit_core.pruning.basis.residual import embedding, explained_gain, pool_blocks


@pytest.mark.parametrize(("D", "k"), [(16, 2), (16, 9), (16, 16), (12, 5)])
def test_embedding_keeps_mean_free_streams_mean_free(D, k):
    generator = torch.Generator().manual_seed(0)
    constant = torch.full((D, 1), D**-0.5, dtype=torch.float64)
    random = torch.randn(D, D - 1, generator=generator, dtype=torch.float64)
    P = torch.linalg.qr(random - constant @ (constant.T @ random))[0][:, : k - 1]
    E = embedding(P)
    assert torch.allclose(E.T @ E, torch.eye(k).double(), atol=1e-12)
    assert torch.allclose(E.sum(1), torch.full((D,), math.sqrt(k / D)).double(), atol=1e-12)
    x = torch.randn(7, D, generator=generator, dtype=torch.float64)
    x = x - x.mean(-1, keepdim=True)
    assert (x @ E).mean(-1).abs().max() < 1e-12
    assert torch.allclose((x @ E).norm(dim=-1), (x @ P).norm(dim=-1))


def test_gains_add_up_to_what_is_read():
    C, G = random_readers()
    Q = torch.linalg.qr(torch.randn(10, 10, generator=torch.Generator().manual_seed(4), dtype=torch.float64))[0]
    everything = sum(float(0.5 * torch.trace(g @ c)) for c, g in zip(C, G, strict=True))
    found = explained_gain(C, G, Q)
    steps = [unread(C, G, Q[:, :j]) for j in range(1, 10)]
    exact = -np.diff([everything, *steps, 0.0])
    assert np.allclose(found.numpy(), pool_blocks(torch.tensor(exact)).numpy(), rtol=1e-3, atol=1e-3)
    assert (found.diff() <= 1e-12).all()


def test_pooled_is_the_nearest_non_increasing_sequence():
    values = torch.tensor([3.0, 5.0, 1.0, 2.0, 2.5, 0.0])
    assert pool_blocks(values).tolist() == pytest.approx([4, 4, 11 / 6, 11 / 6, 11 / 6, 0])
