"""Images of a folder, found by one scan; the scan of a large folder is kept, so that it opens again without another.

A kept scan is used while every folder in it has the time of change that it had: a file that comes, goes or is renamed
changes that of its folder. Writing into a file without replacing it does not.
"""

from __future__ import annotations

import os
import re
import time
import zipfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from upvit_core.atomic import replaced
from upvit_core.data.lists import texts_in
from upvit_core.data.pictures import LARGEST_FILE, SUFFIXES, UNREAD
from upvit_core.errors import DataError
from upvit_core.files import digest

DEEPEST = 12
"""The depth of folders at which the search for pictures ends, since a link may lead round in a circle."""
ARCHIVE = re.compile(r"\.tar|\.(tgz|zip)$")
KEPT_FROM = 10_000
"""The number of images from which a scan is kept."""
TICK_NS = 100_000_000
DAMAGED = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile)
"""Errors of reading a missing or damaged `.npz`."""


def cache_folder(kind: str) -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "upvit-studio" / kind


def join(at: str, name: str) -> str:
    return f"{at}/{name}" if at else name


def joined(names: list[str]) -> np.ndarray:
    """Names as the bytes of one text, for a file without pickles."""
    return np.frombuffer("\n".join(names).encode(errors="surrogateescape"), np.uint8)


def parted(text: np.ndarray) -> list[str]:
    """The names of `joined`."""
    return text.tobytes().decode(errors="surrogateescape").split("\n") if len(text) else []


def read_picture(path: Path) -> bytes:
    """The content of an image file. Raises OSError for anything but a regular file of a usual size."""
    if not path.is_file() or path.stat().st_size > LARGEST_FILE:
        raise OSError(f"{path} is no regular file of a picture")
    return path.read_bytes()


@dataclass(frozen=True)
class DiskTree:
    """Images below `root`, those of one folder side by side, with their bytes (-1: no regular file).

    `spans` has the first image of every folder and the one after its last; `changed` the folders' times in ns.
    `unread` are pictures of formats that are not read.
    """

    root: Path
    names: list[str] = field(repr=False)
    sizes: np.ndarray = field(repr=False)
    spans: dict[str, tuple[int, int]] = field(repr=False)
    changed: list[int] = field(repr=False)
    unread: list[str] = field(repr=False)

    @property
    def name(self) -> str:
        return str(self.root)

    @cached_property
    def _inside(self) -> dict[str, list[str]]:
        inside: dict[str, list[str]] = {}
        for place in self.spans:
            above, _, name = place.rpartition("/")
            if name and not name.startswith("__"):
                inside.setdefault(above, []).append(name)
        return inside

    def folders(self, at: str = "") -> list[str]:
        return sorted(self._inside.get(at, []))

    def images(self, at: str) -> Iterator[tuple[str, int]]:
        first, last = self.spans[at]
        return zip(self.names[first:last], self.sizes[first:last].tolist(), strict=True)

    def holds_images(self, at: str) -> bool:
        first, last = self.spans[at]
        return last > first

    def archives(self, at: str) -> list[str]:
        """Names of the archives in a folder."""
        return sorted(name for name in os.listdir(self.root / at) if ARCHIVE.search(name.lower()))

    def texts(self, at: str) -> Iterator[tuple[str, str]]:
        place = (self.root / at).absolute()
        for folder in (place, *place.parents):
            yield from texts_in(folder)
            if folder == self.root.absolute().parent:
                return

    def read(self, name: str) -> bytes:
        return read_picture(self.root / name)


def open_folder(root: Path) -> DiskTree:
    """The images of a folder, by a kept scan where nothing has changed since, else by a new one.

    Raises DataError where the folder cannot be read.
    """
    kept = cache_folder("folders") / f"{root.name}-{digest(os.path.realpath(root))}.npz"
    if found := _kept(root, kept):
        return found
    began = time.time_ns()
    try:
        tree = _scan(root)
    except OSError as error:
        raise DataError(f"{root} cannot be read ({error}); check its permissions.") from error
    # A change within a tick of the clock leaves a folder's time as it was; some file systems count in seconds.
    tick = 20 * TICK_NS if all(when % 1_000_000_000 == 0 for when in tree.changed) else TICK_NS
    plain = not any("\n" in name for name in (*tree.names, *tree.spans, *tree.unread))
    if len(tree.names) >= KEPT_FROM and plain and max(tree.changed) < began - tick:
        with suppress(OSError):  # without room for it, every opening scans
            kept.parent.mkdir(parents=True, exist_ok=True)
            with replaced(kept) as temporary, temporary.open("wb") as file:
                np.savez(
                    file,
                    names=joined(tree.names),
                    unread=joined(tree.unread),
                    sizes=tree.sizes,
                    folders=joined(list(tree.spans)[1:]),
                    spans=np.array(list(tree.spans.values()), np.int64),
                    changed=np.array(tree.changed, np.int64),
                )
    return tree


def _kept(root: Path, path: Path) -> DiskTree | None:
    """The kept scan; None where there is none, or a folder has changed since."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            folders, changed = ["", *parted(arrays["folders"])], arrays["changed"].tolist()
            if [os.stat(os.path.join(root, place)).st_mtime_ns for place in folders] != changed:
                return None
            spans = dict(zip(folders, map(tuple, arrays["spans"].tolist()), strict=True))
            unread = parted(arrays["unread"])
            return DiskTree(root, parted(arrays["names"]), arrays["sizes"], spans, changed, unread)
    except DAMAGED:
        return None


def _scan(root: Path) -> DiskTree:
    names: list[str] = []
    sizes: list[int] = []
    spans: dict[str, tuple[int, int]] = {}
    changed: list[int] = []
    unread: list[str] = []

    def enter(at: str, above: tuple[tuple[int, int], ...]) -> None:
        status = os.stat(root / at)
        own = status.st_dev, status.st_ino
        if own in above or len(above) > DEEPEST:  # a link leads back
            return
        spans[at], first = (0, 0), len(names)
        changed.append(status.st_mtime_ns)
        with os.scandir(root / at) as entries:
            inside = sorted(entries, key=lambda entry: entry.name)
        for entry in inside:
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                enter(join(at, entry.name), (*above, own))
            elif entry.name.lower().endswith(SUFFIXES):
                names.append(join(at, entry.name))
                sizes.append(entry.stat().st_size if entry.is_file() else -1)
            elif entry.name.lower().endswith(UNREAD):
                unread.append(join(at, entry.name))
        spans[at] = first, len(names)

    enter("", ())
    return DiskTree(root, names, np.array(sizes, np.int64), spans, changed, unread)
