"""Tells the end of long work on every page: a toast, a link, the tab's title, and a notification where allowed."""

from contextlib import suppress
from pathlib import Path

import streamlit as st
from streamlit.errors import StreamlitAPIException

from pages.services import folders, news
from pages.services.session import session
from pages.widgets.plain import plain
from upvit_core.runs.store import RunStore

EVERY = 3.0
ICON = ":material/notifications:"
PATHS = {
    "Importance": "pages/importance/page.py",
    "Trade-off": "pages/tradeoff/page.py",
    news.RUNS: "pages/runs/page.py",
}
CSS = """.tell { all: unset; cursor: pointer; font-size: 0.85rem; text-decoration: underline dotted; }
.tell { position: fixed; top: 1.2rem; right: 1.4rem; z-index: 1000000; } /* fixed, so that nothing moves */
.tell[hidden] { display: none; }
.tell:focus-visible { outline: 2px solid var(--st-primary-color); }"""
_tab = st.components.v2.component(
    "tab",
    html='<button type="button" class="tell" hidden>Notify me when it ends</button>',
    css=CSS,
    js=Path(__file__).with_name("tab.js").read_text(encoding="utf-8"),
    isolate_styles=False,
)


def follow(page: str) -> None:
    """Draw what has ended, and keep the tab's title, by itself while something goes on."""
    store = RunStore(folders.runs())
    news.seen(page)

    def look() -> None:
        runs = store.list()
        over = news.look(runs)
        for end in over:
            st.toast(plain(end.line), icon=":material/check_circle:" if end.well else ":material/error:")
        mine = session().part(news.News)
        news.seen(page)
        for end in mine.ended:
            with suppress(StreamlitAPIException):  # a page that runs on its own has no others
                st.page_link(PATHS.get(end.page, PATHS[news.RUNS]), label=plain(end.line), icon=ICON)
        work = list(mine.active.values())
        told = [{"key": end.key, "line": end.line} for end in over]
        _tab(key="tab", data={"title": news.tab_title(page, work), "busy": bool(work), "ended": told})

    active = bool(news.going(store.list()))
    with st.container(key="news"):
        st.fragment(look, run_every=EVERY if active else None)()
