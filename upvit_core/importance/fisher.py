"""`fisher`: Eq. 1 to second order, for every channel of every component from one forward pass.

Give image i a mask m (all ones) on every channel. To second order in the mask, KL(full || without c) is
½ Σ_r (∂ (√λ_r u_r · z_i) / ∂ m_ic)², with z_i the logits and F_i = diag(q_i) - q_i q_iᵀ = Σ_r λ_r u_r u_rᵀ the Fisher
information of the model's own output. One backward pass per eigenvector; the S leading ones carry nearly all of it.

Gradients by masks need no masks in the graph: for a channel that multiplies an activation a it is Σ_tokens a ∂/∂a.
For `residual`, removal is not a small change, so instead of the derivative of the weighted LayerNorm this takes its
exact change when the channel leaves (`residual="removal"`), and only what follows to first order. The KL divergence of
the logits that change by that much is then taken as it is, log Σ q e^δ - Σ q δ, not to second order. And the changes at
the LayerNorms cancel on paper more than in truth: with a relative error of √γ in each, independent of the others', the
expected score is larger by γ Σ_sites ½ Σ_r (…)², which costs nothing since the sites are known one by one (`site_error`
is γ). `"derivative"` gives the plain Fisher information.
"""

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from upvit_core.importance.criterion import (
    Clock,
    ImageSums,
    Proxy,
    Report,
    Request,
    autocast,
    frozen,
    scored_on,
    silent,
)
from upvit_core.models.adapter import Adapter, NormSite, by_channel
from upvit_core.models.output import output_of, with_output
from upvit_core.models.output_directions import LIKELIEST, Directions
from upvit_core.out_of_memory import in_halves
from upvit_core.profiling.macs import count_macs
from upvit_core.records.scores import ImportanceScores, expected_widths
from upvit_core.records.shape import ModelShape

SECONDS_OF_MACS = {"cpu": 3e11, "cuda": 5e13}
"""Work between two reports, by device: a few seconds, so that a cancel is soon obeyed."""


