"""The choice of the device on which a session's jobs compute."""

import streamlit as st

from pages.services import compute
from pages.services.session import session
from pages.widgets.plain import plain


def compute_box() -> None:
    """Draw the choice where the machine has several devices."""
    labels = {found.name: found.label for found in compute.choices()}
    if len(labels) < 2:
        return
    names = [compute.AUTO, *labels]
    labels[compute.AUTO] = "the freest GPU"
    session().device = st.selectbox(
        "Compute on",
        names,
        index=names.index(session().device) if session().device in names else 0,
        format_func=lambda name: plain(labels[name]),
        key="device",
        help="Scores, cuts, repairs, previews and maps of this session; runs choose where they start.",
    )
