"""The host of a studio: who it is, and what it alone may do where others can reach the studio.

A studio is *shared* where the host says so (`UPVIT_HOST=on`) or binds it to another address than loopback. Then the
host is whoever has entered the code that the server prints. Alone, everyone at this machine is the host, but for what
comes through a proxy or tunnel that says whom it forwards.
"""

import ipaddress
import secrets
import socket
import threading
import time
from contextlib import suppress

import streamlit as st
from streamlit.runtime.scriptrunner import get_script_run_ctx

from pages.services.session import session
from upvit_core.errors import LimitError
from upvit_core.files import digest
from upvit_core.limits import Limits

LOOPBACK = ("localhost", "127.0.0.1", "::1")
FORWARDED = ("X-Forwarded-For", "Forwarded", "X-Real-Ip")
CODE = f"{secrets.token_hex(2)}-{secrets.token_hex(2)}-{secrets.token_hex(2)}"
WRONG_SECONDS = 1.0
_trying = threading.Lock()


def is_shared(limits: Limits) -> bool:
    bound = st.get_option("server.address") not in LOOPBACK
    return bound if limits.host is None else limits.host


def is_host(limits: Limits) -> bool:
    """True in a session of the host; False in a thread without one."""
    if get_script_run_ctx(suppress_warning=True) is None:
        return False
    if session().unlocked or is_shared(limits):
        return session().unlocked
    headers = st.context.headers
    return _address() in ("", *LOOPBACK) and not any(name in headers for name in FORWARDED)


def unlock(code: str) -> bool:
    """Make this session the host's where the code is right; one wrong try a second, for all together."""
    if secrets.compare_digest(code.strip().encode(), CODE.encode()):
        session().unlocked = True
        return True
    with _trying:
        time.sleep(WRONG_SECONDS)
    return False


def _address() -> str:
    """The browser's address; empty where there is no browser, as in tests of a page."""
    found = st.context.ip_address
    return found if isinstance(found, str) else ""


def name_owner(limits: Limits) -> None:
    """One owner of runs an address, if others reach the studio: whoever reloads stays the same."""
    if _address() and (is_shared(limits) or not is_host(limits)):
        session().owner = digest(_address(), 12)


def may_steer(owner: str, limits: Limits) -> bool:
    """True if this session may stop, resume, rename or delete the runs of an owner."""
    return is_host(limits) or owner == session().owner


def check_name(limits: Limits) -> None:
    """Raises LimitError where the browser calls this server by a name that is not its own.

    A page elsewhere may make its own name lead to this machine; an address cannot be made to.
    """
    asked = st.context.headers.get("Host", "")
    name = asked.rsplit(":", 1)[0].strip("[]").lower() if asked.count(":") < 2 or "]" in asked else asked
    with suppress(ValueError):
        ipaddress.ip_address(name)
        return
    known = {"", *LOOPBACK, socket.gethostname().lower(), str(st.get_option("server.address") or "").lower()}
    if name not in known and name not in limits.host_names:
        raise LimitError(f"This studio does not answer to the name {name[:80]}; UPVIT_HOST_NAMES names those it has.")