@dataclass(frozen=True)
class Fisher:
    """Settings of the estimate.

    num_directions: backward passes per image (S); with directions="all" every class gives one.
    num_classes: the likeliest classes to which the output Fisher is restricted before its eigenvectors are taken.
    site_error: γ above. batch_size: images at once (None: up to 32, as long as a batch takes no more than seconds); a
    batch that does not fit into memory is halved and tried again.
    """

    num_directions: int = 2
    directions: Directions = "eigenvectors"
    num_classes: int = LIKELIEST
    residual: Literal["removal", "derivative"] = "removal"
    site_error: float = 0.2
    batch_size: int | None = None
    seed: int = 0
    precision: str = "float32"
    name: str = "fisher"

    def attribute(self, adapter: Adapter, proxy: Proxy, report: Report = silent) -> ImportanceScores:
        """Scores of all channels; nats summed over the proxy images, standard error over images beside them."""
        adapter = with_output(adapter, proxy)
        sums, kept, clock = ImageSums(), 0.0, Clock(len(proxy), "images", report)
        generator = torch.Generator().manual_seed(self.seed)
        device = next(adapter.model.parameters()).device
        with frozen(adapter.model), torch.enable_grad():
            for images, _ in proxy.batches(self.batch_size or self.batch_of(adapter.shape, device), device):
                for part, (found, share) in in_halves(lambda x: self._scores(adapter, x, generator), images):
                    for key, value in found.items():
                        sums.add(key, value)
                    kept += share
                    clock.advance(len(part), "all components")
        notes = {
            "directions": self.directions,
            "num_directions": self.num_directions,
            "trace_share": kept / len(proxy),
            "residual": self.residual,
            "site_error": self.site_error if self.residual == "removal" else 0.0,
        }
        scores = scored_on(proxy, clock, sums.total, self.name, adapter.shape)
        return replace(scores, stderr=sums.standard_errors(len(proxy)), notes=notes)

    def batch_of(self, shape: ModelShape, device: torch.device) -> int:
        """Images at once where nothing else is asked for."""
        passes = 1 + 2 * (shape.outputs if self.directions == "all" else self.num_directions)
        limit = SECONDS_OF_MACS.get(device.type, SECONDS_OF_MACS["cuda"])
        return int(min(32, max(1, limit // (passes * count_macs(shape)))))

    def _scores(self, adapter: Adapter, images: Tensor, generator: torch.Generator) -> tuple[dict[str, Tensor], float]:
        """Scores by image, (B, channels) for every key, and the share of the trace that is kept, summed over images."""
        with autocast(images.device, self.precision):
            state = adapter.sensitivities(images)
        wanted = [out for group in state.norm_sites.values() for _, out, *_ in group]
        wanted += [a for group in state.activations.values() for a in group]
        outputs = output_of(adapter).directions(
            state.logits.detach(), self.directions, self.num_directions, self.num_classes, generator
        )
        scores: dict[str, Tensor] = {}
        removal, widths = self.residual == "removal", expected_widths(adapter.shape)
        changes: dict[str, list[Tensor]] = {key: [] for key in state.norm_sites}  # of each direction, (sites, B, D)
        with torch.no_grad():
            sites = {
                key: [_SiteRemoval(site, exact=removal) for site in group] for key, group in state.norm_sites.items()
            }
        for s, direction in enumerate(outputs.vectors):
            gradients = torch.autograd.grad(state.logits, wanted, direction, retain_graph=s + 1 < len(outputs.vectors))
            with torch.no_grad():
                rest = iter(gradients)
                for key, removals in sites.items():
                    changes[key].append(torch.stack([site.change(next(rest)) for site in removals]))
                for key, group in state.activations.items():
                    change = torch.stack([(a * next(rest)).sum(1) for a in group]).sum(0)
                    _accumulate(scores, key, by_channel(change, widths[key]))
        with torch.no_grad():
            for key, parts in changes.items():
                by_site = by_channel(torch.stack(parts).double(), widths[key])  # (S, sites, B, D)
                total = by_site.sum(1)
                scores[key] = outputs.kl(total) if removal else total.square().sum(0) / 2
                if removal and self.site_error:
                    scores[key] = scores[key] + self.site_error * by_site.square().sum((0, 1)) / 2
        return scores, outputs.share


def make_fisher(request: Request) -> Fisher:
    return Fisher(seed=request.seed, precision=request.precision)


def _accumulate(scores: dict[str, Tensor], key: str, change: Tensor) -> None:
    half_square = change.double().square() / 2
    scores[key] = scores[key] + half_square if key in scores else half_square


class _SiteRemoval:
    """Change of a LayerNorm's output when channel c leaves, contracted with a gradient of that output.

    With x̂ = (x - μ)/σ and D channels, removal gives μ' = μ - (x_c - μ)/(D-1) and
    σ'² = (D/(D-1)) (v - (x_c - μ)²/(D-1)) + ε, where σ² = v + ε; the output of c itself becomes 0.
    An RMSNorm takes no mean away: only σ changes, to σ'² = (D v - x_c²)/(D-1) + ε.
    """

    def __init__(self, site: NormSite, *, exact: bool):
        x, _, weight, bias, eps, writes = site
        self.weight = weight
        if weight is None:
            self.own = x
            return
        D, rms = x.shape[-1], bias is None
        centred = x.clone() if rms else x - x.mean(-1, keepdim=True)
        squared = centred.square()
        variance = squared.mean(-1, keepdim=True)
        sigma = (variance + eps).sqrt()
        self.normed = centred.div_(sigma)  # (B, T, D)
        self.bias: Tensor | None = bias
        self.shift: Tensor | None
        if exact:
            left = torch.add(variance * (D / (D - 1)), squared, alpha=-1 / (D - 1) if rms else -D / (D - 1) ** 2)
            left.clamp_min_(0)
            ratio = left.add_(eps).rsqrt_().mul_(sigma)  # σ/σ'
            self.gain = ratio - 1
            after = ratio.mul_(self.normed)
            self.shift = None if rms else after.div_(D - 1)
            # Output that c would have had after the removal, over its weight and without its bias; subtracted, since c
            # is gone. Where the output is the stream itself, that value is not read: the sites that follow leave c out
            # anyway, and only its change counts.
            self.own = after if self.shift is None else self.shift * D
            if writes:
                self.own -= self.normed
                self.bias = None
        else:
            self.gain = squared.div_(sigma.square()).sub_(variance / sigma.square()).div_(2 * D)
            self.shift = None if rms else self.normed / D
            self.own = self.normed

    def change(self, gradient: Tensor) -> Tensor:
        """gradient by the output (B, T, D); result (B, D), summed over tokens."""
        if self.weight is None:
            return -(gradient * self.own).sum(1)
        weighted = gradient * self.weight
        aligned = (weighted * self.normed).sum(-1).unsqueeze(1)  # (B, 1, T)
        others = aligned @ self.gain
        if self.shift is not None:
            others = torch.baddbmm(others, weighted.sum(-1).unsqueeze(1), self.shift)
        others = others.squeeze(1)
        own = weighted.mul_(self.own).sum(1)
        return others - own if self.bias is None else others - own - gradient.sum(1) * self.bias
