"""From scores and ratios to a plan: rank each component, drop the lowest (the letter: the same ratio everywhere)."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from upvit_core.errors import PlanError
from upvit_core.importance.ranking import keep_best, keep_in_merged_heads
from upvit_core.records.basis import Basis
from upvit_core.records.known_shapes import PVT_VARIANTS, deit_shape, pvt_shape
from upvit_core.records.plan import BlockPlan, Kept, KeptAttention, PruningPlan
from upvit_core.records.ratios import Ratios
from upvit_core.records.scores import ImportanceScores
from upvit_core.records.shape import ModelShape, common_head_counts

NOTHING = Ratios()
PRESETS = {
    "deit_small": deit_shape("small"),
    "deit_tiny": deit_shape("tiny"),
    **{f"pvt_v2_{variant}": pvt_shape(variant) for variant in PVT_VARIANTS},
}


def kept_channels(width: int, pruning_ratio: float, multiple_of: int = 1, *, snap: bool = False) -> int:
    """Number of channels that stay of `width` when `pruning_ratio` of them are removed.

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
    ratios: Ratios = NOTHING,
    *,
    heads: int | None = None,
    snap: bool = False,
    basis: Basis = Basis.CHANNELS,
) -> PruningPlan:
    """The same pruning ratios in every block and stage; `heads` merges every block's heads (None: as they are).

    Raises PlanError for heads that do not divide, or widths that heads do not divide; `snap` takes the nearest legal.
    """
    widths, counts = uniform_widths(scores.shape, ratios, heads=heads, snap=snap)
    requested = {**ratios.named, "heads": heads, "allocation": "uniform"}
    return plan_groups(scores, widths, counts, requested=requested, basis=basis)


def uniform_widths(
    shape: ModelShape, ratios: Ratios, *, heads: int | None = None, snap: bool = False
) -> tuple[dict[str, int], dict[int, int]]:
    """Widths by key and heads by block of `plan_uniform`; raises as it does."""
    target = heads if heads is not None else shape.num_heads
    if target is not None and target not in common_head_counts(shape.blocks):
        options = ", ".join(str(n) for n in common_head_counts(shape.blocks))
        raise PlanError(f"The heads of {shape.name} cannot be merged into {target}; choose one of {options}.")
    if ratios.reduction is not None and "reduction" not in shape.components:
        raise PlanError(f"{shape.name} has no spatial reduction to cut; leave its ratio out.")
    counts = {b: target or block.num_heads for b, block in enumerate(shape.blocks)}
    shares = {"reduction": ratios.residual, **ratios.named}
    widths = {}
    for group in shape.groups:
        # As stock timm builds, a residual is as wide as the attention of its blocks, whose heads divide it.
        first = shape.first_block(group.place) if group.component == "residual" else group.place
        shared = group.component == "reduction" and ratios.reduction is None
        multiple = 1 if group.component == "ffn" or (group.component == "reduction" and not shared) else counts[first]
        if group.component == "residual" and not shape.stages:
            multiple = target or 1
        widths[group.key] = kept_channels(group.width, shares[group.component], multiple, snap=snap)
    return widths, counts


def plan_preset(scores: ImportanceScores, preset: str, *, basis: Basis = Basis.CHANNELS) -> PruningPlan:
    """Widths of a stock model, such as `deit_small` or `pvt_v2_b0`, of a model with the same depth.

    Raises PlanError for an unknown preset, or one that is wider or deeper than the model.
    """
    if preset not in PRESETS:
        raise PlanError(f"There is no preset {preset!r}; choose one of {', '.join(PRESETS)}.")
    if preset not in presets_for(scores.shape):
        raise PlanError(f"{scores.shape.name} cannot be cut to {preset}: its widths, heads or depth do not allow it.")
    target = PRESETS[preset]
    widths = {group.key: group.width for group in target.groups}
    heads = {b: block.num_heads for b, block in enumerate(target.blocks)}
    return plan_groups(scores, widths, heads, requested={"preset": preset}, basis=basis)


def presets_for(shape: ModelShape) -> tuple[str, ...]:
    """Presets whose widths, heads and depth the model can be cut to."""
    return tuple(
        name
        for name, target in PRESETS.items()
        if (target.family, target.depths) == (shape.family, shape.depths)
        and target.embed_dim < shape.embed_dim
        and [group.key for group in target.groups] == [group.key for group in shape.groups]
        and all(
            before.heads % after.heads == 0 and after.width <= before.width
            for before, after in zip(shape.groups, target.groups, strict=True)
        )
    )


def plan_widths(
    scores: ImportanceScores,
    embed_dim: int,
    blocks: list[tuple[int, int, int]],
    *,
    requested: dict[str, Any],
    basis: Basis = Basis.CHANNELS,
) -> PruningPlan:
    """The best channels for given widths of a model without stages, as `plan_groups` chooses them.

    `blocks` holds (heads, attention channels, ffn channels) of every block.
    """
    widths = {"residual": embed_dim}
    for b, (_, attention, ffn) in enumerate(blocks):
        widths |= {f"attention.{b}": attention, f"ffn.{b}": ffn}
    heads = {b: count for b, (count, _, _) in enumerate(blocks)}
    return plan_groups(scores, widths, heads, requested=requested, basis=basis)


def plan_groups(
    scores: ImportanceScores,
    widths: Mapping[str, int],
    heads: Mapping[int, int],
    *,
    requested: dict[str, Any],
    basis: Basis = Basis.CHANNELS,
) -> PruningPlan:
    """The best channels for given widths by key and heads by block.

    With basis "directions" and scores of channels, the leading directions stay: they come ordered by importance.

    Raises PlanError where scores of directions are to give a plan of channels, or the model has no directions.
    """
    shape = scores.shape
    if scores.basis == Basis.DIRECTIONS != basis:
        raise PlanError("These are scores of directions; plan with basis=directions, or score channels.")
    if basis == Basis.DIRECTIONS and not shape.has_directions:
        raise PlanError(f"{shape.name} has no directions: {shape.unrotated}; plan with basis=channels.")
    leading = basis == Basis.DIRECTIONS and scores.basis == Basis.CHANNELS

    def best(key: str) -> tuple[int, ...]:
        component, _, place = key.partition(".")
        values = scores.values[key]
        if leading and component in ("residual", "attention"):
            values = -np.arange(len(values), dtype=float)
        if component == "attention":
            before = shape.blocks[int(place)].num_heads
            return tuple(keep_in_merged_heads(values, before, heads[int(place)], widths[key]).tolist())
        return tuple(keep_best(values, widths[key]).tolist())

    residuals = [Kept(keep=best(group.key)) for group in shape.groups_of("residual")]
    return PruningPlan(
        model=scores.model,
        model_digest=scores.model_digest,
        scores_digest=scores.digest,
        criterion=scores.criterion,
        basis=basis,
        source_shape=shape.to_dict(),
        residual=residuals[0],
        later_residuals=tuple(residuals[1:]),
        blocks=tuple(
            BlockPlan(
                source=b,
                attention=KeptAttention(heads=heads[b], keep=best(f"attention.{b}")),
                ffn=Kept(keep=best(f"ffn.{b}")),
                reduction=Kept(keep=best(f"reduction.{b}")) if block.reduction else None,
            )
            for b, block in enumerate(shape.blocks)
        ),
        requested=requested,
    )
