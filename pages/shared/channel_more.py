"""More on one channel: what every criterion says of it, its neighbours by score, classes, and where its head looks."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

import numpy as np
import streamlit as st

from pages.shared import charts, scoring, whatif, words
from pages.shared.opened import Opened
from upvit_core.errors import UPViTError
from upvit_core.figures.picture import kept_mask, member_word
from upvit_core.figures.removal import attention_pair, by_class
from upvit_core.importance.scores import ImportanceScores
from upvit_core.models.judge import Judge, judge_of
from upvit_core.models.shape import Component

if TYPE_CHECKING:
    from pages.shared.removal import Effect

AROUND = 4


def _table(caption: str, head: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    top = "".join(f"<th scope='col'>{escape(name)}</th>" for name in head)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    st.html(
        f'<div class="scrolls"><table class="plain"><caption>{escape(caption)}</caption><tr>{top}</tr>{body}</table>'
        "</div>"
    )


def by_criterion(model: Opened, component: Component, block: int, number: int, group: np.ndarray) -> None:
    """Score, place and fate of the channel by every record of scores there is, at the ratios of the sliders."""
    now, key = whatif.current(model.shape), model.shape.key_of(component, block)
    rows = []
    for record in scoring.records(model).values():
        if record.basis != "channels":
            continue
        values, errors = record.values[key], record.stderr.get(key)
        rank = int((values[group] > values[number]).sum()) + 1
        try:
            fate = "kept" if kept_mask(now.plan(record), record, component, block)[number] else "removed"
        except UPViTError:
            fate = "—"
        error = f" ± {words.figure(errors[number], 2)}" if errors is not None else ""
        told = (
            f"{record.criterion}, {record.images:,} {judge_of(record.shape).items}"
            if record.images
            else record.criterion
        )
        rows.append((escape(told), f"{words.figure(values[number])}{error}", f"{rank} of {len(group)}", fate))
    _table("By criterion, at the ratios set", ("Criterion", "Score", "Place", "In its plan"), rows)


def neighbours(scores: ImportanceScores, key: str, group: np.ndarray, kept: np.ndarray, number: int) -> None:
    """The channels next to it in the ranking."""
    values, errors = scores.values[key], scores.stderr.get(key)
    ranked = group[np.argsort(-values[group], kind="stable")]
    at = int(np.flatnonzero(ranked == number)[0])
    rows = []
    for place in range(max(0, at - AROUND), min(len(ranked), at + AROUND + 1)):
        channel = int(ranked[place])
        error = f" ± {words.figure(errors[channel], 2)}" if errors is not None else ""
        fate = "kept" if kept[channel] else "removed"
        cells = (str(place + 1), str(channel), f"{words.figure(values[channel])}{error}", fate)
        rows.append(tuple(f"<b>{cell}</b>" for cell in cells) if channel == number else cells)
    component: Component = key.partition(".")[0]  # type: ignore[assignment]
    what = member_word(scores, component).capitalize()
    _table("Neighbours by score", ("Place", what, "Score, nats", "In this plan"), rows)


def show(effect: Effect, component: Component, judge: Judge) -> None:
    """Classes, and for attention the maps of the most affected images."""
    theme = charts.theme()
    charts.show(
        by_class(effect.names, effect.labels, effect.kl, effect.changed, component, theme, judge=judge), "by-class"
    )
    if effect.maps is None:
        return
    count = len(effect.maps)
    chosen = st.slider("Image, the most affected first", 1, count, 1, key="glass-map") if count > 1 else 1
    before, after = effect.maps[chosen - 1]
    charts.show(attention_pair(before, after, theme), "attention-maps")
