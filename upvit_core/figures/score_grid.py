"""Scores arranged to be drawn: a component's channels in columns, blocks in rows; and as a table.

The residual of a staged model has a row for every stage. Rows of unequal widths end where their channels do. Rows are
sorted by importance (then a cut is a line that can be read off) or left in the model's order. More columns than a
screen has pixels are averaged in log10.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from upvit_core.cache import Cache
from upvit_core.figures.theme import TITLES
from upvit_core.records.basis import Basis
from upvit_core.records.plan import PruningPlan
from upvit_core.records.scores import ImportanceScores
from upvit_core.records.shape import Component

Order = Literal["importance", "position"]
MOST_COLUMNS = 1200
AXES: dict[Component, str] = {
    "residual": "residual channels", "attention": "attention channels, head by head", "ffn": "hidden channels",
    "reduction": "channels of reduced keys and values",
}  # fmt: skip


def member_word(scores: ImportanceScores, component: Component) -> str:
    """`channel`, or `direction` of rotated scores; FFN channels stay channels in either basis."""
    return "direction" if scores.basis == Basis.DIRECTIONS and component in ("residual", "attention") else "channel"


def axis_words(scores: ImportanceScores, component: Component) -> str:
    return AXES[component].replace("channel", member_word(scores, component))


@dataclass(frozen=True)
class Picture:
    """One component's scores, arranged to be drawn.

    values: log10 of the score, (R, C) float32. removed: share of the cell's channels that the plan removes, (R, C).
    channel: the cell's (first) channel in the source, (R, C). step: channels per cell. groups: heads that the columns
    are divided into, each row. cuts: channels kept in each group, (R, groups), or None where they are no prefix.
    blocks: source block of each row; of the residual its stage, 0 where it is one for all. share: of the channels that
    are kept where it is the same in all rows, else -1. word: what is scored, a channel or a direction.
    """

    component: Component
    order: Order
    values: np.ndarray
    removed: np.ndarray
    channel: np.ndarray
    step: int
    groups: int
    kept: int
    width: int
    cuts: np.ndarray | None
    blocks: tuple[int, ...]
    heads_before: int
    floor: float
    share: float = -1.0
    staged: bool = False
    word: str = "channel"

    @property
    def row_word(self) -> str:
        """`block`, or `stage` of a residual."""
        return "stage" if self.component == "residual" else "block"


def kept_mask(plan: PruningPlan | None, scores: ImportanceScores, component: Component, block: int) -> np.ndarray:
    """Mask (channels,) of the channels that the plan keeps of a source block; none of a dropped block."""
    key = scores.shape.key_of(component, block)
    width = len(scores.values[key])
    if plan is None:
        return np.ones(width, bool)
    mask = np.zeros(width, bool)
    mask[list(plan.kept(key))] = True
    return mask


def heads_after(plan: PruningPlan | None, scores: ImportanceScores, block: int) -> int:
    """Heads into which a source block's attention is merged."""
    return (plan.heads_of(block) if plan else None) or scores.shape.blocks[block].num_heads


def picture(
    scores: ImportanceScores,
    component: Component,
    plan: PruningPlan | None = None,
    order: Order = "importance",
    *,
    blocks: Sequence[int] | None = None,
    columns: int = MOST_COLUMNS,
) -> Picture:
    """Arrange one component; `blocks` chooses rows (default: all)."""
    places = tuple(group.place for group in scores.shape.groups_of(component))
    chosen = places if blocks is None else tuple(place for place in blocks if place in places) or places[:1]
    logs, known, floor = logs_of(scores, component, chosen)  # (R, C) each
    R, C = logs.shape
    removed = np.stack(
        [np.pad(~kept_mask(plan, scores, component, b), (0, C), constant_values=True)[:C] for b in chosen]
    )
    groups = heads_after(plan, scores, chosen[0]) if component == "attention" else 1
    if C % groups or any(component == "attention" and heads_after(plan, scores, b) != groups for b in chosen):
        groups = 1
    channel = np.broadcast_to(np.arange(C), (R, C))
    if order == "importance":
        channel = ranking_of(scores, component, chosen, groups)
        logs, removed = (np.take_along_axis(a, channel, axis=1) for a in (logs, removed))
    counts = (~removed).reshape(R, groups, -1).sum(-1)  # (R, groups)
    prefix = bool((np.diff(removed.reshape(R, groups, -1).astype(np.int8), axis=-1) >= 0).all())
    kept = counts.sum(1)
    shares = kept / known.sum(1)
    step = 1
    while C // step > columns or (C // groups) % step:
        step += 1
    return Picture(
        component=component,
        order=order,
        values=_mean_or_nan(logs.reshape(R, -1, step)).astype(np.float32) if step > 1 else logs.astype(np.float32),
        removed=removed.reshape(R, -1, step).mean(-1).astype(np.float32),
        channel=channel.reshape(R, -1, step)[..., 0],
        step=step,
        groups=groups,
        kept=int(kept[0]) if len(set(kept.tolist())) == 1 else -1,
        width=C,
        cuts=counts if prefix else None,
        blocks=chosen,
        heads_before=scores.shape.blocks[chosen[0]].num_heads if component == "attention" else 1,
        floor=floor,
        share=float(shares[0]) if np.ptp(shares) < 0.005 else -1.0,
        staged=bool(scores.shape.stages),
        word=member_word(scores, component),
    )


