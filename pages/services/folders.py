"""Folders that the app writes to: under $UPVIT_HOME, else the user's cache; runs in `runs/` of where it was started."""

import os
import re
import threading
import time
import weakref
from pathlib import Path

from pages.services import host
from pages.services.session import session
from upvit_core.errors import LimitError
from upvit_core.limits import Limits
from upvit_core.records.source import Source
from upvit_core.runs.store import RunStore

UPLOAD_DAYS, UPLOAD_BYTES = 7, 8 << 30
_keeping = threading.Lock()


def home() -> Path:
    return Path(os.environ.get("UPVIT_HOME") or Path.home() / ".cache" / "upvit-studio").expanduser()


def _made(name: str) -> Path:
    folder = home() / name
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def uploads() -> Path:
    return _made("uploads")


def keep_upload(name: str, content: memoryview) -> Path:
    """The path of an upload, written there unless it is there; those of a week ago go, and the oldest when it is full.

    Raises LimitError where it is too large for all of them together.
    """
    if content.nbytes > UPLOAD_BYTES:
        raise LimitError(f"An upload has at most {UPLOAD_BYTES >> 30} GB; open a larger file by its path.")
    path = uploads() / re.sub(r"[^\w.-]+", "-", name)
    with _keeping:
        others = {other: other.stat() for other in uploads().iterdir() if other != path}
        used, oldest = content.nbytes, time.time() - 86400 * UPLOAD_DAYS
        for other, status in sorted(others.items(), key=lambda item: item[1].st_mtime, reverse=True):
            used += status.st_size
            if used > UPLOAD_BYTES or status.st_mtime < oldest:
                other.unlink()
        if path.exists():
            os.utime(path)
        else:
            temporary = path.with_suffix(".part")
            temporary.write_bytes(content)
            temporary.replace(path)
    _leaves_with_session(path)
    return path


def _leaves_with_session(path: Path) -> None:
    """An upload goes when its session ends, if others reach the studio, unless a run is made of it."""
    now = session()
    if host.is_shared(Limits.of(os.environ)) and not now.uploads:
        weakref.finalize(now, _drop, now.uploads, runs())
    if str(path) not in now.uploads:
        now.uploads.append(str(path))


def _drop(paths: list[str], runs: Path) -> None:
    specs = [s.spec for s in RunStore(runs).list() if s.spec is not None]
    needed = {Source.parse(str(place)).path for spec in specs for place in (spec.teacher, spec.student) if place}
    for path in paths:
        if path not in needed:
            Path(path).unlink(missing_ok=True)


def scores() -> Path:
    return _made("scores")


def looks() -> Path:
    return _made("looks")


def pruned() -> Path:
    return _made("pruned")


def plans() -> Path:
    return _made("plans")


def workshop() -> Path:
    return _made("workshop")


def runs() -> Path:
    """The folder of runs: $UPVIT_RUNS, else `runs`, as on the command line."""
    return Path(os.environ.get("UPVIT_RUNS") or "runs").expanduser()
