"""Answers before and after a cut, class by class: which classes a thinner model loses, and to which others."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from pydantic import BaseModel, NonNegativeInt, model_validator


@dataclass(frozen=True)
class ClassChange:
    """The class `label`: its number of images, and how many are answered right before and after."""

    label: int
    images: int
    before: int
    after: int

    @property
    def points(self) -> float:
        """Change in accuracy, in percentage points."""
        return 100 * (self.after - self.before) / self.images


@dataclass(frozen=True)
class Confusion:
    """The number of images that were classified as class `before` and are now wrongly classified as `after`."""

    before: int
    after: int
    images: int


@dataclass(frozen=True)
class ByClass:
    """`classes` with images, the largest loss of right answers first; new `confusions`, the most frequent first.

    `lost`: positions of the images that were right and are wrong now; `won`: of those that became right.
    """

    images: int
    classes: tuple[ClassChange, ...]
    confusions: tuple[Confusion, ...]
    lost: tuple[int, ...]
    won: tuple[int, ...]


def by_class(labels: np.ndarray, before: np.ndarray, after: np.ndarray) -> ByClass:
    """Compare two models on images with labels (N,); `before` and `after` are answers (N,) or logits (N, classes)."""
    before, after = (given.argmax(1) if given.ndim == 2 else given for given in (before, after))
    was, now = before == labels, after == labels
    present, place = np.unique(labels, return_inverse=True)
    counts = (np.bincount(place, weights, len(present)).astype(int).tolist() for weights in (None, was, now))
    classes = [ClassChange(*row) for row in zip(present.tolist(), *counts, strict=True)]
    new = np.flatnonzero((before != after) & ~now)
    pairs = Counter(zip(before[new].tolist(), after[new].tolist(), strict=True))
    return ByClass(
        len(labels),
        tuple(sorted(classes, key=lambda c: (c.after - c.before, c.points, c.label))),
        tuple(Confusion(*pair, n) for pair, n in sorted(pairs.items(), key=lambda item: (-item[1], item[0]))),
        tuple(np.flatnonzero(was & ~now).tolist()),
        tuple(np.flatnonzero(~was & now).tolist()),
    )


class Answered(BaseModel):
    """The answers of an original and of its thinner model to the same images, as a run stores them."""

    names: list[str]
    labels: list[NonNegativeInt]
    before: list[NonNegativeInt]
    after: list[NonNegativeInt]

    @model_validator(mode="after")
    def _one_an_image(self) -> "Answered":
        if not len(self.labels) == len(self.before) == len(self.after):
            raise ValueError("give one label and two answers for each image")
        return self

    @property
    def by_class(self) -> ByClass:
        return by_class(*(np.array(column, np.int64) for column in (self.labels, self.before, self.after)))


def class_name(names: Sequence[str], number: int) -> str:
    """The name of a class, or its number where it has none."""
    return names[number] if number < len(names) else str(number)
