"""The allocation of a plan to blocks: the choice of how, and a table in which every block can be set."""

from dataclasses import replace
from typing import TypedDict

import pandas as pd
import streamlit as st

from pages.services import block_removals, slider_state
from pages.services.open_model import OpenModel
from pages.services.session import session
from pages.services.slider_state import ALLOCATION, ROUND_TO
from upvit_core.planning.curves import Widths
from upvit_core.planning.what_if import ALLOCATIONS, ROUNDINGS, WhatIf, what_if_from_widths
from upvit_core.planning.widths import nearest_widths, parse_widths, widths_of, write_widths
from upvit_core.records.plan import PruningPlan
from upvit_core.records.scores import ImportanceScores
from upvit_core.records.shape import ModelShape, legal_head_counts

Edit = TypedDict("Edit", {"Heads": int, "Attention removed": float, "FFN removed": float}, total=False)
ALLOCATION_HELP = (
    "Equal: the same ratio in every block (the letter). By kind: one ranking of all attention channels and one of all "
    "FFN channels, so that blocks lose what their scores say (isomorphic). One threshold: all channels of all "
    "components in one ranking; the ratios say only how many go in total (global). Block by block: as the table below "
    "or a budget says."
)
ROUND_TO_HELP = (
    "Widths that are multiples of 8 or 16 run faster on many devices; a line under the cards shows what rounding "
    "changes."
)


def allocation_controls(model: OpenModel, scores: ImportanceScores | None) -> None:
    """Draw the choice of the allocation over blocks, and of the multiples that widths are rounded to."""
    shape, now = model.shape, slider_state.current(model)
    st.session_state.setdefault(ALLOCATION, ALLOCATIONS[now.allocation])
    st.session_state.setdefault(ROUND_TO, now.round_to)

    def start_block_by_block() -> None:
        """Block by block begins with the widths of the current plan."""
        saved = session().what_if
        if saved is not None and scores is not None and st.session_state[ALLOCATION] == ALLOCATIONS["widths"]:
            widths = widths_of(saved.plan(scores, block_removals.records()).shape_after)
            slider_state.set_to(what_if_from_widths(widths, shape, saved))

    def round_widths() -> None:
        """Widths that were set block by block are rounded too."""
        saved = session().what_if
        if saved is not None and saved.widths:
            round_to = int(st.session_state[ROUND_TO])
            widths = nearest_widths(parse_widths(saved.widths, shape), shape, round_to)
            slider_state.set_to(replace(what_if_from_widths(widths, shape, saved), round_to=round_to))

    one, two = st.columns(2)
    names = list(ALLOCATIONS.values())
    with one:
        st.selectbox(
            "Over blocks",
            names,
            key=ALLOCATION,
            bind="query-params",
            disabled=scores is None,
            on_change=start_block_by_block,
            help=ALLOCATION_HELP,
        )
    with two:
        st.selectbox(
            "Round to", ROUNDINGS, key=ROUND_TO, bind="query-params", on_change=round_widths, help=ROUND_TO_HELP
        )


def blocks_table(plan: PruningPlan, now: WhatIf) -> None:
    """Draw heads and ratios of every block, to be edited; an edit makes the plan one of widths block by block."""
    shape, widths = plan.shape_before, widths_of(plan.shape_after)
    counts = sorted({count for block in shape.blocks for count in legal_head_counts(block.num_heads)})
    key = f"blocks {write_widths(widths)} {now.round_to}"
    column = st.column_config

    def apply_edits() -> None:
        edits = {int(row): cells for row, cells in st.session_state[key]["edited_rows"].items()}
        slider_state.set_to(what_if_from_widths(edited_widths(widths, shape, edits, now.round_to), shape, now))

    removed = column.NumberColumn(min_value=0, max_value=99.9, format="%.1f %%", required=True)
    st.data_editor(
        table_rows(widths, shape),
        key=key,
        hide_index=True,
        width="stretch",
        height=36 * (shape.depth + 1) + 2,
        disabled=["Block", "Attention kept", "FFN kept"],
        on_change=apply_edits,
        column_config={
            "Block": column.NumberColumn(width="small"),
            "Heads": column.SelectboxColumn(options=counts, required=True, width="small"),
            "Attention removed": removed,
            "FFN removed": removed,
        },
    )
    st.html(
        '<p class="quiet">Double-click a cell to set the heads or the share removed in one block; widths are taken to '
        "the nearest legal ones. A slider sets all blocks again.</p>"
    )


def table_rows(widths: Widths, shape: ModelShape) -> pd.DataFrame:
    """One row a block."""
    rows = [
        (number, heads, 100 * (1 - attention / own.attention), attention, 100 * (1 - ffn / own.ffn), ffn)
        for number, ((heads, attention, ffn), own) in enumerate(zip(widths.blocks, shape.blocks, strict=True))
    ]
    columns = ["Block", "Heads", "Attention removed", "Attention kept", "FFN removed", "FFN kept"]
    return pd.DataFrame(rows, columns=columns)


def edited_widths(widths: Widths, shape: ModelShape, edits: dict[int, Edit], round_to: int) -> Widths:
    """The widths after edits of rows, legal again; blocks without an edit stay as they are."""
    blocks = list(widths.blocks)
    for number, cells in edits.items():
        heads, attention, ffn = blocks[number]
        own = shape.blocks[number]
        if (removed := cells.get("Attention removed")) is not None:
            attention = round(own.attention * (1 - removed / 100))
        if (removed := cells.get("FFN removed")) is not None:
            ffn = round(own.ffn * (1 - removed / 100))
        wanted = Widths(widths.embed_dim, ((int(cells.get("Heads") or heads), attention, ffn),))
        blocks[number] = nearest_widths(wanted, replace(shape, blocks=(own,)), round_to).blocks[0]
    return Widths(widths.embed_dim, tuple(blocks))
