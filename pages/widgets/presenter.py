"""The presenter's view: larger type, lines and marks, nothing around the lesson; for the back of the room."""

from collections.abc import Iterator
from contextlib import contextmanager

import streamlit as st

from pages.services.session import session

SWITCH = "presenter-switch"
LARGER = 1.3
STYLE = """<style>
:root { font-size: 21px !important; }
.stMainBlockContainer { max-width: 1900px; padding-top: 1.2rem !important; }
[data-testid="stHeader"], .strip, .st-key-strip .stAlert, .stMainBlockContainer h1, p.lead, [class*="-csv"],
[data-testid="stWidgetLabel"] [data-testid="stTooltipIcon"] { display: none !important; }
.st-key-strip { height: 1.6rem; margin: 0 !important; opacity: 0.8; }
.lesson, .lesson p { font-size: 1.36rem !important; line-height: 1.4; }
[data-testid="stSlider"] [role="slider"] { transform: scale(1.5); }
</style>"""
KEYS = """<script>
window.upvitKeys ??= document.addEventListener("keydown", ({ key, target }) => {
  if (target.closest("input, textarea, [role=slider], [role=radio], [role=combobox], .plot")) return;
  if (key === "Escape") document.querySelector(".st-key-presenter-switch input:checked")?.click();
  // The choice of a step changes at once, also while the last one is still drawn, so no press is lost.
  const steps = [...document.querySelectorAll(".st-key-step [role=radio]")];
  const now = steps.findIndex((step) => step.ariaChecked === "true");
  steps[now + { ArrowRight: 1, ArrowLeft: -1 }[key]]?.click();
}) ?? true;
</script>"""


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

    text = "One idea a screen, in type for the back of a room; arrow keys turn pages, Escape ends it."
    st.toggle("Presenter", key=SWITCH, on_change=switched, help=text)
    if on():
        st.query_params["presenter"] = "on"
        st.html(STYLE)
        st.html(KEYS, unsafe_allow_javascript=True)
    elif "presenter" in st.query_params:
        del st.query_params["presenter"]


@contextmanager
def folded(label: str) -> Iterator[None]:
    """Fold controls that a presenter seldom needs away while presenting."""
    with st.expander(label, icon=":material/tune:") if on() else st.container():
        yield
