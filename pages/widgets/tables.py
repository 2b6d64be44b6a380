"""Examples: a row of images, each with a line or two under it, all of one height; or a table of passages."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

import numpy as np
import streamlit as st

from pages.services import evaluation
from pages.services.open_model import OpenModel

if TYPE_CHECKING:
    from pages.services.removal import Effect


@dataclass(frozen=True)
class Tile:
    """An image (data URI), what a screen reader says of it, and the lines under it."""

    picture: str
    alt: str
    lines: tuple[str, ...]


def gallery(tiles: Iterable[Tile], columns: int = 8) -> None:
    cells = "".join(
        f'<figure class="tile"><img src="{tile.picture}" alt="{escape(tile.alt)}"/><figcaption>'
        + "".join(f"<span>{escape(line)}</span>" for line in tile.lines)
        + "</figcaption></figure>"
        for tile in tiles
    )
    st.html(f'<div class="gallery" style="--columns: {columns}">{cells}</div>')


def table(
    head: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    caption: str = "",
    row_heads: bool = False,
    bold: int | None = None,
) -> None:
    """Draw a table of text; `row_heads` makes the first cell of each row its heading, `bold` sets one row apart."""
    lines = [_row([_cell(name, "th", "col") for name in head])] if head else []
    for number, row in enumerate(rows):
        cells = [_cell(text, "td", bold=number == bold) for text in row]
        if row_heads:
            cells[0] = _cell(row[0], "th", "row")
        lines.append(_row(cells))
    top = f"<caption>{escape(caption)}</caption>" if caption else ""
    st.html(f'<div class="scrolls"><table class="plain">{top}{"".join(lines)}</table></div>')


def _row(cells: Sequence[str]) -> str:
    return f"<tr>{''.join(cells)}</tr>"


def _cell(text: str, tag: str, scope: str = "", *, bold: bool = False) -> str:
    content = f"<b>{escape(text)}</b>" if bold else escape(text)
    return f"<{tag} scope='{scope}'>{content}</{tag}>" if scope else f"<{tag}>{content}</{tag}>"


SHOWN = 8


def examples(model: OpenModel, effect: Effect, *, columns: int, only: list[int] | None = None) -> None:
    """The most affected images or tokens, or those in `only`, before → after."""
    if model.task.has_pictures:
        gallery(tiles(model, effect, only=only), columns=columns)
    else:
        passages(model, effect, only=only)


def passages(model: OpenModel, effect: Effect, count: int = SHOWN, only: list[int] | None = None) -> None:
    """Where in the text: what went before, the token that follows, and the likeliest one before → after."""
    from upvit_core.data.text import TokenSet

    data = model.images("val")
    assert isinstance(data, TokenSet)
    rows = []
    for i in only or np.argsort(-effect.kl, kind="stable")[:count]:
        block, place = divmod(int(effect.indices[i]), model.shape.answers)
        told = data.passage(block, place)
        was, now = int(effect.before[i].argmax()), int(effect.after[i].argmax())
        rows.append((
            f"… {told}", effect.names[effect.labels[i]], f"{effect.names[was]} {effect.before[i, was]:.0%}",
            f"{effect.names[now]} {effect.after[i, now]:.0%}", f"{effect.kl[i]:.2g}",
        ))  # fmt: skip
    table(("after", "comes", "it said", "now it says", "KL, nats"), rows)


def tiles(model: OpenModel, effect: Effect, count: int = SHOWN, only: list[int] | None = None) -> list[Tile]:
    """The most affected images, or those in `only`, before → after."""
    data = model.images("val")
    found = []
    for i in only or np.argsort(-effect.kl, kind="stable")[:count]:
        was, now = int(effect.before[i].argmax()), int(effect.after[i].argmax())
        first = f"{effect.names[was]} {effect.before[i, was]:.0%}"
        then = f"→ {effect.names[now]} {effect.after[i, now]:.0%}"
        picture = evaluation.data_uri(data.image(int(effect.indices[i])))
        found.append(
            Tile(picture, f"{effect.names[effect.labels[i]]}: {first} {then}", (first, then, f"KL {effect.kl[i]:.2g}"))
        )
    return found