def _mean_or_nan(values: np.ndarray) -> np.ndarray:
    """Mean over the last axis of what is a number there; NaN where nothing is."""
    known = ~np.isnan(values)
    total = np.where(known, values, 0).sum(-1)
    return np.divide(total, known.sum(-1), out=np.full(total.shape, np.nan), where=known.any(-1))


def heading(p: Picture) -> str:
    """One line that says what stays: `Residual: 384 of 768 kept in every block`."""
    if p.component == "attention" and not (p.staged and len(p.blocks) > 1):
        merged = (
            f"{p.heads_before} heads merged to {p.groups}, " if p.groups != p.heads_before else f"{p.groups} heads, "
        )
        inside = f"{p.kept // p.groups} of {p.width // p.groups} {p.word}s in each" if p.kept >= 0 else "uneven cuts"
        return f"{TITLES[p.component]}: {merged}{inside}"
    if p.staged and len(p.blocks) > 1:
        kept = f"{p.share:.0%} kept in every {p.row_word}" if p.share >= 0 else "uneven cuts"
        return f"{TITLES[p.component]}: {kept}"
    every = len(p.blocks) > 1 or (p.component == "residual" and not p.staged)
    where = "in every block" if every else f"in {p.row_word} {p.blocks[0]}"
    return (
        f"{TITLES[p.component]}: {p.kept:,} of {p.width:,} kept {where}"
        if p.kept >= 0
        else f"{TITLES[p.component]}: uneven cuts"
    )


def component_table(
    scores: ImportanceScores, component: Component, plan: PruningPlan | None, blocks: Sequence[int]
) -> dict[str, np.ndarray]:
    """Every channel of the component: block, channel, score, its standard error, rank in its block, kept."""
    columns: dict[str, list[np.ndarray]] = {
        name: [] for name in ("block", "channel", "score", "stderr", "rank", "kept")
    }
    for block in blocks:
        key = scores.shape.key_of(component, block)
        values = scores.values[key]
        rank = np.empty(len(values), int)
        rank[np.argsort(-values, kind="stable")] = np.arange(1, len(values) + 1)
        columns["block"].append(np.full(len(values), -1 if key == "residual" else block))
        columns["channel"].append(np.arange(len(values)))
        columns["score"].append(values)
        columns["stderr"].append(scores.stderr.get(key, np.full(len(values), np.nan)))
        columns["rank"].append(rank)
        columns["kept"].append(kept_mask(plan, scores, component, block))
    return {name: np.concatenate(parts) for name, parts in columns.items()}


def find(p: Picture, block: int, channel: int) -> tuple[float, int] | None:
    """Column (x) and row (y) at which a channel is drawn; None where it is not."""
    row = p.blocks.index(block) if block in p.blocks else None
    if row is None:
        return None
    if p.step == 1:
        at = np.flatnonzero(p.channel[row] == channel)
        return (float(at[0]), row) if at.size else None
    if p.order == "position":
        return (float(channel), row)
    return None


def channel_at(p: Picture, x: float, y: float) -> tuple[int, int]:
    """(block, channel) of the cell at a point of the picture; of several channels in a cell, the first."""
    row = int(np.clip(round(y), 0, len(p.blocks) - 1))
    column = int(np.clip(x // p.step, 0, p.values.shape[1] - 1))
    return p.blocks[row], int(p.channel[row, column])


def score_table(scores: ImportanceScores, plan: PruningPlan | None = None) -> dict[str, np.ndarray]:
    """Every channel as columns: component, block (-1: residual), channel, score, stderr, rank, kept."""
    parts = []
    for component in scores.shape.components:
        places = [group.place for group in scores.shape.groups_of(component)]
        part = component_table(scores, component, plan, places)
        parts.append({"component": np.full(len(part["block"]), component), **part})
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


_logs: Cache[tuple[np.ndarray, np.ndarray, float]] = Cache(64)
_rankings: Cache[np.ndarray] = Cache(64)


def component_rows(scores: ImportanceScores, component: Component, blocks: Sequence[int] | None = None) -> np.ndarray:
    """Scores of a component, (rows, channels): a row a block, of the residual a row a stage (one, without stages).

    Rows of unequal widths are filled up with NaN.
    """
    shape = scores.shape
    places = [group.place for group in shape.groups_of(component)] if blocks is None else blocks
    rows = [scores.values[shape.key_of(component, place)] for place in places]
    width = max(map(len, rows))
    return np.stack([np.pad(row.astype(float), (0, width - len(row)), constant_values=np.nan) for row in rows])


def logs_of(
    scores: ImportanceScores, component: Component, blocks: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray, float]:
    """log10 of the scores and which of them there are, (R, C) each, and the least score above zero."""

    def make() -> tuple[np.ndarray, np.ndarray, float]:
        raw = component_rows(scores, component, blocks)
        known, positive = ~np.isnan(raw), raw[raw > 0]
        floor = float(positive.min()) if positive.size else 1e-12
        return np.log10(np.maximum(raw, floor, where=known, out=np.full_like(raw, np.nan))), known, floor

    return _logs.get((scores.digest, component, blocks), make)


def ranking_of(scores: ImportanceScores, component: Component, blocks: tuple[int, ...], groups: int) -> np.ndarray:
    """Channels of every row, (R, C), the most important first inside each of `groups` equal parts."""

    def make() -> np.ndarray:
        raw = component_rows(scores, component, blocks)
        R, C = raw.shape
        ranking = np.argsort(-raw.reshape(R, groups, C // groups), axis=-1, kind="stable")
        return (ranking + (np.arange(groups) * (C // groups))[None, :, None]).reshape(R, C)

    return _rankings.get((scores.digest, component, blocks, groups), make)
