"""Directions of a model's output along which its own Fisher information is large.

Of F = diag(q) - q qᵀ = Σ_r λ_r u_r u_rᵀ, with q the softmax output, these are √λ_r u_r: sent back from the logits and
squared, they give KL divergences to second order. The leading ones carry nearly all of it.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Directions = Literal["eigenvectors", "all", "labels"]
LIKELIEST = 64
"""Classes to which F is restricted where there are more."""


@dataclass(frozen=True)
class OutputDirections:
    """vectors: w_r = √λ_r u_r, (S, B, classes), the largest first; share: of the trace of F, summed over the batch.

    Of the likeliest classes: their probabilities `top` (B, k) and, for eigenvectors, `unit` = u_r / √λ_r (B, k, S),
    which turns changes along w_r back into changes of logits.
    """

    vectors: Tensor
    share: float
    top: Tensor | None = None
    unit: Tensor | None = None

    def kl(self, change: Tensor) -> Tensor:
        """KL(q || p) in nats, (B, D), of logits that change by `change` (S, B, D) along the directions."""
        if self.top is None or self.unit is None:
            return change.square().sum(0) / 2
        logits = torch.einsum("sbd,bks->bdk", change, self.unit).clamp(-500, 500)
        q = self.top.unsqueeze(1)
        return torch.log1p((q * torch.expm1(logits)).sum(-1)) - (q * logits).sum(-1)


def leading_directions(logits: Tensor, count: int | None, num_classes: int | None = LIKELIEST) -> OutputDirections:
    """The `count` leading eigenvectors (None: all) of each row of logits (B, classes)."""
    q = logits.double().softmax(-1)
    B, classes = q.shape
    top, index = q.topk(min(num_classes or classes, classes), dim=-1)
    values, vectors = torch.linalg.eigh(torch.diag_embed(top) - top.unsqueeze(-1) * top.unsqueeze(-2))
    count = top.shape[1] if count is None else min(count, top.shape[1])
    values, vectors = values[:, -count:].clamp_min(0), vectors[..., -count:]
    scaled = vectors * values.sqrt().unsqueeze(1)  # (B, k, S)
    full = q.new_zeros(B, classes, count).scatter(1, index.unsqueeze(-1).expand_as(scaled), scaled)
    trace = (1 - q.square().sum(-1)).clamp_min(1e-300)
    share = float((values.sum(-1) / trace).clamp_max(1).sum())
    unit = vectors / values.sqrt().clamp_min(1e-12).unsqueeze(1)
    return OutputDirections(full.permute(2, 0, 1).flip(0).to(logits.dtype), share, top, unit.flip(-1))


def label_directions(logits: Tensor, count: int, generator: torch.Generator) -> OutputDirections:
    """Gradients of the log-probability of `count` labels drawn from the model, for each row of logits (B, classes)."""
    q = logits.double().softmax(-1)
    drawn = torch.multinomial(q.cpu(), count, replacement=True, generator=generator).to(q.device)
    difference = torch.nn.functional.one_hot(drawn, q.shape[1]).double() - q.unsqueeze(1)  # (B, S, classes)
    return OutputDirections((difference / count**0.5).transpose(0, 1).to(logits.dtype), float(len(q)))


def output_directions(
    logits: Tensor, directions: Directions, count: int, num_classes: int, generator: torch.Generator
) -> OutputDirections:
    """Vectors w_r with Σ_r w_r w_rᵀ ≈ diag(q) - q qᵀ.

    Of a language model, logits (B, T, classes): every token's directions with a random sign each, all of a block in one
    pass. A mask is one for the whole block, so its gradient sums over tokens; with signs of mean 0 the squares of the
    single tokens stay and their products vanish on average (Hutchinson 1990).
    """
    if logits.ndim == 3:
        B, T, _ = logits.shape
        rows = output_directions(logits.flatten(0, 1), directions, count, num_classes, generator)
        signs = torch.randint(0, 2, (len(rows.vectors), B, T, 1), generator=generator).to(logits) * 2 - 1
        return OutputDirections(rows.vectors.unflatten(1, (B, T)) * signs, rows.share / T)
    if directions == "labels":
        return label_directions(logits, count, generator)
    return (
        leading_directions(logits, None, None)
        if directions == "all"
        else leading_directions(logits, count, num_classes)
    )
