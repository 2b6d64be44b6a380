"""From scores and ratios to a plan: rank each component, drop the lowest (the letter: the same ratio everywhere)."""

from __future__ import annotations

from typing import Any

import numpy as np

from upvit_core.errors import PlanError
from upvit_core.importance.scores import ImportanceScores
from upvit_core.models.shape import ModelShape, deit_shape
from upvit_core.planning.heads import common_head_counts, keep_best, keep_in_merged_heads
from upvit_core.planning.plan import BlockPlan, Kept, KeptAttention, PruningPlan

PRESETS = {"deit_small": deit_shape("small"), "deit_tiny": deit_shape("tiny")}


def kept_channels(width: int, pruning_ratio: float, multiple_of: int = 1, *, snap: bool = False) -> int:
    """How many of `width` channels stay when `pruning_ratio` of them are removed.

    With `snap` the nearest legal multiple is taken; without it, a count that is no multiple is an error.
    """
    if not 0 <= pruning_ratio < 1:
        raise PlanError(f"A pruning ratio is the share removed, in [0, 1), not {pruning_ratio}; 0.5 removes half.")
    exact = width * (1 - pruning_ratio)
    if snap:
        return min(max(round(exact / multiple_of), 1) * multiple_of, width - width % multiple_of)
    count = round(exact)
    if count < 1:
        raise PlanError(f"A pruning ratio of {pruning_ratio} leaves none of {width} channels; lower it.")
    if count % multiple_of:
        near = kept_channels(width, pruning_ratio, multiple_of, snap=True)
        raise PlanError(
            f"Removing {pruning_ratio:g} of {width} channels leaves {count}, which {multiple_of} heads do not divide; "
            f"a ratio of {1 - near / width:g} leaves {near}."
        )
    return count


def plan_uniform(
    scores: ImportanceScores,
    *,
    residual: float = 0.0,
    attention: float = 0.0,
    ffn: float = 0.0,
    heads: int | None = None,
    snap: bool = False,
    basis: str = "channels",
) -> PruningPlan:
    """The same pruning ratio in every block; `heads` merges every block's heads (None leaves them as they are).

    Raises PlanError for a ratio outside [0, 1), heads that do not divide, or widths that heads do not divide.
    """
    shape = scores.shape
    target = heads if heads is not None else shape.num_heads
    if target is not None and target not in common_head_counts(shape.blocks):
        options = ", ".join(str(n) for n in common_head_counts(shape.blocks))
        raise PlanError(f"The heads of {shape.name} cannot be merged into {target}; choose one of {options}.")
    width = kept_channels(shape.embed_dim, residual, target or 1, snap=snap)
    widths = [
        (
            target or block.num_heads,
            kept_channels(block.attention, attention, target or block.num_heads, snap=snap),
            kept_channels(block.ffn, ffn, snap=snap),
        )
        for block in shape.blocks
    ]
    requested = {"residual": residual, "attention": attention, "ffn": ffn, "heads": heads, "allocation": "uniform"}
    return plan_widths(scores, width, widths, requested=requested, basis=basis)


def plan_preset(scores: ImportanceScores, preset: str, *, basis: str = "channels") -> PruningPlan:
    """Widths of a stock model, such as `deit_small`, of a model with the same depth.

    Raises PlanError for an unknown preset, or one that is wider or deeper than the model.
    """
    if preset not in PRESETS:
        raise PlanError(f"There is no preset {preset!r}; choose one of {', '.join(PRESETS)}.")
    if preset not in presets_for(scores.shape):
        raise PlanError(f"{scores.shape.name} cannot be cut to {preset}: its widths, heads or depth do not allow it.")
    target = PRESETS[preset]
    widths = [(block.num_heads, block.attention, block.ffn) for block in target.blocks]
    return plan_widths(scores, target.embed_dim, widths, requested={"preset": preset}, basis=basis)


def presets_for(shape: ModelShape) -> tuple[str, ...]:
    """Presets whose widths, heads and depth the model can be cut to."""
    return tuple(
        name
        for name, target in PRESETS.items()
        if target.depth == shape.depth
        and target.embed_dim < shape.embed_dim
        and all(
            own.num_heads % new.num_heads == 0 and new.attention <= own.attention and new.ffn <= own.ffn
            for own, new in zip(shape.blocks, target.blocks, strict=True)
        )
    )


def plan_widths(
    scores: ImportanceScores,
    embed_dim: int,
    blocks: list[tuple[int, int, int]],
    *,
    requested: dict[str, Any],
    basis: str = "channels",
) -> PruningPlan:
    """The best channels for given widths; `blocks` holds (heads, attention channels, ffn channels) of every block.

    With basis "directions" and scores of channels, the leading directions stay: they come ordered by importance.

    Raises PlanError where scores of directions are to give a plan of channels.
    """
    if scores.basis == "directions" != basis:
        raise PlanError("These are scores of directions; plan with basis=directions, or score channels.")
    leading = basis == "directions" and scores.basis == "channels"
    chosen = []
    for b, (heads, attention, ffn) in enumerate(blocks):
        own = scores.shape.blocks[b]
        values = -np.arange(own.attention, dtype=float) if leading else scores.attention(b)
        keep = keep_in_merged_heads(values, own.num_heads, heads, attention)
        chosen.append(
            BlockPlan(
                source=b,
                attention=KeptAttention(heads=heads, keep=tuple(keep.tolist())),
                ffn=Kept(keep=tuple(keep_best(scores.ffn(b), ffn).tolist())),
            )
        )
    residual = np.arange(embed_dim) if leading else keep_best(scores.residual, embed_dim)
    return PruningPlan(
        model=scores.model,
        model_digest=scores.model_digest,
        scores_digest=scores.digest,
        criterion=scores.criterion,
        basis="directions" if basis == "directions" else "channels",
        source_shape=scores.shape.to_dict(),
        residual=Kept(keep=tuple(residual.tolist())),
        blocks=tuple(chosen),
        requested=requested,
    )
