"""Settings of the server's process, made when the first page is drawn."""

import resource
from contextlib import suppress
from functools import cache

from streamlit import config

from pages.services import limits
from upvit_core.errors import LimitError

MOST_FILES = 10_240  # of macOS, whatever its hard limit says


@cache
def prepare() -> None:
    """Allow as many open files as the system does, and refuse what a browser uploads where the host wants no uploads.

    Every open page holds three files or so, until two minutes after it is closed (`disconnectedSessionTTL`).
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_FILES if hard == resource.RLIM_INFINITY else hard
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    with suppress(LimitError):  # each page tells it
        if not limits.limits().uploads:
            # Streamlit 1.67 asks for it at every upload; `st.set_option` leaves settings of the server alone.
            config.set_option("server.maxUploadSize", 0)
