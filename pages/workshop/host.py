"""The host's view of the workshop: address and QR code, the queue, and clearing the room."""

import socket
from urllib.parse import urlsplit

import segno
import streamlit as st

from pages.services import folders, host, jobs, limits
from pages.widgets.plain import plain
from pages.workshop.room import Room
from upvit_core import units
from upvit_core.runs.store import RunStore


def is_open() -> bool:
    """True if others can reach this server."""
    return host.is_shared(limits.limits())


def own_address() -> str:
    """The address of this page for the room; finding the machine's address sends nothing."""
    bound = st.get_option("server.address")
    name = bound if bound not in (None, "", "0.0.0.0", "::") else _lan_address()
    scheme = "https" if st.get_option("server.sslCertFile") else "http"
    base = (st.get_option("server.baseUrlPath") or "").strip("/")
    return f"{scheme}://{name}:{st.get_option('server.port')}/{base + '/' if base else ''}workshop"


def _lan_address() -> str:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        try:
            s.connect(("192.0.2.1", 9))  # a documentation address: a datagram socket only looks up the route
            return str(s.getsockname()[0])
        except OSError:
            return socket.gethostname()


def qr_picture(address: str) -> str:
    """The address as a QR code, an SVG in a data URI; dark on light in both themes, as scanners need."""
    return str(segno.make(address, error="m").svg_data_uri(scale=8, border=3, dark="#000000", light="#ffffff"))


def panel(room: Room) -> None:
    """Draw the panel for the host, and for everyone else the field that takes the host's code."""
    with st.expander("Host", icon=":material/co_present:", expanded=is_open() and limits.is_host()):
        if not limits.is_host():
            with st.form("host-code", border=False):
                code = st.text_input("Code", type="password", help="The server prints it when it starts.", width=260)
                if st.form_submit_button("Unlock"):
                    if host.unlock(code):
                        st.rerun()
                    st.error("That is not this server's code.")
            return
        left, right = st.columns([0.42, 0.58], gap="large")
        with left:
            _address()
        with right:
            _queue()
            _reset(room)


def _address() -> None:
    if not is_open():
        st.markdown("Only this machine can reach the studio now. To open it to the room, stop it and start it with")
        st.code(".venv/bin/streamlit run app.py --server.address 0.0.0.0", language=None, wrap_lines=True)
        text = "Visitors then open the demo and the folders in UPVIT_ROOTS; the code that it prints makes you the host."
        st.caption(text)
        return
    tip = "Change it if the room reaches this machine under another name."
    address = st.text_input("Address for the room", value=own_address(), key="room-address", help=tip).strip()
    if urlsplit(address).netloc:
        st.html(f'<img class="qr" src="{qr_picture(address)}" alt="QR code of the address {address}"/>')


def _queue() -> None:
    def draw() -> None:
        busy = [job for job in jobs.workers().all() if job.active]
        runs = [run for run in RunStore(folders.runs()).list() if run.state.is_active]
        lines = [f"- {plain(job.title)} · {job.state} {units.percent(job.share)}" for job in busy[:8]]
        lines += [f"- {plain(run.name)} · {run.state.state} {units.percent(run.state.progress)}" for run in runs[:8]]
        more = len(busy) + len(runs) - len(lines)
        counts = (f"{n} {word}{'s' * (n != 1)}" for n, word in ((len(busy), "measurement"), (len(runs), "run")))
        st.markdown(f"**Queue: {', '.join(counts)}**")
        st.markdown("\n".join(lines + ([f"- and {more} more"] if more else [])) or "Nothing is waiting.")

    st.fragment(draw, run_every=3.0)()


def _reset(room: Room) -> None:
    waiting = [job for job in jobs.workers().all() if job.state == "waiting"]
    with st.container(horizontal=True, vertical_alignment="bottom"):
        tip, icon = "Drops measurements that have not begun; runs go on.", ":material/clear_all:"
        if st.button("Empty the queue", icon=icon, disabled=not waiting, key="room-queue", help=tip):
            for job in waiting:
                job.stop.set()
            st.rerun()
        with st.popover("Clear the room…", icon=":material/restart_alt:"):
            st.markdown("This deletes all nicknames, ticks and results.")
            if st.button("Clear the room", type="primary", key="room-clear"):
                room.clear()
                st.rerun()
