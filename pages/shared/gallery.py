"""Examples: a row of images, each with a line or two under it, all of one height; or a table of passages."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

import streamlit as st


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


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    top = "".join(f"<th scope='col'>{escape(name)}</th>" for name in head)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    st.html(f'<div class="scrolls"><table class="plain"><tr>{top}</tr>{body}</table></div>')
