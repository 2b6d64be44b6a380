"""Tables of text, and examples: a row of images with lines under them, or a table of passages."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

import numpy as np
import streamlit as st

from pages.services import evaluation
from pages.services.open_model import OpenModel
from upvit_core import units
from upvit_core.tables import html_table

if TYPE_CHECKING:
    from pages.services.removal import Effect


SHOWN = 8
SMALL = 48  # pixels: a smaller image is enlarged as it is, a larger one smoothly


@dataclass(frozen=True)
class Tile:
    """An image (data URI), its alternative text, and the lines under it."""

    picture: str
    alt: str
    lines: tuple[str, ...]


def image_tag(picture: str, alt: str) -> str:
    """The tag of a PNG that is given as a data URI."""
    width = int.from_bytes(base64.b64decode(picture.partition(",")[2][:32])[16:20], "big")
    kind = "smooth" if width >= SMALL else "crisp"
    return f'<img src="{picture}" alt="{escape(alt)}" class="{kind}"/>'


def breakable(text: str) -> str:
    """A text for HTML that may break after an underscore, as names of folders have."""
    return escape(text).replace("_", "_<wbr>")


def gallery(tiles: Iterable[Tile], columns: int = 8) -> None:
    cells = "".join(
        f'<figure class="tile">{image_tag(tile.picture, tile.alt)}<figcaption>'
        + "".join(f"<span>{breakable(line)}</span>" for line in tile.lines)
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
    content = html_table(rows, head, caption=caption, row_heads=row_heads, bold=bold, css="plain")
    st.html(f'<div class="scrolls">{content}</div>')


def examples(model: OpenModel, effect: Effect, *, columns: int, only: list[int] | None = None) -> None:
    """Draw the most affected images or tokens, or those in `only`, before → after."""
    chosen = only or list(np.argsort(-effect.kl, kind="stable")[:SHOWN])
    if model.task.has_pictures:
        gallery(effect_tiles(model, effect, chosen), columns=columns)
    else:
        table(("after", "comes", "it said", "now it says", "KL, nats"), _passages(model, effect, chosen))


def _likeliest(effect: Effect, number: int) -> list[str]:
    """The likeliest class with its probability, before and after."""
    if len(effect.names) < 2:
        return ["", ""]
    rows = (effect.before[number], effect.after[number])
    return [f"{effect.names[int(row.argmax())]} {units.percent(row.max())}" for row in rows]


def _passages(model: OpenModel, effect: Effect, chosen: Sequence[int]) -> Iterator[tuple[str, ...]]:
    """The text before each token, the token, and the likeliest one before and after."""
    from upvit_core.data.text import TokenSet

    data = model.images("val")
    assert isinstance(data, TokenSet)
    for i in chosen:
        text = data.passage(*divmod(int(effect.indices[i]), model.shape.answers))
        yield f"… {text}", effect.answers[effect.labels[i]], *_likeliest(effect, i), f"{effect.kl[i]:.2g}"


def effect_tiles(model: OpenModel, effect: Effect, chosen: Sequence[int]) -> Iterator[Tile]:
    """Images with their answers before → after the change."""
    data = model.images("val")
    for i in chosen:
        before, after = _likeliest(effect, i)
        picture = evaluation.data_uri(data.image(int(effect.indices[i])))
        told = (before, f"→ {after}") if before else ()
        alt = f"{effect.answers[effect.labels[i]]}: {before} → {after}" if before else "an image"
        yield Tile(picture, alt, (*told, f"KL {effect.kl[i]:.2g}"))


def changed_tiles(examples: Iterable[evaluation.ChangedAnswer]) -> Iterator[Tile]:
    """Images whose answer a plan changes, with both answers."""
    for c in examples:
        lines = f"{c.before}\u00a0→", f"{'✓' if c.now_right else '✗'} {c.after}"
        yield Tile(c.shown, f"{c.label}: {c.before}, now {c.after}", lines)
