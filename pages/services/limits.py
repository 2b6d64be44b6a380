"""The host's limits on what a browser may ask for. Reachable from other machines, a studio reads only its own folders
unless the host names more."""

import os
from dataclasses import replace

import streamlit as st

from pages.services import folders
from upvit_core.errors import LimitError
from upvit_core.limits import Limits
from upvit_core.paths import DEMO_FOLDER
from upvit_core.runs.store import RunStore

ASSETS = DEMO_FOLDER.parent
LOOPBACK = ("localhost", "127.0.0.1", "::1")


def limits() -> Limits:
    found = Limits.of(os.environ)
    if found.roots is None and st.get_option("server.address") not in LOOPBACK:
        return replace(found, roots=())
    return found


def confine(place: str) -> None:
    """Raises LimitError where a path that came from a browser leads out of the folders that may be read."""
    limits().confine(place, (folders.home(), folders.runs(), ASSETS))


def check_room(store: RunStore, owner: str, more: int = 1) -> None:
    """Raises LimitError where a session would have more runs at a time than the host allows."""
    most = limits().runs_per_session
    if most is None:
        return
    now = sum(s.spec is not None and s.spec.owner == owner and s.state.is_active for s in store.list())
    if now + more > most:
        raise LimitError(
            f"This host allows {most} run{'s' if most > 1 else ''} at a time for each browser session; {now} of yours "
            f"{'are' if now != 1 else 'is'} not finished, and {more} more would be started."
        )
