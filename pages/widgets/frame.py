"""The frame of every page: style, title, the strip about the open model, and one sentence in place of a traceback."""

import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from html import escape
from pathlib import Path

import streamlit as st
from streamlit.delta_generator import DeltaGenerator
from streamlit.errors import StreamlitAPIException

from pages.services import block_removals, host, imports, jobs, link, open_model, scoring, slider_state
from pages.services.session import resolve, session
from pages.widgets import news, presenter, progress
from pages.widgets.plain import plain
from upvit_core import units
from upvit_core.errors import LimitError, UPViTError
from upvit_core.limits import Limits
from upvit_core.profiling.macs import count_parameters
from upvit_core.records.task import scores_words

RUNS_PAGE = "pages/runs/page.py"
KEPT_IN_LINK = ("open", "presenter", "scores", "images")
STYLE = Path(__file__).with_name("style.css")
# A server that has just started looks into pages/ before it has run app.py, and shows the first visitor of a deep link
# "Page not found" over the right page (Streamlit 1.67). That one dialog is closed. And the browser loads each kind of
# element when it first meets one, with a box of another height in its place: the page is shown once they are there.
FIRST_VISIT = """<script>
const close = () => { for (const dialog of document.querySelectorAll('[role="dialog"]'))
  if (dialog.innerText.startsWith("Page not found")) dialog.querySelector('button').click(); };
for (const wait of [0, 100, 300, 1000, 3000]) setTimeout(close, wait);
const shown = document.documentElement.classList, began = performance.now();
shown.add("settling");
let calm = 0;
const watch = () => {
  const busy = document.querySelector('[data-testid="stSkeleton"], [data-test-script-state="running"]');
  calm = busy ? 0 : calm + 1;
  if (calm > 2 || performance.now() - began > 2500) shown.remove("settling");
  else setTimeout(watch, 50);
};
watch();
</script>"""
STYLE_SECONDS = 0.2  # until a browser has the style, without which everything has other heights


class Head:
    """A page's title and the line under it, which may become others once the page knows more."""

    def __init__(self, help_text: str):
        self._slots, self._help = (st.empty(), st.empty()), help_text

    def title(self, title: str, line: str) -> None:
        self._slots[0].title(title, help=self._help or None, anchor=False)
        if line:
            self._slots[1].markdown(f'<p class="lead">{escape(line)}</p>', unsafe_allow_html=True)


@contextmanager
def page(title: str, line: str, help_text: str = "") -> Iterator[Head]:
    """Draw the page's head; an error inside is shown as one sentence, never as a traceback."""
    st.html(STYLE)
    surface = st.get_option(f"theme.{st.context.theme.type or 'light'}.backgroundColor")
    st.html(f"<style>:root {{ --st-background-color: {surface}; }}</style>")  # Streamlit sets it inside components only
    if session().page not in ("", title):
        session().asked, session().asking = {}, None
    session().page = title
    _admit()
    # Always there, so that nothing below it moves after the first run: a slider that is drawn anew elsewhere loses its
    # place in the link once the old one is cleared away (Streamlit 1.67).
    with st.container(key="not-found"):
        if not session().greeted:
            session().greeted, session().asked = True, st.query_params.to_dict()
            st.html(FIRST_VISIT, unsafe_allow_javascript=True)
            if st.runtime.exists():
                time.sleep(STYLE_SECONDS)
    with st.container(key="strip"):
        left, right = st.columns([0.8, 0.2], vertical_alignment="center")
        with left:
            place = st.empty()
            _strip(place)
            lacking = st.container(key="lacking")
        with right, st.container(horizontal=True, horizontal_alignment="right"):
            presenter.toggle()
    head = Head(help_text)
    head.title(title, line)
    try:
        yield head
    except UPViTError as error:
        job = jobs.find(open_model.loading_key(_source()))
        if session().source is None and st.query_params.get(open_model.KEY) and not (job is not None and job.error):
            session().notes.append(f"The link's model cannot be opened: {error} The demo is open instead.")
            _open_demo()
            st.rerun()
        st.error(plain(error), icon=":material/error:")
        with st.container(horizontal=True):
            if job is not None and job.error:
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
    _strip(place)
    with lacking:
        if (now := session().shown) is not None:
            if session().asked:
                link.compare(now[0])
            for sentence in link.missing(now[0]):
                st.warning(plain(sentence), icon=":material/link_off:")
        for number, note in enumerate(session().notes):
            with st.container(horizontal=True, vertical_alignment="center", key=f"note-{number}"):
                st.warning(plain(note), icon=":material/link_off:", width="stretch")
                st.button("Dismiss", key=f"dismiss {note}", on_click=_dismiss, args=(note,))
        news.follow(title)
    imports.freeze_once()


def _dismiss(note: str) -> None:
    session().notes = [other for other in session().notes if other != note]


def _admit() -> None:
    """End the script where this server is called by a foreign name; else say whose runs this session starts."""
    try:
        found = Limits.of(os.environ)
        host.check_name(found)
        host.name_owner(found)
    except LimitError as error:
        st.error(plain(error))
        st.stop()


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
    if (now := session()).shown is not None and now.shown[0].source != model.source:
        now.what_if = now.widths = None  # a plan is of one model
        now.notes.clear()
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


def go_to(page: str = RUNS_PAGE) -> None:
    """Switch to a page with the parts of the link that hold there."""
    # Without explicit parameters, switch_page refuses to drop those of moved sliders (Streamlit 1.67).
    kept = {key: st.query_params[key] for key in KEPT_IN_LINK if key in st.query_params}
    st.switch_page(page, query_params=kept)


def _open_demo() -> None:
    session().source = "demo"


def _strip(place: DeltaGenerator) -> None:
    if (now := session().shown) is None:
        place.html('<div class="strip">Nothing is open yet.</div>')
        return
    model, scores = now
    what_if = slider_state.current(model)
    plan = what_if.plan(scores or open_model.no_scores(model.shape), block_removals.records())
    parts = [
        f"<b>{escape(model.name)}</b>",
        escape(scores_words(scores)),
        f'<span title="removed of residual, attention and FFN; heads that stay">{escape(what_if.words)}</span>',
        f"<b>{units.short(count_parameters(plan.shape_after))}</b> of {units.short(count_parameters(model.shape))} "
        "parameters",
    ]
    place.html(
        '<div class="strip" role="status" aria-label="What is open">'
        + '<span class="dot">·</span>'.join(parts)
        + "</div>"
    )
