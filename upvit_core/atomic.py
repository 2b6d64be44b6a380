"""Files that a crash cannot spoil: replaced as a whole, appended to line by line, or locked by the kernel."""

import fcntl
import json
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO


@contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """A path beside `path` to write to: it takes its place, synced, when the block ends well, else it goes.

    Its name is of this process and thread, so that two that write the same file do not meet.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.tmp")
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise


def write_atomically(path: Path, content: bytes) -> None:
    with replaced(path) as temporary:
        temporary.write_bytes(content)


MOST_BYTES = 256 << 20  # of one reading
_held: set[int] = set()


def _close_in_child() -> None:
    """A forked child (a data loader's process, say) must not keep a lock that its parent took."""
    for descriptor in _held:
        with suppress(OSError):
            os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_close_in_child)


def append_line(path: Path, record: dict[str, Any]) -> None:
    """Append one JSON line in one write; a torn line that a kill left behind is closed first."""
    line = json.dumps(record).encode() + b"\n"
    with path.open("ab+") as file:
        if file.tell() > 0:
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                line = b"\n" + line
        file.write(line)


def open_plain(path: Path) -> BinaryIO:
    """A file for reading, not what a link leads to. Raises OSError."""
    return os.fdopen(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK), "rb")


def read_lines(path: Path, offset: int = 0) -> tuple[list[dict[str, Any]], int]:
    """Whole JSON lines from byte `offset` on, and the offset to go on from; lines that are no record are skipped."""
    try:
        with open_plain(path) as file:
            if offset > file.seek(0, os.SEEK_END):
                offset = 0
            file.seek(offset)
            content = file.read(MOST_BYTES)
    except OSError:
        return [], 0
    whole = content[: content.rfind(b"\n") + 1]
    rows = []
    for line in whole.splitlines():
        with suppress(ValueError, RecursionError):
            row = json.loads(line)
            if isinstance(row, dict):
                rows.append(row)
    return rows, offset + len(whole)


@contextmanager
def locked(path: Path, timeout: float | None = 0.0, poll: float = 0.05) -> Iterator[bool]:
    """Hold the kernel's lock on a file while inside; yields whether it was got within `timeout` seconds (None: wait).

    The kernel releases it when the process ends, however it ends.
    """
    deadline = None if timeout is None else time.monotonic() + timeout
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    _held.add(descriptor)
    try:
        held = False
        while True:
            with suppress(BlockingIOError):
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                held = True
            if held or (deadline is not None and time.monotonic() >= deadline):
                break
            time.sleep(poll)
        yield held
    finally:
        if descriptor in _held:
            _held.discard(descriptor)
            os.close(descriptor)


def sweep_temporaries(folder: Path) -> None:
    """Remove what a killed writer left half-written; the caller holds the folder's lock."""
    for leftover in folder.glob(".*.tmp"):
        with suppress(OSError):
            leftover.unlink()
