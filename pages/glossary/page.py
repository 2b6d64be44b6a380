"""Glossary: each term of the pages in plain words and exactly, with the page that shows it."""

from html import escape

import streamlit as st

from pages.widgets import frame
from pages.widgets.terms import TERMS

TITLES = {"model": "Model", "importance": "Importance", "tradeoff": "Trade-off", "runs": "Runs", "method": "Method"}
TO_TERM = """<script>
const place = document.getElementById(decodeURIComponent(window.location.hash.slice(1)));
if (place) { place.scrollIntoView({block: "center"}); place.focus(); }
</script>"""

with frame.page("Glossary", "Every term of these pages: in plain words, exactly, and where it is shown."):
    frame.current()
    rows = []
    for term in sorted(TERMS, key=lambda term: term.name.casefold()):
        page = term.page.removeprefix("pages/").removesuffix("/page.py")
        where = f'<a href="{page}">{TITLES[page]}</a>'
        rows.append(
            f'<dt id="term-{term.key}" tabindex="-1">{escape(term.name)}</dt><dd>{escape(term.plain)}'
            f'<span class="exact">{escape(term.exact)}</span><span class="exact">Shown on {where}.</span></dd>'
        )
    st.html(f'<dl class="glossary">{"".join(rows)}</dl>')
    st.html(TO_TERM, unsafe_allow_javascript=True)
