"""The identity of a process: a pid alone may be reused, a pid with its start and the machine's boot may not."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import psutil


@cache
def boot_id() -> str:
    """An id of this boot of this machine."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return str(int(psutil.boot_time()))


def start_of(pid: int) -> int | None:
    """Start of a process in clock ticks after boot (untouched by changes of the clock); None where it is not alive."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return None if Path("/proc/self/stat").exists() else _start_without_proc(pid)
    fields = stat[stat.rindex(b")") + 2 :].split()  # the name, in brackets, may hold spaces
    return None if fields[0] in (b"Z", b"X") else int(fields[19])


def _start_without_proc(pid: int) -> int | None:
    try:
        return int(psutil.Process(pid).create_time() * 100)
    except psutil.Error:
        return None


@dataclass(frozen=True)
class ProcessIdentity:
    """A process, named so that no other is ever mistaken for it."""

    pid: int
    started: int
    boot: str

    @classmethod
    def of(cls, pid: int) -> ProcessIdentity | None:
        started = start_of(pid)
        return None if started is None else cls(pid, started, boot_id())

    @property
    def is_alive(self) -> bool:
        return self.boot == boot_id() and start_of(self.pid) == self.started

    def signal(self, number: signal.Signals) -> None:
        """Send to the process's whole group where it leads one, else to it alone; nothing where it is gone."""
        if not self.is_alive:
            return
        with suppress(ProcessLookupError, PermissionError):
            if os.getpgid(self.pid) == self.pid:
                os.killpg(self.pid, number)
            else:
                os.kill(self.pid, number)
