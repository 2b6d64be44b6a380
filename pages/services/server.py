"""Settings of the server's process, made when the first page is drawn."""

import os
import resource
from contextlib import suppress
from functools import cache, wraps

from streamlit import config
from streamlit.proto.ClientState_pb2 import ClientState
from streamlit.runtime.app_session import AppSession
from streamlit.runtime.scriptrunner.script_runner import ScriptRunner
from streamlit.runtime.scriptrunner_utils.script_requests import RerunData

from pages.services import host
from upvit_core.errors import LimitError
from upvit_core.limits import Limits

SHARED_UPLOAD_MB = 500
MOST_FILES = 10_240  # of macOS, whatever its hard limit says


@cache
def prepare() -> None:
    """Allow as many open files as the system does, and refuse what a browser uploads where the host wants no uploads.

    Every open page holds three files or so, until two minutes after it is closed (`disconnectedSessionTTL`).
    """
    ignore_late_timers()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_FILES if hard == resource.RLIM_INFINITY else hard
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    with suppress(LimitError):  # each page tells it
        found = Limits.of(os.environ)
        shared = host.is_shared(found)
        if shared:
            print(f"  Host code: {host.CODE} (to be entered on Workshop, under Host)", flush=True)
        if found.uploads is False or (shared and not found.uploads):
            # Streamlit 1.67 asks for it at every upload; `st.set_option` leaves settings of the server alone.
            config.set_option("server.maxUploadSize", 0)
        elif shared:
            config.set_option("server.maxUploadSize", SHARED_UPLOAD_MB)


def ignore_late_timers() -> None:
    """Ignore requests from a timer (`run_every`) of a page that is no longer open.

    Streamlit 1.67 serves them as the page before, so the browser empties the new page and goes blank. Timers ask again
    by themselves, so nothing is lost.
    """
    run, ask = ScriptRunner._run_script, AppSession.request_rerun

    @wraps(run)
    def run_script(self: ScriptRunner, rerun_data: RerunData) -> None:
        page = self._get_script_run_ctx().page_script_hash  # of the run before, in the same thread
        if not rerun_data.is_auto_rerun or page in ("", rerun_data.page_script_hash):
            run(self, rerun_data)

    @wraps(ask)
    def request_rerun(self: AppSession, client_state: ClientState | None) -> None:
        page = self._client_state.page_script_hash
        if client_state is None or not client_state.is_auto_rerun or client_state.page_script_hash == page:
            ask(self, client_state)

    ScriptRunner._run_script, AppSession.request_rerun = run_script, request_rerun  # type: ignore[method-assign]
