"""Number cards: a name, a number, what it is compared with; filled mark for measured, hollow for estimated."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import streamlit as st

from pages.widgets import terms

MEASURED, ESTIMATED, PUBLISHED = "●", "○", "◇"
MEANING = {MEASURED: "measured", ESTIMATED: "estimated", PUBLISHED: "published"}


@dataclass(frozen=True)
class Card:
    """`mark` says where the number comes from; counted ones have none. A stale one is pale until the new is there.

    follow: the name under which a script in the browser finds the number while a slider is dragged.
    """

    name: str
    value: str
    note: str = ""
    mark: str = ""
    stale: bool = False
    follow: str = ""


def cards(row: Sequence[Card]) -> None:
    """Cards of one height beside one another; numbers change in place."""
    cells = "".join(_cell(card) for card in row)
    st.html(f'<div class="cards" style="--columns: {len(row)}">{cells}</div>')


def _cell(card: Card) -> str:
    mark = f'<span class="mark" aria-hidden="true">{card.mark}</span> ' if card.mark else ""
    source = f'<span class="source">{MEANING[card.mark]}</span>' if card.mark else ""
    follow = f' data-follow="{card.follow}"' if card.follow else ""
    name = f"<span>{terms.linked(card.name)}</span>"
    return (
        f'<div class="card{" stale" if card.stale else ""}"{follow}><div class="name">{mark}{name}{source}</div>'
        f'<div class="value">{escape(card.value)}</div><div class="note">{escape(card.note) or "&nbsp;"}</div></div>'
    )
