"""The demo's tour: what the first screen shows of one slider that removes the same share of everything, two ways.

Every position was measured on the same held-out images as the original. Imports no torch, so that a page reads it at
once.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from upvit_core.errors import DataError
from upvit_core.records.basis import Basis
from upvit_core.records.record import JsonRecord, Record

Percent = Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Whole = Annotated[int, Field(ge=0, strict=True)]
Answer = tuple[Whole, Percent]
"""The likeliest class, and its probability in percent."""


class Way(Record):
    """One way to cut. top1: percent of the tour's images, by percent removed; answers: on its pictures, likewise."""

    basis: Basis
    repair: bool
    scores_digest: str
    top1: tuple[Percent, ...]
    answers: tuple[tuple[Answer, ...], ...]


class Speed(Record):
    """Images per second of the original, and how many times as fast the thin model is, by percent removed.

    The two took turns; ratios are medians over `rounds` rounds.
    """

    device: str
    threads: Annotated[int, Field(ge=1, strict=True)]
    batch: Annotated[int, Field(ge=1, strict=True)]
    rounds: Annotated[int, Field(ge=1, strict=True)]
    images_per_s: Positive
    ratio: Mapping[int, Positive]


class Tour(JsonRecord):
    """Both ways at 0, 1, 2, … percent removed, without training; position 0 is the original.

    pictures: a few of the images as PNG in base64; labels: their classes. fitted_to: training images of the repair.
    """

    kind: ClassVar = "tour"
    verb: ClassVar = "demo tour"
    error: ClassVar = DataError

    version: Literal[1] = 1
    model_digest: str
    data: str
    data_digest: str
    images: Annotated[int, Field(ge=1, strict=True)]
    fitted_to: Annotated[int, Field(ge=1, strict=True)]
    interval: tuple[Percent, Percent]
    classes: tuple[str, ...]
    pictures: tuple[str, ...]
    labels: tuple[Whole, ...]
    ways: Mapping[str, Way]
    speed: Speed

    @model_validator(mode="after")
    def _check(self) -> Tour:
        if set(self.ways) != {"paper", "repaired"}:
            raise ValueError("a tour has the ways paper and repaired")
        if len(self.labels) != len(self.pictures):
            raise ValueError("every picture needs a label")
        for name, way in self.ways.items():
            if len(way.answers) != len(way.top1) or len(way.top1) != len(self.ways["paper"].top1):
                raise ValueError(f"{name} does not have an accuracy and answers at every position")
            for answers in way.answers:
                if len(answers) != len(self.pictures) or any(label >= len(self.classes) for label, _ in answers):
                    raise ValueError(f"{name} has answers that fit no picture or no class")
        return self

    def to_json(self) -> str:
        return self.model_dump_json()

    @property
    def original(self) -> float:
        """Top-1 of the original in percent."""
        return self.ways["paper"].top1[0]
