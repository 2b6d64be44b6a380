"""k-NN on features: the judge of models without a classifier.

An image gets the class for which its K nearest training images vote, by cosine of their features, each with the weight
exp(cosine / TEMPERATURE) (Wu et al., CVPR 2018; Caron et al., DINO, ICCV 2021). All features are of one model.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from upvit_core.data import ImageSet, proxy_indices

K, TEMPERATURE = 20, 0.07
LEAST_BANK, BANK_BY_CLASS = 2000, 20
"""Training images in the bank: so many, or so many a class where that is more; equally many of each class."""
ROWS = 1024
"""Images whose neighbours are sought at once."""


@dataclass(frozen=True)
class Bank:
    """Training images whose features vote; `classes` maps their labels to places in `names`, -1 for others."""

    images: ImageSet
    indices: tuple[int, ...]
    classes: Tensor
    names: tuple[str, ...]
    batch_size: int


def bank_of(train: ImageSet, test: ImageSet | None, batch_size: int) -> Bank | None:
    """The bank of a labelled training set; None where it or the images to be judged have no classes.

    Classes of both are matched by name; images of a class that the others do not have do not vote.
    """
    names = train.class_names if test is None else test.class_names
    if min(len(train.class_names), len(names)) < 2:
        return None
    places = {name: place for place, name in enumerate(names)}
    classes = torch.tensor([places.get(name, -1) for name in train.class_names])
    count = min(len(train), max(LEAST_BANK, BANK_BY_CLASS * len(train.class_names)))
    return Bank(train, tuple(proxy_indices(train, count, 0, balanced=True).tolist()), classes, tuple(names), batch_size)


def votes(bank: Tensor, labels: Tensor, features: Tensor, classes: int) -> Tensor:
    """Shares of the votes (N, classes), float64, for features (N, D), of a bank (M, D) with labels (M,)."""
    bank = F.normalize(bank.double(), dim=-1)
    k, out = min(K, len(bank)), torch.zeros(len(features), classes, dtype=torch.float64)
    for first in range(0, len(features), ROWS):
        near = F.normalize(features[first : first + ROWS].double(), dim=-1) @ bank.T
        cosine, index = near.topk(k, dim=-1)
        weights = ((cosine - cosine[:, :1]) / TEMPERATURE).exp()
        out[first : first + ROWS].scatter_add_(1, labels[index], weights)
    return out / out.sum(-1, keepdim=True)
