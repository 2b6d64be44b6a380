"""The presenter's view: larger type, lines and marks, controls folded; for the back of the room."""

from collections.abc import Iterator
from contextlib import contextmanager

import streamlit as st

from pages.services.session import session

SWITCH = "presenter-switch"
LARGER = 1.3
STYLE = """<style>
:root { font-size: 20px !important; }
.stMainBlockContainer { max-width: 1900px; }
[class*="-csv"], .terms, [data-testid="stWidgetLabel"] [data-testid="stTooltipIcon"] { display: none !important; }
[data-testid="stSlider"] [role="slider"] { transform: scale(1.5); }
</style>"""


def on() -> bool:
    """True if this browser session presents; the link carries it too."""
    now = session()
    if now.presenting is None:
        now.presenting = st.query_params.get("presenter") == "on"
    return now.presenting


def toggle() -> None:
    """Draw the switch in the page's head; it holds for every page."""
    st.session_state[SWITCH] = on()

    def switched() -> None:
        session().presenting = bool(st.session_state[SWITCH])

    text = "Larger type, lines and marks, and controls folded away: readable from the back of a room."
    st.toggle("Presenter", key=SWITCH, on_change=switched, help=text)
    if on():
        st.query_params["presenter"] = "on"
        st.html(STYLE)
    elif "presenter" in st.query_params:
        del st.query_params["presenter"]


@contextmanager
def folded(label: str) -> Iterator[None]:
    """Fold controls that a presenter seldom needs away while presenting."""
    with st.expander(label, icon=":material/tune:") if on() else st.container():
        yield
