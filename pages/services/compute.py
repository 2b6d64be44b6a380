"""The device on which a job computes: the one that the session chose, or the freest GPU that no run has.

A job holds the lease of its GPU until it ends, so that no run starts there meanwhile; jobs of this server share it. The
CPU is shared with runs, as it always was.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import streamlit as st

from upvit_core.runs.devices import Device, devices, freest_first, gpu_names, lease

AUTO = "auto"
POLL_SECONDS = 0.5


class _Leases:
    """The GPUs that jobs of this server hold, each as long as one of them uses it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._held: dict[str, tuple[ExitStack, int]] = {}

    def take(self, name: str) -> bool:
        with self._lock:
            stack, users = self._held.get(name, (ExitStack(), 0))
            if not users and not stack.enter_context(lease(name)):
                stack.close()
                return False
            self._held[name] = stack, users + 1
            return True

    def give(self, name: str) -> None:
        with self._lock:
            stack, users = self._held.pop(name)
            if users > 1:
                self._held[name] = stack, users - 1
            else:
                stack.close()


_leases = _Leases()
_here = threading.local()


@contextmanager
def job(wait: Callable[[float], None], step: Callable[[str], None]) -> Iterator[None]:
    """The work of one job: its device is chosen when it first asks for one, and given back at the end.

    wait: sleeps, and raises Cancelled once the job is to stop. step: names what the job is waiting for.
    """
    before = dict(vars(_here))
    vars(_here).update(device=None, wait=wait, step=step)
    try:
        yield
    finally:
        if _here.device not in (None, "cpu"):
            _leases.give(_here.device)
        vars(_here).clear()
        vars(_here).update(before)


@contextmanager
def paused() -> Iterator[None]:
    """Give the job's GPU back meanwhile, and wait for it again afterwards."""
    name = getattr(_here, "device", None)
    if name in (None, "cpu"):
        yield
        return
    _leases.give(name)
    _here.device = None
    yield
    device(name)


def device(chosen: str = AUTO) -> str:
    """The device of this job; the CPU outside of jobs, and for `auto` where runs have every GPU."""
    if getattr(_here, "device", None) is not None:
        return str(_here.device)
    if not hasattr(_here, "wait"):
        return "cpu"
    names = gpu_names()
    if chosen == AUTO:
        _here.device = next(filter(_leases.take, freest_first(names)), "cpu")
        if names and _here.device == "cpu":
            _here.step("runs have every GPU: on the CPU")
    elif chosen not in names:
        _here.device = "cpu"
    else:
        while not _leases.take(chosen):
            _here.step(f"waiting for {chosen}, which a run has")
            _here.wait(POLL_SECONDS)
        _here.device = chosen
    if _here.device != "cpu":
        from upvit_core.models.device import use

        use(_here.device)
    return str(_here.device)


@st.cache_data(ttl=10, show_spinner=False)
def choices() -> list[Device]:
    """The devices of this machine, GPUs first."""
    return devices()
