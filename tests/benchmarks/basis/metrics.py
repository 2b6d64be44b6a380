"""Which metric chooses the residual's directions: second moments in several mixtures, Fisher scores of directions."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from upvit_core.importance.criterion import Proxy, frozen
from upvit_core.pruning.basis import ProxyStatistics
from upvit_core.pruning.basis.fold import load
from upvit_core.pruning.basis.statistics import output_directions
from upvit_core.pruning.basis.stream import Stream

METRICS = ("activations", "gradients", "both", "product", "reading")


def by_fisher(stats: ProxyStatistics, proxy: Proxy, like: Tensor, rotation: str) -> ProxyStatistics:
    """The directions of metric `rotation`, ranked by their own Fisher scores: the score of a mask on each direction.

    The mask of direction d acts at every reader and token at once: ½ Σ_images Σ_r (Σ_readers,tokens x_d ∂/∂x_d)².
    """
    rotated = stats.with_metric(rotation)  # type: ignore[arg-type]
    model = load(stats.state, stats.shape, like=like)
    stream = Stream(model, stats.shape)
    P = rotated.directions.to(like)
    scores = torch.zeros(P.shape[1], dtype=torch.float64)
    with frozen(model), torch.enable_grad():
        for images, _ in proxy.batches(50):
            x = stream.embed(images).requires_grad_()
            seen = []
            for b in range(stats.shape.depth):
                attention = stream.attention(b, x)
                feed_forward = stream.feed_forward(b, attention.stream)
                seen += [attention.normed, feed_forward.normed]
                x = feed_forward.stream
            seen.append(stream.features(x))
            logits = stream.head(seen[-1])
            for output in output_directions(logits.detach(), 2):
                gradients = torch.autograd.grad(logits, seen, output, retain_graph=True)
                each = sum(((s @ P) * (g @ P)).sum(1) for s, g in zip(seen, gradients, strict=True))  # (B, D - 1)
                scores += torch.as_tensor(each).double().square().sum(0).cpu() / 2
    order = scores.argsort(descending=True, stable=True)
    return replace(
        rotated, directions=rotated.directions[:, order], direction_scores=scores[order],
        metric=f"Fisher of {rotation}",
    )  # fmt: skip
