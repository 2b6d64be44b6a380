"""An index of all run folders in SQLite (WAL), so that hundreds of runs are listed in milliseconds.

The folders are the truth. A row carries the stamp of the files it was read from and is read anew when that differs, so
the index may be deleted, torn, locked or out of date at any time: then folders are read, and it is built again. Each
machine keeps one of its own, since WAL needs memory shared by all who open the file; and each boot, so that a power
failure need not be survived (`synchronous` is off).
"""

import os
import re
import socket
import sqlite3
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from upvit_core.runs.pid import boot_id
from upvit_core.runs.spec import RunSpec, RunState

RUN_ID = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,78}[a-z0-9])?")
STAMPED = ("spec.json", "state.json", "priority", "name")
BUSY_SECONDS = 0.2
SETTLED_SECONDS = 0.1  # a file as young as this may be replaced within the same tick of the file system's clock
LAYOUT = 1
Row = tuple[str, str | None, str, int, str, int]  # stamp, spec, state, priority, problem, checksum
SCHEMA = (
    "DROP TABLE IF EXISTS runs",
    "DROP TABLE IF EXISTS about",
    "CREATE TABLE runs (id TEXT PRIMARY KEY, stamp TEXT NOT NULL, spec TEXT, state TEXT NOT NULL, "
    "priority INTEGER NOT NULL, problem TEXT NOT NULL, checksum INTEGER NOT NULL) WITHOUT ROWID",
    "CREATE TABLE about (layout INTEGER, boot TEXT)",
)


@dataclass(frozen=True)
class Entry:
    """One folder as last written: its spec without the plan's channels, its state though its worker may be gone."""

    spec: RunSpec | None
    state: RunState
    priority: int = 0
    problem: str = ""


def run_ids(root: Path) -> Iterator[str]:
    """Names of the run folders under a root, in order."""
    with suppress(OSError), os.scandir(root) as entries:
        yield from sorted(e.name for e in entries if RUN_ID.fullmatch(e.name) and e.is_dir(follow_symlinks=False))


class Index:
    """The index of one folder of runs; `read` makes the entry of a run id from its folder."""

    def __init__(self, root: Path, read: Callable[[str], Entry]):
        self.root, self.read = root, read
        self._known: dict[str, tuple[str, Entry]] = {}  # parsed already, by run id and stamp
        self.path = root / f".index-{re.sub(r'[^A-Za-z0-9-]', '-', socket.gethostname()) or 'here'}.sqlite"

    def entries(self) -> dict[str, Entry]:
        """The entry of every run, up to date with its folder, by id."""
        stamps = {run_id: _stamp(f"{self.root}/{run_id}") for run_id in run_ids(self.root)}
        known = {run_id: seen for run_id, seen in self._known.items() if stamps.get(run_id, ("",))[0] == seen[0]}
        gone = self._known.keys() - stamps.keys()
        missing = stamps.keys() - known.keys()
        rows = self._rows() if missing or gone else {}
        changed: dict[str, tuple[str, Entry]] = {}
        entries: dict[str, Entry] = {}
        for run_id, (stamp, settled) in stamps.items():
            if run_id in known:
                entries[run_id] = known[run_id][1]
                continue
            row = rows.get(run_id)
            entry = _parsed(row) if row is not None and row[0] == stamp else None
            if entry is None:
                entry = self.read(run_id)
                if settled:
                    changed[run_id] = stamp, entry
            if settled:
                known[run_id] = stamp, entry
            entries[run_id] = entry
        self._known = known
        gone = rows.keys() - entries.keys()
        if changed or gone:
            self._write(changed, gone)
        return entries

    def forget(self) -> None:
        """Delete the index; `entries` builds it again."""
        for suffix in ("", "-wal", "-shm"):
            with suppress(OSError):
                self.path.with_name(self.path.name + suffix).unlink()

    def _open(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self.path, timeout=BUSY_SECONDS, isolation_level=None)
        try:
            connection.execute("PRAGMA synchronous=OFF")
            if _about(connection) != (LAYOUT, boot_id()):
                connection.execute("PRAGMA journal_mode=WAL")
                connection.execute("BEGIN IMMEDIATE")
                if _about(connection) != (LAYOUT, boot_id()):  # no other process was quicker
                    for statement in SCHEMA:
                        connection.execute(statement)
                    connection.execute("INSERT INTO about VALUES (?, ?)", (LAYOUT, boot_id()))
                connection.execute("COMMIT")
        except BaseException:
            connection.close()
            raise
        return connection

    def _rows(self) -> dict[str, Row]:
        if not self.root.is_dir():
            return {}
        try:
            with closing(self._open()) as connection:
                return {row[0]: row[1:] for row in connection.execute("SELECT * FROM runs")}
        except sqlite3.OperationalError:  # locked, read-only, no room: the folders are read instead
            return {}
        except (sqlite3.Error, ValueError):  # torn
            self.forget()
            return {}

    def _write(self, changed: Mapping[str, tuple[str, Entry]], gone: Iterable[str]) -> None:
        rows = []
        for run_id, (stamp, entry) in changed.items():
            spec = None if entry.spec is None else entry.spec.model_dump_json()
            row = (stamp, spec, entry.state.model_dump_json(), entry.priority, entry.problem)
            rows.append((run_id, *row, _checksum(row)))
        with suppress(sqlite3.Error, ValueError), closing(self._open()) as connection:
            connection.execute("BEGIN IMMEDIATE")
            connection.executemany("DELETE FROM runs WHERE id = ?", [(run_id,) for run_id in gone])
            connection.executemany("INSERT OR REPLACE INTO runs VALUES (?, ?, ?, ?, ?, ?, ?)", rows)
            connection.execute("COMMIT")


def _about(connection: sqlite3.Connection) -> tuple[int, str] | None:
    try:
        row: tuple[int, str] | None = connection.execute("SELECT layout, boot FROM about").fetchone()
    except sqlite3.OperationalError as error:
        if "no such" in str(error):
            return None
        raise
    return row


def _stamp(folder: str) -> tuple[str, bool]:
    """A text that changes with the files, and whether they are old enough for that to be relied on."""
    parts, now, settled = [], time.time(), True
    for name in STAMPED:
        try:
            status = os.stat(f"{folder}/{name}", follow_symlinks=False)
        except OSError:
            parts.append("-")
            continue
        parts.append(f"{status.st_mtime_ns}.{status.st_ino}.{status.st_size}")
        settled = settled and abs(now - status.st_mtime) > SETTLED_SECONDS
    return " ".join(parts), settled


def _checksum(values: Sequence[object]) -> int:
    return zlib.crc32(repr(tuple(values)).encode())


def _parsed(row: Row) -> Entry | None:
    *values, checksum = row
    if checksum != _checksum(values):
        return None
    _, spec, state, priority, problem, _ = row
    try:
        return Entry(
            None if spec is None else RunSpec.model_validate_json(spec),
            RunState.model_validate_json(state),
            int(priority),
            str(problem),
        )
    except (ValidationError, ValueError, TypeError):
        return None
