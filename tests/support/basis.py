"""Statistics of tiny models and what tests of the basis share."""

import torch

from tests.support.tiny import TensorProxy, images, tiny
from upvit_core.models.build import adapt
from upvit_core.pruning.basis import collect_statistics

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}


def statistics_of(variant="class token", dtype=torch.float64, count=24, **settings):
    model, shape = tiny(variant, dtype)
    return collect_statistics(adapt(model, shape), TensorProxy(images(count, dtype)), batch_size=8, **settings)


def relative_change(model, other, x):
    with torch.no_grad():
        before, after = model(x), other(x)
    return float((before - after).abs().max() / before.abs().max())


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
