"""The map of a model's cuts: what was measured of each on the same held-out inputs, from which others are estimated.

A map belongs to one model, its scores, one basis, with or without repair, and one set of held-out inputs. Imports no
torch, so that a page reads it at once.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from functools import cached_property
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from upvit_core.errors import MapError
from upvit_core.files import Json, digest
from upvit_core.records.basis import Basis
from upvit_core.records.plan import Fitted
from upvit_core.records.record import JsonRecord, Record
from upvit_core.records.shape import ModelShape

Finite = Annotated[float, Field(allow_inf_nan=False)]
Positive = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1, strict=True)]
Origin = Literal["design", "uncertain", "given"]


class CutPoint(Record):
    """A cut by what it keeps and loses, by key of the source's groups; half-blocks that are gone have no entry.

    heads: after merging, by block. lost: what the removed channels hold, as a share of the sum of all scores.
    """

    widths: Mapping[str, Count]
    heads: Mapping[int, Count]
    lost: Mapping[str, Positive]


class Measured(Record):
    """Means over held-out samples and their standard errors: KL to the whole model and cross-entropy in nats, top-1 in
    percent."""

    kl: Positive
    kl_stderr: Positive
    top1: Annotated[float, Field(ge=0, le=100)]
    loss: Positive
    loss_stderr: Positive

    @property
    def perplexity(self) -> float:
        return math.exp(min(self.loss, 700.0))


class MeasuredCut(CutPoint, Measured):
    """One measured cut: the plan's digest, why it was chosen, and the seconds that it took.

    origin: `design`, the low-discrepancy sequence; `uncertain`, where estimates were least sure; `given`, a plan that
    somebody looked at.
    """

    plan: str
    origin: Origin = "design"
    seconds: Positive = 0.0


class LeaveOneOut(Record):
    """Errors of the estimates of each measured cut from all others, after so many cuts: medians, and the most that 95
    (90) in 100 have.

    kl: |estimate / measured - 1|. value: of top-1 in points, of a perplexity relative.
    """

    cuts: Count
    kl: Positive
    kl_95: Positive
    value: Positive
    value_90: Positive


class Map(JsonRecord):
    """Measured cuts of one model. `whole` is the result of the whole model; `samples` its held-out images or tokens.

    fitted: the inputs that repair or directions were fitted to. `errors`: of the estimates, once there are enough cuts.
    """

    kind: ClassVar = "map"
    verb: ClassVar = "map"
    error: ClassVar = MapError

    version: Literal[1] = 1
    model: str = ""
    model_digest: str
    scores_digest: str
    criterion: str = ""
    source_shape: Json
    basis: Basis = Basis.CHANNELS
    repair: bool = False
    data: str = ""
    data_digest: str
    inputs: Count
    samples: Count
    seed: Annotated[int, Field(ge=0, strict=True)] = 0
    fitted: Fitted | None = None
    whole: Measured
    cuts: tuple[MeasuredCut, ...] = ()
    errors: tuple[LeaveOneOut, ...] = ()

    @model_validator(mode="after")
    def _check(self) -> Map:
        shape = self.shape
        widths = {group.key: group.width for group in shape.groups}
        for number, cut in enumerate(self.cuts):
            if set(cut.lost) != set(widths):
                raise ValueError(f"cut {number} does not say what is lost of every group of {shape.name}")
            for key, kept in cut.widths.items():
                if kept > widths.get(key, 0):
                    raise ValueError(f"cut {number} keeps {kept} channels of {key}, of {widths.get(key, 0)}")
            if not set(cut.heads) <= set(range(shape.depth)):
                raise ValueError(f"cut {number} names a block that {shape.name} does not have")
        plans = [cut.plan for cut in self.cuts]
        if len(set(plans)) != len(plans):
            raise ValueError("a plan is measured twice")
        if (self.repair or self.basis == Basis.DIRECTIONS) != (self.fitted is not None):
            raise ValueError("fitted must be given exactly where images shape the weights")
        return self

    @cached_property
    def shape(self) -> ModelShape:
        """Shape of the whole model."""
        return ModelShape.from_dict(self.source_shape)

    @property
    def belongs_to(self) -> tuple[object, ...]:
        """All that must be equal for two maps to be of the same thing."""
        fitted = None if self.fitted is None else (self.fitted.digest, self.fitted.metric)
        return (self.model_digest, self.scores_digest, self.basis, self.repair, self.data_digest, fitted)

    @cached_property
    def digest(self) -> str:
        """First 16 hex digits of the SHA-256 over what it belongs to and the cuts."""
        return digest(json.dumps([*map(str, self.belongs_to), [cut.model_dump(mode="json") for cut in self.cuts]]))

    def measured(self, plan: str) -> MeasuredCut | None:
        """The cut by a plan of this digest, if it was measured."""
        return next((cut for cut in self.cuts if cut.plan == plan), None)

    def with_cut(self, cut: MeasuredCut) -> Map:
        """The map with one more cut; as it is where that plan is measured already."""
        return self if self.measured(cut.plan) else self._changed(cuts=(*self.cuts, cut))

    def with_errors(self, errors: LeaveOneOut) -> Map:
        """The map with the errors of its estimates, kept for every number of cuts."""
        return self._changed(errors=(*(e for e in self.errors if e.cuts < errors.cuts), errors))

    def _changed(self, **changes: object) -> Map:
        return type(self)(**{name: getattr(self, name) for name in type(self).model_fields} | changes)
