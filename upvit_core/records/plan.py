"""The pruning plan: which channels of which source block stay. A frozen record, validated whenever it is read."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cached_property
from itertools import islice, pairwise
from operator import lt
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from upvit_core.errors import PlanError
from upvit_core.files import Json, Values, digest
from upvit_core.records.basis import Basis
from upvit_core.records.record import JsonRecord, Record
from upvit_core.records.shape import BlockShape, ModelShape

Index = Annotated[int, Field(ge=0, strict=True)]


def _ascending(keep: tuple[int, ...], what: str) -> None:
    if not keep:
        raise ValueError(f"{what} keeps no channel; keep at least one")
    if not all(map(lt, keep, islice(keep, 1, None))):
        raise ValueError(f"{what} must list its kept channels once each, in ascending order")


class Kept(Record):
    """Channels that stay, ascending, counted in the source model."""

    keep: tuple[Index, ...]

    @model_validator(mode="after")
    def _check(self) -> Kept:
        _ascending(self.keep, "a component")
        return self


class KeptAttention(Kept):
    """Channels of one block's attention that stay, in `heads` heads.

    Source heads are merged with their neighbours first, so the channels that stay must be spread evenly over the
    merged heads.
    """

    heads: Annotated[int, Field(ge=1, strict=True)]


class BlockPlan(Record):
    """One block of the thinner model: attention of block `source`, FFN of `ffn_source` (the same unless hybrid).

    `reduction`: channels of the spatial reduction that goes with the attention, where there is one.
    """

    source: Index
    attention: KeptAttention
    ffn: Kept
    ffn_source: Index | None = None
    reduction: Kept | None = None

    @property
    def ffn_block(self) -> int:
        return self.source if self.ffn_source is None else self.ffn_source


class Fitted(Record):
    """The fit of a student, enough to repeat it: proxy images (`digest` of the drawn set), the metric of the residual
    where directions were cut, and whether least squares repaired it."""

    repair: bool
    metric: str = ""
    data: str
    digest: str
    images: Annotated[int, Field(ge=1, strict=True)]
    seed: Annotated[int, Field(ge=0, strict=True)]


class PruningPlan(JsonRecord):
    """The part of a model that stays, and its origin; `fitted` is set where images shaped the student's weights.

    With basis "channels" (the letter's way) indices count channels; with "directions" they count the rotated basis's
    directions in order, of the residual and inside each head (FFN channels stay channels). In a staged model `residual`
    is the first stage's, `later_residuals` those of the stages after it.
    """

    kind: ClassVar = "plan"
    verb: ClassVar = "plan"
    error: ClassVar = PlanError

    version: Literal[1] = 1
    model: str = ""
    model_digest: str = ""
    scores_digest: str = ""
    criterion: str = ""
    basis: Basis = Basis.CHANNELS
    source_shape: Json
    residual: Kept
    later_residuals: tuple[Kept, ...] = ()
    blocks: tuple[BlockPlan, ...]
    requested: Json = Field(default_factory=dict)
    fitted: Fitted | None = None

    @property
    def is_repaired(self) -> bool:
        """True if the student was repaired: by images, or by the second moments of an elastic model (`requested`)."""
        return self.requested.get("repair") is True if self.fitted is None else self.fitted.repair

    @model_validator(mode="after")
    def _check(self) -> PruningPlan:
        shape = self.shape_before
        residuals = (self.residual, *self.later_residuals)
        if len(residuals) != len(shape.embed_dims):
            raise ValueError(f"{len(residuals)} residuals are given for the {len(shape.embed_dims)} of {shape.name}")
        for stage, (kept, width) in enumerate(zip(residuals, shape.embed_dims, strict=True)):
            _inside(kept.keep, width, f"residual of stage {stage}" if shape.stages else "residual")
        if not self.blocks:
            raise ValueError("the plan keeps no block; keep at least one")
        for number, block in enumerate(self.blocks):
            for source in (block.source, block.ffn_block):
                if source >= shape.depth:
                    raise ValueError(f"block {number} comes from block {source}, but {shape.name} has {shape.depth}")
            before = shape.blocks[block.source]
            _inside(block.attention.keep, before.attention, f"attention of block {number}")
            _inside(block.ffn.keep, shape.blocks[block.ffn_block].ffn, f"ffn of block {number}")
            _check_heads(block.attention, before, number)
            if (block.reduction is not None) != bool(before.reduction):
                raise ValueError(f"block {number} must say what its reduction keeps exactly where its source has one")
            if block.reduction is not None:
                _inside(block.reduction.keep, before.reduction, f"reduction of block {number}")
            if shape.stage_of(block.source) != shape.stage_of(block.ffn_block):
                raise ValueError(f"block {number} joins attention and FFN of different stages")
        if len({shape.stage_of(block.source) for block in self.blocks}) != len(shape.depths):
            raise ValueError("every stage must keep a block")
        order = [(block.source, block.ffn_block) for block in self.blocks]
        flat = [2 * a for a, _ in order], [2 * f + 1 for _, f in order]
        sequence = [unit for pair in zip(*flat, strict=True) for unit in pair]
        if any(a >= b for a, b in pairwise(sequence)):
            raise ValueError("blocks must keep the order of the source model, each half-block used at most once")
        return self

    @classmethod
    def whole(cls, shape: ModelShape, **about: Any) -> PruningPlan:
        """The plan that keeps everything of a model; `about` holds other fields of the record."""
        first, *later = (Kept(keep=tuple(range(width))) for width in shape.embed_dims)
        blocks = tuple(
            BlockPlan(
                source=b,
                attention=KeptAttention(heads=block.num_heads, keep=tuple(range(block.attention))),
                ffn=Kept(keep=tuple(range(block.ffn))),
                reduction=Kept(keep=tuple(range(block.reduction))) if block.reduction else None,
            )
            for b, block in enumerate(shape.blocks)
        )
        return cls(source_shape=shape.to_dict(), residual=first, later_residuals=tuple(later), blocks=blocks, **about)

    @cached_property
    def shape_before(self) -> ModelShape:
        return ModelShape.from_dict(self.source_shape)

    @cached_property
    def shape_after(self) -> ModelShape:
        """Shape of the thinner model."""
        before = self.shape_before
        widths = [len(kept.keep) for kept in (self.residual, *self.later_residuals)]
        blocks = tuple(
            BlockShape(
                b.attention.heads, len(b.attention.keep), len(b.ffn.keep), len(b.reduction.keep) if b.reduction else 0
            )
            for b in self.blocks
        )
        held = [before.stage_of(block.source) for block in self.blocks]
        stages = tuple(
            replace(stage, embed_dim=widths[number], depth=held.count(number))
            for number, stage in enumerate(before.stages)
        )
        rotated = before.features and self.basis == Basis.DIRECTIONS
        outputs = before.outputs if rotated else before.outputs_at(widths[-1])
        return replace(before, embed_dim=widths[-1], blocks=blocks, stages=stages, num_classes=outputs)

    def model_copy(self, *, update: Values | None = None, deep: bool = False) -> PruningPlan:
        """A changed copy; what was computed of this plan is not carried along."""
        copied = super().model_copy(update=update, deep=deep)
        for name in ("shape_before", "shape_after", "digest"):
            copied.__dict__.pop(name, None)
        return copied

    def at_size(self, img_size: tuple[int, int]) -> PruningPlan:
        """The same plan for the model at another image size, which no width depends on."""
        return self.model_copy(update={"source_shape": {**self.source_shape, "img_size": list(img_size)}})

    def kept(self, key: str) -> tuple[int, ...]:
        """Channels that stay of a group of the SOURCE model, by its key; none where its block is gone."""
        component, _, place = key.partition(".")
        if component == "residual":
            return (self.residual, *self.later_residuals)[int(place or 0)].keep
        for block in self.blocks:
            if (block.ffn_block if component == "ffn" else block.source) == int(place):
                kept: Kept | None = getattr(block, component)
                return kept.keep if kept else ()
        return ()

    def heads_of(self, block: int) -> int | None:
        """Heads into which the attention of a SOURCE block is merged; None where it is gone."""
        return next((own.attention.heads for own in self.blocks if own.source == block), None)

    @cached_property
    def digest(self) -> str:
        """First 16 hex digits of the SHA-256 over what stays."""
        kept = self.model_dump(include={"basis", "residual", "blocks", "model_digest"})
        for block in kept["blocks"]:
            if block["reduction"] is None:
                del block["reduction"]
        if self.later_residuals:
            kept["later_residuals"] = [residual.model_dump() for residual in self.later_residuals]
        return digest(json.dumps(kept, sort_keys=True))


def _inside(keep: tuple[int, ...], width: int, what: str) -> None:
    if keep[-1] >= width:
        raise ValueError(f"{what} keeps channel {keep[-1]}, but the source has only {width}")


def _check_heads(attention: KeptAttention, own: BlockShape, number: int) -> None:
    if own.num_heads % attention.heads:
        raise ValueError(f"block {number}: {own.num_heads} heads cannot be merged evenly into {attention.heads}")
    width = own.attention // attention.heads
    counts = [0] * attention.heads
    for channel in attention.keep:
        counts[channel // width] += 1
    if len(set(counts)) > 1:
        raise ValueError(f"block {number}: every head must keep the same number of channels, these keep {counts}")
