"""Directions from which every reader can best guess what it read before: the metric `reading`.

A reader s (qkv, fc1 or the heads) sees the normalised stream x, with second moment C_s, and answers an error e in it
with about ½ gᵀe in the logits, where G_s = Σ g gᵀ. From k directions P its best linear guess of x leaves the error
covariance C_s - C_s P (Pᵀ C_s P)⁻¹ Pᵀ C_s, so P should make ½ Σ_s tr(G_s · that) least. No eigenproblem gives it where
the C_s differ; a few steps of L-BFGS from the leading eigenvectors of second moments and gradients added up do.

Directions are nested by halving: the best half of all, then the best half of that half, and of the rest given it, and
so on. Any leading part is then a good choice for its size.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

SMALLEST_PART = 4
STEPS = 40  # of L-BFGS; changing it changes saved plans, whose directions are computed again when they are cut
ROUNDING = 1e-11  # of float64 sums over thousands of products, relative


def reading_directions(C: Sequence[Tensor], G: Sequence[Tensor], steps: int = STEPS) -> Tensor:
    """Orthonormal Q (n, n) whose leading columns read best; C, G: per reader (n, n), C positive definite."""
    moments, weights = torch.stack(list(C)), torch.stack(list(G))
    return _ordered(moments, weights, moments @ weights @ moments, steps)


def _ordered(A: Tensor, G: Tensor, B: Tensor, steps: int) -> Tensor:
    """An orthonormal basis (m, m), the best part first, of a subspace, given all that is known outside it.

    Inside it A are the readers' second moments, G their gradients' and B = A G A; each (S, m, m).
    """
    m = A.shape[-1]
    start = _mixture(A, G)
    if m <= SMALLEST_PART:
        return start
    chosen, rest = best_subspace(A, B, start[:, : m // 2], steps)
    first = chosen @ _ordered(chosen.T @ A @ chosen, chosen.T @ G @ chosen, chosen.T @ B @ chosen, steps)
    # The rest, less its best guess from the chosen part.
    guess = torch.linalg.solve(chosen.T @ A @ chosen, chosen.T @ A @ rest)  # (S, k, m - k)
    new = rest - chosen @ guess  # (S, m, m - k)
    given = new.mT @ A @ new, rest.T @ G @ rest, new.mT @ B @ new
    return torch.cat([first, rest @ _ordered(*given, steps)], 1)


def _mixture(A: Tensor, G: Tensor) -> Tensor:
    """Orthonormal (m, m): eigenvectors of second moments and gradients added up, each with trace 1."""
    activations, gradients = unit_trace(unit_trace(A).sum(0)), unit_trace(G.sum(0))
    return torch.linalg.eigh(activations + gradients).eigenvectors.flip(-1)


def unit_trace(matrices: Tensor) -> Tensor:
    """Matrices (..., n, n), each over its trace."""
    trace = matrices.diagonal(dim1=-2, dim2=-1).sum(-1)
    return matrices / trace.clamp_min(1e-300)[..., None, None]


def _trace(matrices: Tensor) -> Tensor:
    return matrices.diagonal(dim1=-2, dim2=-1).sum()


def _gain(A: Tensor, B: Tensor, Q: Tensor) -> tuple[Tensor, Tensor]:
    """Σ_s tr((Qᵀ A_s Q)⁻¹ Qᵀ B_s Q), and its gradient by Q (m, k)."""
    seen, read = A @ Q, B @ Q
    inverse = torch.linalg.inv(Q.T @ seen)  # (S, k, k), symmetric
    gained = inverse @ (Q.T @ read)
    return _trace(gained), 2 * (read @ inverse - seen @ (gained @ inverse)).sum(0)


def best_subspace(A: Tensor, B: Tensor, start: Tensor, steps: int = STEPS) -> tuple[Tensor, Tensor]:
    """X (m, k) orthonormal with Σ_s tr((Xᵀ A_s X)⁻¹ Xᵀ B_s X) large, and the complement (m, m - k).

    It is `start` (m, k) where that leaves nothing but rounding errors to gain, and where the search finds no better.
    """
    everything, first = _trace(torch.linalg.solve(A, B)), _gain(A, B, start)[0]
    scale = float(everything - first)
    X = start.clone(memory_format=torch.contiguous_format).requires_grad_()
    search = torch.optim.LBFGS(
        [X], 0.1, steps, tolerance_grad=0, tolerance_change=0, history_size=20, line_search_fn="strong_wolfe"
    )

    def unread() -> Tensor:
        search.zero_grad()
        Q = torch.linalg.qr(X)[0]
        gain, slope = _gain(A, B, Q.detach())
        Q.backward(-slope / scale)
        return (everything - gain) / scale

    if scale > ROUNDING * abs(float(everything)):
        with torch.enable_grad():
            search.step(unread)
    best = X.detach()
    if not bool(best.isfinite().all()) or not bool(_gain(A, B, torch.linalg.qr(best)[0])[0] >= first):
        best = start
    whole = torch.linalg.qr(best, mode="complete")[0]
    return whole[:, : start.shape[1]], whole[:, start.shape[1] :]
