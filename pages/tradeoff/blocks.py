"""How a plan is spread over the blocks: the choice of a way, and a table in which every block can be set."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pandas as pd
import streamlit as st

from pages.services import block_removals, slider_state
from pages.services.session import session
from pages.services.slider_state import ALLOCATION, ROUND_TO
from upvit_core.planning.curves import Widths
from upvit_core.planning.what_if import ALLOCATIONS, ROUNDINGS, WhatIf, what_if_from_widths
from upvit_core.planning.widths import nearest_widths, parse_widths, widths_of, write_widths
from upvit_core.records.plan import PruningPlan
from upvit_core.records.scores import ImportanceScores
from upvit_core.records.shape import ModelShape, legal_head_counts

HEADS, ATTENTION, FFN = "Heads", "Attention removed", "FFN removed"


def spread_controls(shape: ModelShape, scores: ImportanceScores | None) -> None:
    """What the ratios mean for single blocks, and which multiples widths are taken to."""
    now = slider_state.current(shape)
    st.session_state.setdefault(ALLOCATION, ALLOCATIONS[now.allocation])
    st.session_state.setdefault(ROUND_TO, now.round_to)
    one, two = st.columns(2)
    one.selectbox(
        "Over blocks", list(ALLOCATIONS.values()), key=ALLOCATION, bind="query-params",
        disabled=scores is None, on_change=_to_blocks, args=(shape, scores),
        help="Equal: the same ratio in every block (the letter). By kind: one ranking of all attention channels and "
        "one of all FFN channels, so that blocks lose what their scores say (isomorphic). One threshold: all channels "
        "of all components in one ranking; the ratios say only how many go in total (global). Block by block: as the "
        "table below or a budget says.",
    )  # fmt: skip
    two.selectbox(
        "Round to", ROUNDINGS, key=ROUND_TO, bind="query-params", on_change=_round, args=(shape,),
        help="Widths that are multiples of 8 or 16 run faster on many devices; the facts beside the sliders show what "
        "the rounding changes.",
    )  # fmt: skip


def _to_blocks(shape: ModelShape, scores: ImportanceScores | None) -> None:
    """From any other way, "block by block" begins where the plan stands."""
    saved = session().what_if
    if saved is not None and scores is not None and st.session_state[ALLOCATION] == ALLOCATIONS["widths"]:
        slider_state.set_to(
            what_if_from_widths(widths_of(saved.plan(scores, block_removals.records()).shape_after), shape, saved)
        )


def _round(shape: ModelShape) -> None:
    """Widths that were set block by block are rounded too."""
    saved = session().what_if
    if saved is not None and saved.widths:
        round_to = int(st.session_state[ROUND_TO])
        widths = nearest_widths(parse_widths(saved.widths, shape), shape, round_to)
        slider_state.set_to(replace(what_if_from_widths(widths, shape, saved), round_to=round_to))


def blocks_table(plan: PruningPlan, now: WhatIf) -> None:
    """Heads and ratios of every block, to be edited; an edit makes the plan one of its own widths."""
    shape, after = plan.shape_before, plan.shape_after
    widths = widths_of(after)
    rows = frame(widths, shape)
    every = sorted({count for block in shape.blocks for count in legal_head_counts(block.num_heads)})
    key = f"blocks {write_widths(widths)} {now.round_to}"
    st.data_editor(
        rows, key=key, hide_index=True, width="stretch", height=36 * (shape.depth + 1) + 2,
        disabled=["Block", "Attention kept", "FFN kept"], on_change=_edited, args=(key, widths, shape, now),
        column_config={
            "Block": st.column_config.NumberColumn(width="small"),
            HEADS: st.column_config.SelectboxColumn(options=every, required=True, width="small"),
            ATTENTION: st.column_config.NumberColumn(min_value=0, max_value=99.9, format="%.1f %%", required=True),
            FFN: st.column_config.NumberColumn(min_value=0, max_value=99.9, format="%.1f %%", required=True),
        },
    )  # fmt: skip
    st.html(
        '<p class="quiet">Double-click a cell to set heads or the share removed in one block; widths are taken to the '
        "nearest legal ones. A slider sets all blocks again.</p>"
    )


def frame(widths: Widths, shape: ModelShape) -> pd.DataFrame:
    """One row a block."""
    rows = [
        {
            "Block": number, HEADS: heads, ATTENTION: 100 * (1 - attention / own.attention),
            "Attention kept": attention, FFN: 100 * (1 - ffn / own.ffn), "FFN kept": ffn,
        }
        for number, ((heads, attention, ffn), own) in enumerate(zip(widths.blocks, shape.blocks, strict=True))
    ]  # fmt: skip
    return pd.DataFrame(rows)


def edited(widths: Widths, shape: ModelShape, changes: dict[int, dict[str, Any]], round_to: int) -> Widths:
    """The widths after edits of rows, legal again; blocks without an edit stay as they are."""
    blocks = list(widths.blocks)
    for number, cells in changes.items():
        heads, attention, ffn = blocks[number]
        own = shape.blocks[number]
        wanted = Widths(
            widths.embed_dim,
            (
                (
                    int(cells.get(HEADS) or heads),
                    _kept(cells.get(ATTENTION), own.attention, attention),
                    _kept(cells.get(FFN), own.ffn, ffn),
                ),
            ),
        )
        blocks[number] = nearest_widths(wanted, replace(shape, blocks=(own,)), round_to).blocks[0]
    return Widths(widths.embed_dim, tuple(blocks))


def _kept(removed: float | None, full: int, otherwise: int) -> int:
    return otherwise if removed is None else round(full * (1 - removed / 100))


def _edited(key: str, widths: Widths, shape: ModelShape, now: WhatIf) -> None:
    changes = {int(row): cells for row, cells in st.session_state[key]["edited_rows"].items()}
    slider_state.set_to(what_if_from_widths(edited(widths, shape, changes, now.round_to), shape, now))
