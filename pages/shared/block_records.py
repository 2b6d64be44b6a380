"""Records of block removals: the one that came with a model, or the one made here, found by the model's digest.

Imports neither torch nor the other pages' parts, so that a what-if can look its depth up wherever it is.
"""

from __future__ import annotations

from pathlib import Path

import streamlit as st

from pages.shared import places
from upvit_core.errors import UPViTError
from upvit_core.importance.block_removals import BlockRemovals
from upvit_core.planning.blocks import plan_depth
from upvit_core.planning.plan import PruningPlan

BUNDLED = Path(__file__).resolve().parents[2] / "assets" / "demo" / "blocks.json"


def path_of(digest: str) -> Path:
    """Where the record of a model is kept."""
    return places.scores() / f"blocks-{digest}.json"


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


def shallower(plan: PruningPlan, depth: int | None) -> PruningPlan:
    """The plan at a lesser depth; the plan itself where no record leads there."""
    if depth is None or depth >= plan.shape_before.depth:
        return plan
    found = record(plan.model_digest)
    if found is None or not found.least_depth <= depth or found.shape.blocks != plan.shape_before.blocks:
        return plan
    return plan_depth(plan, found, depth)
