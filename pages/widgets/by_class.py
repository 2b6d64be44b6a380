"""The losses of a thinner model, of a plan or a run, class by class."""

from collections.abc import Iterable, Sequence

import streamlit as st

from pages.widgets.tables import Tile, gallery
from upvit_core.records.by_class import ByClass, class_name
from upvit_core.tables import html_table

ROWS, LONGEST_NAME = 5, 60
FEW_IMAGES = 10  # per class: with fewer, chance decides much


def draw(found: ByClass, names: Sequence[str], tiles: Iterable[Tile]) -> None:
    """Draw the classes that lose most, the new wrong answers, and images whose answer changed."""

    def name(number: int) -> str:
        full = class_name(names, number)
        return full if len(full) <= LONGEST_NAME else f"{full[: LONGEST_NAME - 1]}…"

    each = found.images / max(len(found.classes), 1)
    said = (
        f"{found.images:,} images of {len(found.classes):,} classes: {len(found.lost):,} right answers become wrong, "
        f"{len(found.won):,} wrong ones right."
    )
    if each < FEW_IMAGES:
        said += f" That is {each:.1f} images per class, too few to judge a single class."
    st.html(f'<p class="quiet">{said}</p>')
    classes = [
        (name(c.label), f"{100 * c.before / c.images:.1f}\u00a0%", f"{100 * c.after / c.images:.1f}\u00a0%",
         f"{c.points:+.1f}".replace("-", "−"), f"{c.images:,}")
        for c in found.classes if c.after < c.before
    ]  # fmt: skip
    pairs = [(name(c.before), name(c.after), f"{c.images:,}") for c in found.confusions]
    tables = (
        (("Class", "original", "now", "points", "images"), classes, "Classes that lose most right answers"),
        (("Was called", "is called", "images"), pairs, "New wrong answers"),
    )
    content = "".join(
        html_table(rows[:ROWS], head, caption=f"{caption}{'' if rows else ': none'}", css="plain")
        for head, rows, caption in tables
    )
    st.html(f'<div class="by-class">{content}</div>')
    if shown := tuple(tiles):
        gallery(shown, columns=6)
