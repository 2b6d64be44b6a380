"""The frame of every page: style, title, the strip about the open model, and one sentence in place of a traceback."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from html import escape
from pathlib import Path

import streamlit as st
from streamlit.errors import StreamlitAPIException

from pages.services import block_removals, imports, jobs, link, open_model, scoring, slider_state
from pages.services.session import resolve, session
from pages.widgets import presenter, progress, terms
from pages.widgets.plain import plain
from upvit_core import units
from upvit_core.errors import UPViTError
from upvit_core.profiling.macs import count_parameters
from upvit_core.records.task import IMAGES, scores_words

RUNS_PAGE = "pages/runs/page.py"
KEPT_IN_LINK = ("open", "presenter", "scores", "images")
STYLE = Path(__file__).with_name("style.css")
# A server that has just started looks into pages/ before it has run app.py, and shows the first visitor of a deep link
# "Page not found" over the right page (Streamlit 1.67). That one dialog is closed.
CLOSE_NOT_FOUND = """<script>
const close = () => { for (const dialog of document.querySelectorAll('[role="dialog"]'))
  if (dialog.innerText.startsWith("Page not found")) dialog.querySelector('button').click(); };
for (const wait of [0, 100, 300, 1000, 3000]) setTimeout(close, wait);
</script>"""


@contextmanager
def page(title: str, line: str, help_text: str = "") -> Iterator[None]:
    """Draw the page's head; an error inside is shown as one sentence, never as a traceback."""
    st.html(STYLE)
    # Always there, so that nothing below it moves after the first run: a slider that is drawn anew elsewhere loses its
    # place in the link once the old one is cleared away (Streamlit 1.67).
    with st.container(key="not-found"):
        if not session().greeted:
            session().greeted = True
            st.html(CLOSE_NOT_FOUND, unsafe_allow_javascript=True)
    place = st.container(key="strip")
    st.title(title, help=help_text or None, anchor=False)
    st.markdown(f'<p class="lead">{escape(line)}</p>', unsafe_allow_html=True)
    try:
        yield
    except UPViTError as error:
        st.error(plain(error), icon=":material/error:")
        with st.container(horizontal=True):
            if (job := jobs.find(open_model.loading_key(_source()))) is not None and job.error:
                st.button("Try again", on_click=jobs.restart, args=(job,), icon=":material/replay:")
            if session().source not in (None, "demo") or st.query_params.get(open_model.KEY):
                st.button("Open the demo", on_click=_open_demo, icon=":material/home:")
    except Exception as error:
        logging.getLogger(__name__).exception("%s failed", title)
        st.error(
            f"Something unexpected happened ({type(error).__name__}); reload the page, and if it happens again, the "
            "server's log has the details.",
            icon=":material/error:",
        )
    if title in terms.OF_PAGE:
        now = session().shown
        st.html(terms.glossary_line(terms.OF_PAGE[title], now[0].task if now is not None else IMAGES))
    with place:
        left, right = st.columns([0.8, 0.2], vertical_alignment="center")
        with left:
            _strip()
            if (now := session().shown) is not None:
                for sentence in link.missing(now[0]):
                    st.warning(plain(sentence), icon=":material/link_off:")
        with right, st.container(horizontal=True, horizontal_alignment="right"):
            presenter.toggle()
    imports.freeze_once()


def current() -> open_model.OpenModel:
    """The open model of this browser session; on its first visit the link's, else the demo. The strip shows it.

    A model that needs torch is loaded in the background: then this shows the progress and ends the script run. Raises
    UPViTError where it cannot be opened.
    """
    model = open_model.inspect(_source())
    if model is None:
        job = open_model.loading_job(_source())
        if job.error:
            raise UPViTError(job.error)
        model = progress.show(job)
        if model is None:
            st.stop()
    open_model.remember(model)
    link.follow(model)
    model = open_model.with_dataset(model)
    session().shown = (model, scoring.current(model))
    return model


def _source() -> str:
    """The model that this browser session, or else the link, has open."""
    return str(resolve(open_model.KEY, session().source) or "demo")


def awaited(sentence: str, icon: str) -> None:
    """Draw a frame in place of something that is not there yet, and a sentence about it."""
    with st.container(key="awaited"):
        st.info(sentence, icon=icon)


def page_link(page: str, label: str) -> None:
    """A link to another page; left out where that page is not part of the app, as when a page runs on its own."""
    with suppress(StreamlitAPIException):
        st.page_link(page, label=label, icon=":material/arrow_forward:")


def go_to_runs() -> None:
    """Switch to Runs with the parts of the link that hold there."""
    # Without explicit parameters, switch_page refuses to drop those of moved sliders (Streamlit 1.67).
    kept = {key: st.query_params[key] for key in KEPT_IN_LINK if key in st.query_params}
    st.switch_page(RUNS_PAGE, query_params=kept)


def _open_demo() -> None:
    session().source = "demo"


def _strip() -> None:
    if (now := session().shown) is None:
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
