"""`taylor` and `variance`: criteria read off activations, to set beside `kl` and `fisher`.

taylor (Molchanov et al., ICLR 2017): |Σ_tokens a_c ∂CE/∂a_c| per image with the true labels, summed over images.
variance: variance of the activation over images and tokens; for `residual` that of the normalised stream, averaged
over the LayerNorms that read it.
"""

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from upvit_core.errors import ScoresError
from upvit_core.importance.criterion import Clock, ImageSums, Proxy, Report, Request, frozen, scored_on, silent
from upvit_core.models.adapter import Adapter, by_channel
from upvit_core.records.scores import ImportanceScores, expected_widths


@dataclass(frozen=True)
class Activation:
    """Settings of both criteria; `labels` of the proxy are read by taylor only."""

    name: Literal["taylor", "variance"] = "taylor"
    batch_size: int = 32

    def attribute(self, adapter: Adapter, proxy: Proxy, report: Report = silent) -> ImportanceScores:
        """Scores of all channels."""
        if self.name == "taylor" and adapter.shape.features:
            raise ScoresError(f"taylor needs labels of classes, and {adapter.shape.name} gives features; take fisher.")
        device = next(adapter.model.parameters()).device
        clock, widths = Clock(len(proxy), "images", report), expected_widths(adapter.shape)
        sums, moments = ImageSums(), _Moments()
        with frozen(adapter.model), torch.enable_grad():
            for images, labels in proxy.batches(self.batch_size, device):
                state = adapter.sensitivities(images)
                groups = {key: tuple(out for _, out, *_ in sites) for key, sites in state.norm_sites.items()}
                groups |= state.activations
                if self.name == "taylor":
                    loss = torch.nn.functional.cross_entropy(state.logits, labels, reduction="sum")
                    gradients = iter(torch.autograd.grad(loss, [a for group in groups.values() for a in group]))
                    for key, group in groups.items():
                        change = torch.stack([(a.detach() * next(gradients)).sum(1) for a in group]).sum(0)
                        sums.add(key, by_channel(change, widths[key]).abs())
                else:
                    for key, group in groups.items():
                        for number, activation in enumerate(group):
                            moments.add(f"{key}/{number}", activation.detach())
                clock.advance(len(images), "all components")
        if self.name == "taylor":
            scores = scored_on(proxy, clock, sums.total, self.name, adapter.shape)
            return replace(scores, stderr=sums.standard_errors(len(proxy)))
        variances = {key: each.reshape(widths[key], -1).mean(1) for key, each in moments.variances().items()}
        return scored_on(proxy, clock, variances, self.name, adapter.shape, "variance")


def make_taylor(request: Request) -> Activation:
    return Activation("taylor")


def make_variance(request: Request) -> Activation:
    return Activation("variance")


class _Moments:
    """First and second moments of activations over images and tokens, in float64."""

    def __init__(self) -> None:
        self.count: dict[str, int] = {}
        self.first: dict[str, Tensor] = {}
        self.second: dict[str, Tensor] = {}

    def add(self, key: str, activation: Tensor) -> None:
        rows = activation.flatten(0, -2).double()
        self.count[key] = self.count.get(key, 0) + len(rows)
        self.first[key] = self.first.get(key, torch.zeros((), device=rows.device)) + rows.sum(0)
        self.second[key] = self.second.get(key, torch.zeros((), device=rows.device)) + rows.square().sum(0)

    def variances(self) -> dict[str, np.ndarray]:
        """Variance per channel, averaged over the activations that share a key."""
        groups: dict[str, list[Tensor]] = {}
        for name, count in self.count.items():
            variance = self.second[name] / count - (self.first[name] / count).square()
            groups.setdefault(name.split("/")[0], []).append(variance)
        return {key: torch.stack(parts).mean(0).cpu().numpy() for key, parts in groups.items()}
