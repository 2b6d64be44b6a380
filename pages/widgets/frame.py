"""What every page shares: style, title, the strip that says what is open, and one sentence where something failed."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from html import escape
from pathlib import Path

import streamlit as st
from streamlit.errors import StreamlitAPIException

from pages.services import block_removals, imports, link, open_model, scoring, slider_state
from pages.widgets import presenter, progress, terms
from upvit_core import units
from upvit_core.errors import UPViTError
from upvit_core.profiling.macs import count_parameters
from upvit_core.records.scores import ImportanceScores
from upvit_core.records.task import IMAGES, scores_words, task_of

STYLE = Path(__file__).with_name("style.css")
# A server that has just started looks into pages/ before it has run app.py, and so tells whoever comes first by a deep
# link "Page not found", over the right page (Streamlit 1.67). That one dialog is closed.
CLOSE_NOT_FOUND = """<script>
const close = () => { for (const dialog of document.querySelectorAll('[role="dialog"]'))
  if (dialog.innerText.startsWith("Page not found")) dialog.querySelector('button').click(); };
for (const wait of [0, 100, 300, 1000, 3000]) setTimeout(close, wait);
</script>"""


@contextmanager
def page(title: str, line: str, help_text: str = "") -> Iterator[None]:
    """The page's head; whatever fails inside is told in one sentence, never as a traceback."""
    st.html(STYLE)
    # Always there, so that nothing below it moves after the first run: a slider that is drawn anew elsewhere loses its
    # place in the link once the old one is cleared away (Streamlit 1.67).
    with st.container(key="not-found"):
        if "met" not in st.session_state:
            st.session_state["met"] = True
            st.html(CLOSE_NOT_FOUND, unsafe_allow_javascript=True)
    place = st.container(key="strip")
    st.title(title, help=help_text or None, anchor=False)
    st.markdown(f'<p class="lead">{escape(line)}</p>', unsafe_allow_html=True)
    try:
        yield
    except UPViTError as error:
        st.error(str(error), icon=":material/error:")
        if st.session_state.get(open_model.KEY, "demo") != "demo" or st.query_params.get(open_model.KEY):
            st.button("Open the demo", on_click=_open_demo, icon=":material/home:")
    except Exception as error:
        logging.getLogger(__name__).exception("%s failed", title)
        st.error(
            f"Something unexpected happened ({type(error).__name__}); reload the page, and if it happens again, the "
            "server's log has the details.",
            icon=":material/error:",
        )
    if title in terms.OF_PAGE:
        now = st.session_state.get("shown")
        st.html(terms.line(terms.OF_PAGE[title], task_of(now[0].shape) if now is not None else IMAGES))
    with place:
        left, right = st.columns([0.8, 0.2], vertical_alignment="center")
        with left:
            _strip()
            if (now := st.session_state.get("shown")) is not None:
                for sentence in link.missing(now[0]):
                    st.warning(sentence, icon=":material/link_off:")
        with right, st.container(horizontal=True, horizontal_alignment="right"):
            presenter.toggle()
    imports.freeze_once()


def current() -> open_model.OpenModel:
    """What is open in this browser session; on its first visit, what the link names, else the demo. The strip shows it.

    A model that must be read with torch first is read in the background: then this shows how far that is and ends the
    script run. Raises UPViTError where it cannot be opened.
    """
    source = st.session_state.get(open_model.KEY) or st.query_params.get(open_model.KEY) or "demo"
    found = open_model.peek(source)
    if found is None:
        found = progress.wait(f"open {source}", lambda report: open_model.load(source), f"Opening {source}")
    model = open_model.remember(found)
    link.follow(model)
    st.session_state["shown"] = (model, scoring.current(model))
    return model


def awaited(sentence: str, icon: str) -> None:
    """Where something will be once it is there: a frame of about its size, and what is going to fill it."""
    with st.container(key="awaited"):
        st.info(sentence, icon=icon)


def page_link(page: str, label: str) -> None:
    """A link to another page; left out where that page is not part of the app, as when a page runs on its own."""
    with suppress(StreamlitAPIException):
        st.page_link(page, label=label, icon=":material/arrow_forward:")


def _open_demo() -> None:
    st.session_state[open_model.KEY] = "demo"


def _strip() -> None:
    now: tuple[open_model.OpenModel, ImportanceScores | None] | None = st.session_state.get("shown")
    if now is None:
        st.html('<div class="strip">Nothing is open yet.</div>')
        return
    model, scores = now
    what_if = slider_state.current(model.shape)
    plan = what_if.plan(scores or open_model.no_scores(model.shape), block_removals.records())
    parts = [
        f"<b>{escape(model.name)}</b>",
        escape(scores_words(scores)),
        f'<span title="removed of residual, attention and FFN; heads that stay">{escape(what_if.words)}</span>',
        f"<b>{units.short(count_parameters(plan.shape_after))}</b> of {units.short(count_parameters(model.shape))} "
        "parameters",
    ]
    st.html(
        '<div class="strip" role="status" aria-label="What is open">'
        + '<span class="dot">·</span>'.join(parts)
        + "</div>"
    )
