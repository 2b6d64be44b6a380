"""Which metric chooses the residual's directions: second moments in several mixtures, Fisher scores of directions."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from upvit_core.importance.criterion import Proxy, frozen
from upvit_core.importance.output_directions import leading_directions
from upvit_core.models.vit import ViTAdapter
from upvit_core.pruning.basis import ProxyStatistics
from upvit_core.pruning.basis.fold import load
from upvit_core.pruning.basis.residual import Metric, residual_directions

METRICS: tuple[Metric, ...] = ("activations", "gradients", "both", "product", "reading")


def with_metric(stats: ProxyStatistics, metric: Metric) -> ProxyStatistics:
    """The same moments with the residual's directions chosen by another metric."""
    directions, scores = residual_directions(*stats.readers(), metric)
    return replace(stats, directions=directions, direction_scores=scores, metric=metric)


def by_fisher(stats: ProxyStatistics, proxy: Proxy, like: Tensor, rotation: Metric) -> ProxyStatistics:
    """The directions of metric `rotation`, ranked by their own Fisher scores: the score of a mask on each direction.

    The mask of direction d acts at every reader and token at once: ½ Σ_images Σ_r (Σ_readers,tokens x_d ∂/∂x_d)².
    """
    rotated = with_metric(stats, rotation)
    model = load(stats.state, stats.shape, like=like)
    vit = ViTAdapter(model, stats.shape)
    P = rotated.directions.to(like)
    scores = torch.zeros(P.shape[1], dtype=torch.float64)
    with frozen(model), torch.enable_grad():
        for images, _ in proxy.batches(50):
            x = vit.embed(images).requires_grad_()
            seen = []
            for b in range(stats.shape.depth):
                attention = vit.attention(b, x)
                feed_forward = vit.feed_forward(b, attention.stream)
                seen += [attention.normed, feed_forward.normed]
                x = feed_forward.stream
            seen.append(vit.features(x))
            logits = vit.classify(seen[-1])
            for output in leading_directions(logits.detach(), 2).vectors:
                gradients = torch.autograd.grad(logits, seen, output, retain_graph=True)
                each = sum(((s @ P) * (g @ P)).sum(1) for s, g in zip(seen, gradients, strict=True))  # (B, D - 1)
                scores += torch.as_tensor(each).double().square().sum(0).cpu() / 2
    order = scores.argsort(descending=True, stable=True)
    return replace(
        rotated, directions=rotated.directions[:, order], direction_scores=scores[order],
        metric=f"Fisher of {rotation}",
    )  # fmt: skip
