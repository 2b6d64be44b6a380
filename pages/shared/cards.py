"""Number cards: a name, a number, what it is compared with; filled mark for measured, hollow for estimated."""

from __future__ import annotations

from html import escape

import streamlit as st

MEASURED, ESTIMATED, PUBLISHED, COUNTED = "●", "○", "◇", ""


def card(name: str, value: str, note: str = "", *, mark: str = COUNTED, stale: bool = False, tip: str = "") -> None:
    """One card; `note` may be empty, the height stays."""
    label = f"{mark} {name}" if mark else name
    st.html(
        f'<div class="card{" stale" if stale else ""}" title="{escape(tip)}"><div class="name">{escape(label)}</div>'
        f'<div class="value">{escape(value)}</div><div class="note">{escape(note) or "&nbsp;"}</div></div>'
    )
