"""Records of block removals: the one that came with a model, or the one made here, found by the model's digest.

Imports neither torch nor the other pages' parts, so that a what-if can look its depth up wherever it is.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import streamlit as st

from pages.shared import places
from upvit_core.errors import UPViTError
from upvit_core.importance.block_removals import BlockRemovals
from upvit_core.importance.scores import ImportanceScores
from upvit_core.planning.blocks import digest_at, plan_depth
from upvit_core.planning.plan import PruningPlan

Order = Literal["together", "depth first", "width first"]
BUNDLED = Path(__file__).resolve().parents[2] / "assets" / "demo" / "blocks.json"


def path_of(digest: str) -> Path:
    """Where the record of a model is kept."""
    return places.scores() / f"blocks-{digest}.json"


def path_after(plan: PruningPlan) -> Path:
    """Where the removals of the half-blocks of the model thinned by `plan` are kept (width first)."""
    return places.scores() / f"blocks-{plan.model_digest}-{plan.digest}.json"


def path_at(removals: BlockRemovals, depth: int) -> Path:
    """Where the channel scores of the model cut to `depth` are kept (depth first)."""
    return places.scores() / f"depth-{digest_at(removals, depth)}.safetensors"


def after(plan: PruningPlan) -> BlockRemovals | None:
    """The removals of the thinner model, where they were scored."""
    path = path_after(plan)
    return _read(str(path), path.stat().st_mtime_ns) if path.is_file() else None


def at(removals: BlockRemovals, depth: int) -> ImportanceScores | None:
    """The channel scores of the shallower model, where there are any."""
    path = path_at(removals, depth)
    return _scores(str(path), path.stat().st_mtime_ns) if path.is_file() else None


@st.cache_resource(max_entries=16, show_spinner=False)
def _scores(path: str, stamp: int) -> ImportanceScores | None:
    try:
        return ImportanceScores.load(path)
    except UPViTError:
        return None


def record(digest: str) -> BlockRemovals | None:
    """The removals of the model with that digest, as far as they are known; made here before those that came along."""
    if not digest:
        return None
    for path in (path_of(digest), BUNDLED):
        if path.is_file():
            found = _read(str(path), path.stat().st_mtime_ns)
            if found is not None and found.model_digest == digest and not found.after:
                return found
    return None


@st.cache_resource(max_entries=16, show_spinner=False)
def _read(path: str, stamp: int) -> BlockRemovals | None:
    try:
        return BlockRemovals.load(path)
    except UPViTError:
        return None


def shallower(
    plan: PruningPlan, depth: int | None, order: Order, widths: Callable[[ImportanceScores], PruningPlan]
) -> PruningPlan:
    """The plan at a lesser depth; the plan itself where no record leads there.

    `widths` plans from other scores, for depth first. Until what an order needs has been scored, both are taken on the
    whole model (together).
    """
    if depth is None or depth >= plan.shape_before.depth:
        return plan
    found = record(plan.model_digest)
    if found is None or not found.least_depth <= depth or found.shape.blocks != plan.shape_before.blocks:
        return plan
    if order == "depth first" and plan.basis == "channels" and (scores := at(found, depth)) is not None:
        return plan_depth(widths(scores), found, depth)
    if order == "width first" and plan.basis == "channels" and (thin := after(plan)) is not None:
        return plan_depth(plan, thin, depth)
    return plan_depth(plan, found, depth)
