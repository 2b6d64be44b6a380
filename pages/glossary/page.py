"""Glossary: each term of the pages in plain words and exactly, searched, by the page that shows it."""

from html import escape
from itertools import groupby

import streamlit as st

from pages.widgets import frame
from pages.widgets.plain import plain
from pages.widgets.terms import PAGES, TERMS, Term, defined

SEARCH = "glossary-search"  # key of the widget, and of the link


def entry(term: Term) -> str:
    return (
        f"<div><dt>{escape(term.name)}</dt><dd>{escape(term.plain)}"
        f'<span class="exact">{defined(term)}</span></dd></div>'
    )


with frame.page("Glossary", "The words of these pages, in plain English and exactly."):
    frame.current()
    asked = st.text_input(
        "Search", key=SEARCH, bind="query-params", placeholder="head, KL, proxy…", icon=":material/search:", width=420
    )
    wanted = asked.casefold().split()
    found = [
        term
        for term in sorted(TERMS, key=lambda term: (list(PAGES).index(term.page), term.name.casefold()))
        if all(word in " ".join((term.name, *term.also, term.plain, term.exact)).casefold() for word in wanted)
    ]
    for page, terms in groupby(found, key=lambda term: term.page):
        frame.page_link(page, f"Seen on {PAGES[page]}")
        st.html(f'<dl class="glossary">{"".join(map(entry, terms))}</dl>')
    if not found:
        st.info(f"No term has {plain(asked)} in it; try a shorter word.")
