"""Examples: a row of images, each with a line or two under it, all of one height; or a table of passages."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np
import streamlit as st

from pages.services import evaluation
from pages.services.open_model import OpenModel
from pages.services.removal import Effect
from upvit_core.records.task import task_of

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


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    top = "".join(f"<th scope='col'>{escape(name)}</th>" for name in head)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    st.html(f'<div class="scrolls"><table class="plain"><tr>{top}</tr>{body}</table></div>')


SHOWN = 8


def examples(model: OpenModel, effect: Effect, spec: str, *, columns: int, only: list[int] | None = None) -> None:
    """The most affected images or tokens, or those in `only`, before → after."""
    if task_of(model.shape).has_pictures:
        gallery(tiles(model, effect, spec, only=only), columns=columns)
    else:
        passages(model, effect, spec, only=only)


def passages(
    model: OpenModel, effect: Effect, spec: str, count: int = SHOWN, only: list[int] | None = None
) -> None:  # fmt: skip
    """Where in the text: what went before, the token that follows, and the likeliest one before → after."""
    data: Any = evaluation.images(model, spec, "val")
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


def tiles(model: OpenModel, effect: Effect, spec: str, count: int = SHOWN, only: list[int] | None = None) -> list[Tile]:
    """The most affected images, or those in `only`, before → after."""
    data = evaluation.images(model, spec, "val")
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
