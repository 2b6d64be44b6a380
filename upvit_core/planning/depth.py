"""From block removals to blocks: which half-blocks stay at a depth, how they pair up, and a plan that combines depth
with widths.

What is left always alternates attention and FFN, so that neighbours pair up into ordinary blocks; a pair from two
source blocks is a hybrid block.
"""

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, get_args

from upvit_core.errors import PlanError
from upvit_core.files import digest
from upvit_core.records.block_removals import BlockRemovals
from upvit_core.records.plan import PruningPlan
from upvit_core.records.shape import ModelShape

Pair = tuple[int, int]
Order = Literal["together", "depth first", "width first"]
ORDERS: tuple[Order, ...] = get_args(Order)


def block_pairs(halves: Sequence[int]) -> tuple[Pair, ...]:
    """(attention source, FFN source) of every block that alternating half-blocks make.

    Raises PlanError where attention and FFN do not alternate.
    """
    if len(halves) % 2 or any(half % 2 != place % 2 for place, half in enumerate(halves)):
        raise PlanError(f"The half-blocks {list(halves)} do not alternate attention and FFN; remove neighbours only.")
    return tuple((a // 2, f // 2) for a, f in zip(halves[::2], halves[1::2], strict=True))


def is_hybrid(pair: Pair) -> bool:
    """True where attention and FFN come from different blocks."""
    return pair[0] != pair[1]


def pairs_at(removals: BlockRemovals, depth: int) -> tuple[Pair, ...]:
    """The blocks that are left at `depth`. Raises PlanError where the removals do not reach it."""
    if not removals.least_depth <= depth <= removals.shape.depth:
        raise PlanError(
            f"The depth scores of {removals.shape.name} lead from {removals.shape.depth} to {removals.least_depth} "
            f"blocks, not to {depth}; choose one of these or run `score-blocks --depth {max(depth, 1)}`."
        )
    return block_pairs(removals.remaining(depth))


def shape_at(shape: ModelShape, pairs: Sequence[Pair]) -> ModelShape:
    """Shape of the model that keeps these blocks at their widths."""
    blocks = tuple(replace(shape.blocks[a], ffn=shape.blocks[f].ffn) for a, f in pairs)
    held = [shape.stage_of(a) for a, _ in pairs]
    stages = tuple(replace(stage, depth=held.count(number)) for number, stage in enumerate(shape.stages))
    return replace(shape, blocks=blocks, stages=stages)


def digest_at(removals: BlockRemovals, depth: int) -> str:
    """Digest of the model cut to `depth`, as scores of it carry it (depth first)."""
    content = json.dumps([removals.model_digest, pairs_at(removals, depth)])
    return digest(content)


def plan_depth_only(removals: BlockRemovals, depth: int) -> PruningPlan:
    """All channels of the blocks that are left at `depth`. Raises PlanError for removals of a thinner model."""
    if removals.after:
        raise PlanError("These depth scores belong to a model of reduced width; combine them with its width plan.")
    whole = PruningPlan.whole(removals.shape, model=removals.model, model_digest=removals.model_digest)
    return _reordered(whole, pairs_at(removals, depth), _requested(removals, depth, "depth only"))


def plan_depth(plan: PruningPlan, removals: BlockRemovals, depth: int) -> PruningPlan:
    """The width plan at a lesser depth, as one plan of the original model.

    The order follows from the models that the records belong to: removals of the original and channel scores of the
    original (neither knows of the other), removals of the model cut by this very plan (width first), or channel scores
    of the model cut to this depth (depth first). Raises PlanError where they belong to different models.
    """
    pairs = pairs_at(removals, depth)
    before = plan.shape_before
    if removals.after:
        if removals.after != plan.digest:
            raise PlanError(
                "These depth scores belong to another width plan; run `score-blocks --after` with this one, or use "
                "depth scores of the whole model."
            )
        return _reordered(plan, pairs, _requested(removals, depth, "width first"))
    whole = removals.shape
    shallow = shape_at(whole, pairs)
    if depth < whole.depth and plan.model_digest == digest_at(removals, depth) and _same(before, shallow):
        return PruningPlan.model_validate(
            plan.model_dump()
            | {
                "model": removals.model,
                "model_digest": removals.model_digest,
                "source_shape": whole.to_dict(),
                "blocks": [
                    block.model_dump() | {"source": a, "ffn_source": f if f != a else None}
                    for block, (a, f) in zip(plan.blocks, pairs, strict=True)
                ],
                "requested": plan.requested | _requested(removals, depth, "depth first"),
            }
        )
    known_apart = bool(plan.model_digest and removals.model_digest) and plan.model_digest != removals.model_digest
    if not _same(before, whole) or known_apart:
        raise PlanError(
            f"The channel scores belong to {before.name} ({before.depth} blocks) and the depth scores to {whole.name} "
            f"({whole.depth} blocks), which are different models; score both on one."
        )
    return _reordered(plan, pairs, _requested(removals, depth, "together"))


def _same(a: ModelShape, b: ModelShape) -> bool:
    return (a.embed_dims, a.depths, a.blocks) == (b.embed_dims, b.depths, b.blocks)


def _requested(removals: BlockRemovals, depth: int, order: str) -> dict[str, object]:
    return {"depth": depth, "order": order, "removals_digest": removals.digest}


def _reordered(plan: PruningPlan, pairs: Sequence[Pair], requested: dict[str, object]) -> PruningPlan:
    """The plan with the blocks of these pairs alone."""
    blocks = plan.blocks
    if any(block.ffn_source is not None or block.source != b for b, block in enumerate(blocks)):
        raise PlanError("This plan already leaves out blocks; combine depth with a plan of widths only.")
    chosen = [
        {
            "source": a,
            "attention": blocks[a].attention.model_dump(),
            "ffn": blocks[f].ffn.model_dump(),
            "ffn_source": f if f != a else None,
            "reduction": None if (reduction := blocks[a].reduction) is None else reduction.model_dump(),
        }
        for a, f in pairs
    ]
    return PruningPlan.model_validate(plan.model_dump() | {"blocks": chosen, "requested": plan.requested | requested})
