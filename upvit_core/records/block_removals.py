"""The record of progressive block pruning: what was removed in which order, and every candidate's score at each step.

Half-block 2b is the attention of block b ("A3"), 2b + 1 its FFN ("F3"). Imports no torch, so that a page can replay the
removals at once.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from upvit_core.errors import ScoresError
from upvit_core.files import Json, digest
from upvit_core.records.record import JsonRecord, Record
from upvit_core.records.shape import ModelShape

Half = Annotated[int, Field(ge=0, strict=True)]
Halves = tuple[int, ...]
Pair = tuple[int, int]
Finite = Annotated[float, Field(allow_inf_nan=False)]


def half_name(half: int) -> str:
    """`A3` for the attention of block 3, `F3` for its FFN."""
    return f"{'F' if half % 2 else 'A'}{half // 2}"


def pair_name(pair: Pair) -> str:
    """`A3 F3` for a plain candidate, `F3 A4` for a hybrid one."""
    return " ".join(map(half_name, pair))


def neighbours(halves: Sequence[int]) -> tuple[Pair, ...]:
    """The candidates for removal: any two neighbours of what is left, 2L - 1 of 2L half-blocks."""
    return tuple(pairwise(halves))


def candidates(shape: ModelShape, halves: Sequence[int], least: Sequence[int] = ()) -> tuple[Pair, ...]:
    """The pairs that may go: all neighbours, and of a staged model those of one stage that keeps another block.

    `least`: blocks that each stage keeps (default: one).
    """
    pairs = neighbours(halves)
    if not shape.stages:
        return pairs
    stages = [shape.stage_of(half // 2) for half in halves]
    spare = {s: stages.count(s) // 2 > (least[s] if least else 1) for s in set(stages)}
    return tuple(pair for pair, a, b in zip(pairs, stages, stages[1:], strict=False) if a == b and spare[a])


def without(halves: Sequence[int], pair: Pair) -> Halves:
    """The half-blocks that are left after a removal."""
    return tuple(half for half in halves if half not in pair)


class Candidate(Record):
    """Two neighbouring half-blocks, and the KL (nats, summed over images; standard error) with them gone as well."""

    halves: tuple[Half, Half]
    kl: Finite
    stderr: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None

    @property
    def is_hybrid(self) -> bool:
        """True for (F_k, A_m): its removal joins A_k with a later FFN into a hybrid block."""
        return self.halves[0] % 2 == 1

    @property
    def name(self) -> str:
        return pair_name(self.halves)


class Step(Record):
    """One removal: all candidates in the order of the model, and the one that was removed."""

    candidates: tuple[Candidate, ...]
    removed: tuple[Half, Half]

    @property
    def kl(self) -> float:
        """KL to the original after this removal, nats summed over images."""
        return next(c.kl for c in self.candidates if c.halves == self.removed)


class BlockRemovals(JsonRecord):
    """Removals one after another, each the candidate with the least KL to the ORIGINAL model's output.

    `after` is the digest of the width plan that had been cut before (width first), else empty; `model_digest` is the
    original's in any case, `source_shape` that of the model whose half-blocks were removed. `least`: blocks that each
    stage of a staged model was to keep (empty: one).
    """

    kind: ClassVar = "record of block removals"
    verb: ClassVar = "score-blocks"
    error: ClassVar = ScoresError

    version: Literal[1] = 1
    model: str = ""
    model_digest: str = ""
    source_shape: Json
    data: str = ""
    data_digest: str = ""
    images: Annotated[int, Field(ge=1, strict=True)]
    seed: int = 0
    seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    unit: Literal["nats, summed over images"] = "nats, summed over images"
    after: str = ""
    least: tuple[Annotated[int, Field(ge=1, strict=True)], ...] = ()
    steps: tuple[Step, ...]

    @model_validator(mode="after")
    def _check(self) -> BlockRemovals:
        left, shape = tuple(range(2 * self.shape.depth)), self.shape
        if self.least and len(self.least) != len(shape.depths):
            raise ValueError(f"least names {len(self.least)} stages, but the model has {len(shape.depths)}")
        if len(self.steps) >= self.shape.depth:
            raise ValueError(f"{len(self.steps)} removals leave nothing of {self.shape.depth} blocks")
        for number, step in enumerate(self.steps):
            if tuple(c.halves for c in step.candidates) != (pairs := candidates(shape, left, self.least)):
                raise ValueError(f"step {number} does not score the {len(pairs)} neighbours of what is left")
            least = min(step.candidates, key=lambda c: c.kl)
            if step.removed != least.halves:
                raise ValueError(f"step {number} removes {step.removed}, but {least.halves} scores least")
            left = without(left, step.removed)
        return self

    @property
    def shape(self) -> ModelShape:
        return ModelShape.from_dict(self.source_shape)

    @property
    def samples(self) -> int:
        """Divisor from sums to means: images, or tokens of a text."""
        return self.images * self.shape.answers

    @property
    def least_depth(self) -> int:
        """The depth after the last removal."""
        return self.shape.depth - len(self.steps)

    @property
    def digest(self) -> str:
        """First 16 hex digits of the SHA-256 over steps, model and data."""
        content = self.model_dump(include={"steps", "model_digest", "data_digest", "images", "seed", "after"})
        return digest(json.dumps(content, sort_keys=True))

    def step_to(self, depth: int) -> Step:
        """The removal that leaves `depth` blocks. Raises ScoresError where the record does not reach it."""
        if not self.least_depth <= depth < self.shape.depth:
            raise ScoresError(
                f"The removals lead {self.shape.name} from {self.shape.depth} to {self.least_depth} blocks, not to "
                f"{depth}; score its blocks to that depth."
            )
        return self.steps[self.shape.depth - depth - 1]

    def remaining(self, depth: int) -> Halves:
        """Half-blocks that are left at `depth`, ascending. Raises ScoresError where the record does not reach it."""
        left = tuple(range(2 * self.shape.depth))
        if depth == self.shape.depth:
            return left
        self.step_to(depth)
        for step in self.steps[: self.shape.depth - depth]:
            left = without(left, step.removed)
        return left
