"""The proxy set: which images a criterion sees, chosen by seed alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from upvit_core.data.images import ImageSet
from upvit_core.errors import DataError
from upvit_core.files import digest


def proxy_indices(images: ImageSet, n: int, seed: int, *, balanced: bool = False) -> np.ndarray:
    """`n` different images drawn by `seed`, (n,); a smaller n gives the beginning of a larger one.

    `balanced`: as equally many of each class as its size allows. Raises DataError where the set has fewer than n.
    """
    if not 1 <= n <= len(images):
        raise DataError(f"{n} images were asked for, and {images.name} has {len(images)}; ask for 1 to that many.")
    order = np.random.default_rng(seed).permutation(len(images))
    if balanced:
        labels = images.labels()[order]
        by_class = np.argsort(labels, kind="stable")
        starts = np.searchsorted(labels[by_class], labels[by_class])
        rank = np.empty(len(order), np.int64)
        rank[by_class] = np.arange(len(order)) - starts  # how many of its class come before an image
        order = order[np.argsort(rank, kind="stable")]
    return order[:n]


@dataclass(frozen=True)
class ProxySet:
    """The chosen images of a set, in the order of `indices`, as criteria read them."""

    images: ImageSet
    indices: np.ndarray
    seed: int = 0

    @property
    def name(self) -> str:
        return self.images.name

    @property
    def digest(self) -> str:
        """First 16 hex digits of the SHA-256 over the set's digest and the indices."""
        return digest([self.images.digest, np.asarray(self.indices, np.int64).tobytes()])

    def __len__(self) -> int:
        return len(self.indices)

    def part(self, start: int, end: int) -> ProxySet:
        """Images [start, end) in that order."""
        return replace(self, indices=self.indices[start:end])

    def batches(self, batch_size: int, device: torch.device | str = "cpu") -> Iterator[tuple[Tensor, Tensor]]:
        """Normalised images (B, C, H, W) and labels (B,), always in the same order."""
        return self.images.batches(batch_size, indices=self.indices, device=device)


def draw_proxy(images: ImageSet, n: int, seed: int, *, balanced: bool = False) -> ProxySet:
    """A proxy set of `n` images by seed; see `proxy_indices`."""
    return ProxySet(images, proxy_indices(images, n, seed, balanced=balanced), seed)
