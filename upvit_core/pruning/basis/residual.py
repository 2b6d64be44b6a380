"""The residual's directions, and the embedding E that keeps a mean-free stream mean-free in fewer channels.

"Beyond the letter", step 2. P (D, k-1): orthonormal directions orthogonal to the constant vector. B (k-1, k):
orthonormal rows orthogonal to 1_k. E = [P, 1_D/√D]·[B; 1_kᵀ/√k] is (D, k) with E·1_k = √(k/D)·1_D, so a mean-free x has
a mean-free Eᵀx and stock LayerNorm has nothing to subtract.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from upvit_core.pruning.basis.reading import best_subspace, reading_directions, unit_trace

Metric = Literal["reading", "both", "product", "activations", "gradients"]


def residual_directions(
    activations: Sequence[Tensor], gradients: Sequence[Tensor], metric: Metric
) -> tuple[Tensor, Tensor]:
    """All directions (D, D-1), the most important first, and the gain of each over those before it (D-1,), in nats.

    activations: at every reader the mean second moment of the normalised stream (D, D); gradients: the sum of the
    gradient's over tokens and images.
    """
    complement = constant_complement(len(activations[0])).to(activations[0])  # (D, D-1)
    C = [complement.T @ c @ complement for c in activations]
    G = [complement.T @ g @ complement for g in gradients]
    if metric == "reading":
        inside = reading_directions([c + regularise(c) for c in C], G)
    else:
        inside = torch.linalg.eigh(_mixture(C, G, metric)).eigenvectors.flip(-1)
    return complement @ inside, explained_gain(C, G, inside)


def best_directions(activations: Sequence[Tensor], gradients: Sequence[Tensor], start: Tensor) -> Tensor:
    """The directions (D, k) that read best for this k alone, searched from `start` (D, k)."""
    A, G = torch.stack([c + regularise(c) for c in activations]), torch.stack(list(gradients))
    complement = constant_complement(len(start)).to(start)
    A, G = complement.T @ A @ complement, complement.T @ G @ complement
    return complement @ best_subspace(A, A @ G @ A, complement.T @ start, 60)[0]


def _mixture(C: Sequence[Tensor], G: Sequence[Tensor], metric: Metric) -> Tensor:
    activation = unit_trace(torch.stack([unit_trace(c) for c in C]).sum(0))
    gradient = unit_trace(torch.stack(list(G)).sum(0))
    if metric == "activations":
        return activation
    if metric == "gradients":
        return gradient
    if metric == "product":
        root = matrix_power(activation, 0.5)
        return root @ gradient @ root
    return activation + gradient


def explained_gain(C: Sequence[Tensor], G: Sequence[Tensor], Q: Tensor) -> Tensor:
    """The gain of each column of the orthonormal Q over the columns before it, in every reader's best linear guess of
    its input: half the gradient-weighted square, in nats, made non-increasing by pooling neighbours.

    With QᵀCQ = LLᵀ the j-th innovation is seen through column j of QL, so the gains are the diagonal of LᵀQᵀGQL.
    """
    total = torch.zeros(Q.shape[1], dtype=Q.dtype, device=Q.device)
    for c, g in zip(C, G, strict=True):
        L = Q @ cholesky(Q.T @ c @ Q)
        total += (L * (g @ L)).sum(0) / 2
    return pool_blocks(total)


def pool_blocks(values: Tensor) -> Tensor:
    """The nearest non-increasing values (n,): neighbours out of order share their mean (pool adjacent violators)."""
    groups: list[tuple[float, int]] = []
    for value in values.tolist():
        groups.append((value, 1))
        while len(groups) > 1 and groups[-2][0] < groups[-1][0]:
            (a, m), (b, n) = groups[-2:]
            groups[-2:] = [((a * m + b * n) / (m + n), m + n)]
    means = [mean for mean, count in groups for _ in range(count)]
    return torch.tensor(means, dtype=values.dtype, device=values.device)


def constant_complement(D: int) -> Tensor:
    """Orthonormal columns (D, D-1) orthogonal to the constant vector: close to the first D-1 unit vectors.

    They are columns of the Householder reflection that takes the last unit vector to the constant one.
    """
    v = torch.full((D,), -(D**-0.5), dtype=torch.float64)
    v[-1] += 1
    reflection = torch.eye(D, dtype=torch.float64) - 2 * torch.outer(v, v) / v.square().sum().clamp_min(1e-300)
    return reflection[:, :-1]


def embedding(directions: Tensor) -> Tensor:
    """E (D, k) from orthonormal directions P (D, k-1)."""
    D, k = directions.shape[0], directions.shape[1] + 1
    spread = constant_complement(k).T.to(directions)  # B, (k-1, k)
    return directions @ spread + (D * k) ** -0.5


def matrix_power(matrix: Tensor, power: float, floor: float = 1e-10) -> Tensor:
    """A power of a symmetric positive matrix; eigenvalues below `floor` of the mean are raised to it."""
    values, vectors = torch.linalg.eigh(matrix)
    least = floor * values.mean().clamp_min(1e-300)
    return (vectors * values.clamp_min(least).pow(power)) @ vectors.T


def regularise(matrix: Tensor, floor: float = 1e-6) -> Tensor:
    """`floor` times the mean diagonal, on the diagonal; makes a second moment of few rows positive definite."""
    return torch.diag(torch.full_like(matrix.diagonal(), floor * float(matrix.diagonal().mean()) + 1e-300))


def cholesky(matrix: Tensor, floor: float = 1e-6) -> Tensor:
    """Lower factor of a symmetric positive matrix after `regularise`."""
    return torch.linalg.cholesky(matrix + regularise(matrix, floor))
