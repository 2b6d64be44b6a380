"""The distribution of a model's output around its answer, from which Eq. 1 takes its KL divergence.

A classifier gives a softmax over classes (`Softmax`). A model without one gives features f, which are taken as the
mean of a Gaussian with the features' own covariance Σ over the proxy images (`Gaussian`), so that
KL(original || without the channel) is ½ Δfᵀ Σ⁻¹ Δf: features that vary much over images may change much. Σ is
shrunk towards a multiple of the identity by Ledoit and Wolf (J. Multivariate Analysis 2004), which matters where images
are few. Its Fisher information is Σ⁻¹.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch
from torch import Tensor, nn

from upvit_core.errors import DataError
from upvit_core.models.adapter import Adapter
from upvit_core.models.output_directions import Directions, OutputDirections, output_directions

MOST_IMAGES = 5000
"""Images from which Σ is taken where there are more: many times the features."""
LEAST_VARIANCE = 1e-9
"""The least eigenvalue of Σ over the mean one: features that never change must not weigh without bounds."""
AdapterT = TypeVar("AdapterT", bound=Adapter)


class OutputDistribution(Protocol):
    """The output's distribution, given an answer (..., outputs)."""

    def reference(self, outputs: Tensor) -> Tensor:
        """The part of the original's answers that `kl` takes (B, outputs), computed once."""

    def kl(self, reference: Tensor, outputs: Tensor) -> Tensor:
        """KL(original || changed) in nats, of changed answers (..., B, outputs): (..., B), in float64.

        Of a language model both have a place before the classes, (…, B, T, classes): KLs are summed over a block's
        tokens.
        """

    def directions(
        self, outputs: Tensor, kind: Directions, count: int, num_classes: int, generator: torch.Generator
    ) -> OutputDirections:
        """Vectors w_r with Σ_r w_r w_rᵀ equal to the Fisher information at these answers, or close to it."""


def log_softmax(logits: Tensor) -> Tensor:
    """Log-probabilities in float64 (float32 on devices without it), whatever the dtype of the forward pass."""
    return logits.to(torch.float32 if logits.device.type == "mps" else torch.float64).log_softmax(-1)


def kl_divergence(log_q: Tensor, logits: Tensor) -> Tensor:
    """KL(q || p) per row in nats; log_q: (B, classes) log-probabilities, logits of p: (..., B, classes).

    Of a language model both have a place before the classes, (…, B, T, classes): KLs are summed over a block's tokens.
    """
    kl = (log_q.exp() * (log_q - log_softmax(logits))).sum(-1)
    return kl.sum(-1) if log_q.ndim == 3 else kl


class Softmax:
    """The classes of a classifier, or the next tokens of a language model; answers are logits."""

    def reference(self, outputs: Tensor) -> Tensor:
        return log_softmax(outputs)

    def kl(self, reference: Tensor, outputs: Tensor) -> Tensor:
        return kl_divergence(reference, outputs)

    def directions(
        self, outputs: Tensor, kind: Directions, count: int, num_classes: int, generator: torch.Generator
    ) -> OutputDirections:
        return output_directions(outputs, kind, count, num_classes, generator)


@dataclass(frozen=True)
class Gaussian:
    """Features with covariance Σ; answers are features (..., D).

    vectors, values: eigenvectors (D, D) and eigenvalues (D,) of Σ⁻¹, float64, the largest first. shrinkage: the share
    of the identity in Σ. images: those from which it was taken.
    """

    vectors: Tensor
    values: Tensor
    shrinkage: float
    images: int

    @classmethod
    def of(cls, features: Tensor) -> Gaussian:
        """The distribution of a model with these features (N, D) on the proxy images.

        Raises DataError for a single image, whose covariance is 0.
        """
        from sklearn.covariance import empirical_covariance, ledoit_wolf_shrinkage, shrunk_covariance  # takes a second

        if len(features) < 2:
            raise DataError("The covariance of features needs at least two images; take more.")
        values = features.detach().double().cpu().numpy()
        shrinkage = float(ledoit_wolf_shrinkage(values)) if len(values) > 2 else 0.5  # of two the rule gives 0
        covariance = torch.from_numpy(shrunk_covariance(empirical_covariance(values), shrinkage))
        variances, vectors = torch.linalg.eigh(covariance)
        least = LEAST_VARIANCE * variances.mean().clamp_min(1e-300)
        return cls(vectors, 1 / variances.clamp_min(least), shrinkage, len(features))

    @property
    def whitener(self) -> Tensor:
        """W (D, D) with W Wᵀ = Σ⁻¹."""
        return self.vectors * self.values.sqrt()

    def reference(self, outputs: Tensor) -> Tensor:
        wide = torch.float32 if outputs.device.type == "mps" else torch.float64
        whitener = self.whitener.to(device=outputs.device, dtype=wide)
        return outputs.to(wide) @ whitener

    def kl(self, reference: Tensor, outputs: Tensor) -> Tensor:
        return (self.reference(outputs) - reference).square().sum(-1) / 2

    def directions(
        self, outputs: Tensor, kind: Directions, count: int, num_classes: int, generator: torch.Generator
    ) -> OutputDirections:
        """Every eigenvector √λ_r u_r where `count` or "all" asks for so many, else `count` mixtures of all of them.

        Whitened features count alike, so a few eigenvectors of Σ⁻¹ would leave most of the KL out. A mixture by random
        signs has it all in the mean (Hutchinson 1990): w wᵀ averages to Σ⁻¹ over draws, one for each image.
        """
        scaled = self.whitener.to(outputs)
        rows, width = len(outputs), len(scaled)
        if kind == "all" or count >= width:
            return OutputDirections(scaled.T.unsqueeze(1).expand(-1, rows, -1), float(rows))
        signs = torch.randint(0, 2, (count, rows, width), generator=generator).to(outputs) * 2 - 1
        return OutputDirections(signs @ scaled.T / count**0.5, float(rows))


SOFTMAX = Softmax()


def with_output(adapter: AdapterT, proxy: Batched) -> AdapterT:
    """The adapter with the distribution of its output, taken from the proxy images where it needs any.

    One that has it already stays as it is, so that parts of a proxy set share the distribution of the whole.
    """
    if adapter.output is not None:
        return adapter
    made = copy.copy(adapter)
    made.output = features_distribution(adapter.logits, proxy, adapter.model, adapter.shape.batch_size(32, large=16))
    return made


def output_of(adapter: Adapter) -> OutputDistribution:
    """The distribution of an adapter that `with_output` gave."""
    assert adapter.output is not None, "the features' distribution is not known yet"
    return adapter.output


class Batched(Protocol):
    """Images in batches, always in the same order."""

    def batches(self, batch_size: int, device: torch.device | str = "cpu") -> Iterable[tuple[Tensor, Tensor]]: ...


@torch.no_grad()
def features_distribution(
    run: Callable[[Tensor], Tensor], proxy: Batched, model: nn.Module, batch_size: int
) -> Gaussian:
    """The Gaussian of a model's features on the first proxy images, up to MOST_IMAGES; the model keeps its mode."""
    parameter, training = next(model.parameters()), model.training
    features: list[Tensor] = []
    model.eval()
    try:
        for images, _ in proxy.batches(batch_size, parameter.device):
            features.append(run(images.to(parameter.dtype)).double().cpu())
            if sum(map(len, features)) >= MOST_IMAGES:
                break
    finally:
        model.train(training)
    return Gaussian.of(torch.cat(features))
