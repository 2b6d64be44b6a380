"""A tar or zip archive of an image folder, read in place of it; nothing in it is written under a name of its own.

The first opening decompresses the images into one file in the user's cache, with an index of names, offsets and sizes.
A plain `.tar` needs the index alone. That is 60,000 small files and many seconds less than unpacking CIFAR-10.
Archives inside an archive are read as folders, as the classes of ILSVRC2012_img_train.tar.
"""

from __future__ import annotations

import lzma
import posixpath
import shutil
import tarfile
import zipfile
import zlib
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import IO, BinaryIO

import numpy as np

from upvit_core.atomic import replaced
from upvit_core.data.disk import DAMAGED, cache_folder, join, joined, parted
from upvit_core.data.lists import texts_in
from upvit_core.data.pictures import LARGEST_FILE, UNREAD
from upvit_core.data.pictures import SUFFIXES as PICTURES
from upvit_core.errors import DataError
from upvit_core.files import digest

LONGEST_CHAIN = 8
"""The most links from one image to another that are followed."""
SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".zip")


@dataclass(frozen=True)
class ArchiveTree:
    """The folders and images of an archive; `blob` holds the bytes of all images, `index` is sorted by name.

    `folder` holds the archive, and the lists of classes beside it.
    """

    name: str
    folder: Path
    blob: Path
    index: dict[str, tuple[int, int]] = field(repr=False)
    unread: list[str] = field(repr=False)

    @cached_property
    def _names(self) -> list[str]:
        return list(self.index)

    def _end(self, at: str) -> int:
        """Position after the last name below the folder `at`."""
        return bisect_left(self._names, at + chr(ord("/") + 1)) if at else len(self._names)

    def folders(self, at: str = "") -> list[str]:
        start = f"{at}/" if at else ""
        names = []
        position = bisect_left(self._names, start)
        while position < self._end(at):
            first, below, _ = self._names[position][len(start) :].partition("/")
            if below:
                names.append(first)
            position = self._end(start + first) if below else position + 1
        return [name for name in names if not name.startswith((".", "__"))]

    def images(self, at: str) -> Iterator[tuple[str, int]]:
        for name in self._names[bisect_left(self._names, f"{at}/" if at else "") : self._end(at)]:
            if not any(part.startswith(".") for part in name.split("/")):
                yield name, self.index[name][1]

    def holds_images(self, at: str) -> bool:
        return any(True for _ in self.images(at))

    def archives(self, at: str) -> list[str]:
        """Names of archives inside: none, since their images are its own."""
        return []

    def texts(self, at: str) -> Iterator[tuple[str, str]]:
        """(name, content) of the text files beside the archive; those inside are not read."""
        return texts_in(self.folder)

    def read(self, name: str) -> bytes:
        offset, size = self.index[name]
        with self.blob.open("rb", buffering=0) as file:
            file.seek(offset)
            return file.read(size)


def open_archive(path: Path) -> ArchiveTree:
    """Index a tar or zip archive, or find the index that an earlier call made of the same file.

    Raises DataError for a damaged archive, or where the cache cannot be written.
    """
    status = path.stat()
    mark = digest(f"{path.resolve()}|{status.st_size}|{status.st_mtime_ns}")
    stem = cache_folder("archives") / f"{path.name.split('.')[0]}-{mark}"
    plain = path.name.lower().endswith(".tar")
    blob = path if plain else stem.with_name(f"{stem.name}.images")
    index_file = stem.with_name(f"{stem.name}.index.npz")
    try:
        found = _read_index(index_file) if blob.is_file() else None
        if found is None:
            _make_index(path, None if plain else blob, index_file)
            found = _read_index(index_file) or ({}, [])
    except (tarfile.TarError, zipfile.BadZipFile, RuntimeError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise DataError(f"{path} is a damaged or truncated archive ({error}); download or copy it again.") from error
    except OSError as error:
        raise DataError(
            f"{path} cannot be read by way of the cache {stem.parent} ({error}); make room there."
        ) from error
    return ArchiveTree(path.name, path.absolute().parent, blob, *found)


def _read_index(index_file: Path) -> tuple[dict[str, tuple[int, int]], list[str]] | None:
    """Offset and bytes by name, sorted, and pictures not read; None where there is no index, or a damaged one."""
    try:
        with np.load(index_file, allow_pickle=False) as arrays:
            places = zip(arrays["offsets"].tolist(), arrays["sizes"].tolist(), strict=True)
            return dict(sorted(zip(parted(arrays["names"]), places, strict=True))), parted(arrays["unread"])
    except DAMAGED:
        return None


def _make_index(path: Path, blob: Path | None, index_file: Path) -> None:
    index_file.parent.mkdir(parents=True, exist_ok=True)
    unread: list[str] = []
    if blob is None:
        rows = _index(path, None, unread)
    else:
        if (needed := path.stat().st_size) > (free := shutil.disk_usage(blob.parent).free):
            raise OSError(f"{free / 2**30:.1f} GiB are free, at least {needed / 2**30:.1f} GiB are needed")
        with replaced(blob) as temporary, temporary.open("wb") as out:
            rows = (_index_zip if zipfile.is_zipfile(path) else _index)(path, out, unread)
    with replaced(index_file) as temporary, temporary.open("wb") as file:
        np.savez_compressed(
            file,
            names=joined([name for name, _, _ in rows]),
            unread=joined(unread),
            offsets=np.array([offset for _, offset, _ in rows], np.int64),
            sizes=np.array([size for _, _, size in rows], np.int64),
        )


def _is_plain(name: str) -> bool:
    """True for a path that stays below its root."""
    return "\n" not in name and not {"", ".", ".."} & set(name.split("/"))


def _is_unread(name: str) -> bool:
    """True for a picture of a format that is not read, but for hidden ones."""
    return name.lower().endswith(UNREAD) and not any(part.startswith(".") for part in name.split("/"))


def _index_zip(path: Path, out: BinaryIO, unread: list[str]) -> list[tuple[str, int, int]]:
    """(name, offset, bytes) of every image, its bytes copied to `out`."""
    rows = []
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            name = member.filename.removeprefix("./")
            if name.lower().endswith(PICTURES) and _is_plain(name):
                if member.file_size > LARGEST_FILE:
                    raise zipfile.BadZipFile(f"{name[:80]} has {member.file_size / 2**30:.1f} GiB")
                rows.append((name, out.tell(), out.write(archive.read(member))))
            elif _is_unread(name) and _is_plain(name):
                unread.append(name)
    return rows


def _index(path: Path, out: BinaryIO | None, unread: list[str]) -> list[tuple[str, int, int]]:
    """(name, offset, bytes) of every image and every link to one, the images' bytes copied to `out` where given."""
    rows: dict[str, tuple[int, int]] = {}
    links: dict[str, str] = {}
    with path.open("rb") as file:
        _enter(file, out, "", 0, rows, links, unread)
    for name in links:
        target, steps = name, 0
        while target in links and steps < LONGEST_CHAIN:
            target, steps = links[target], steps + 1
        if target in rows:
            rows[name] = rows[target]
    return [(name, *place) for name, place in rows.items()]


def _enter(
    source: IO[bytes],
    out: BinaryIO | None,
    at: str,
    start: int,
    rows: dict[str, tuple[int, int]],
    links: dict[str, str],
    unread: list[str],
) -> None:
    """Collect what an archive holds that begins `start` bytes into the file, under the folder `at`."""
    with tarfile.open(fileobj=source, mode="r|*" if out else "r:") as tar:
        for member in tar:
            name = join(at, member.name.removeprefix("./"))
            tar.members = []  # type: ignore[attr-defined]  # or the list of headers grows with the archive
            if not _is_plain(name):
                continue
            if member.isfile() and name.lower().endswith(".tar") and not at:
                if inner := tar.extractfile(member):
                    _enter(inner, out, name[: -len(".tar")], start + member.offset_data, rows, links, unread)
                continue
            if not name.lower().endswith(PICTURES):
                unread += [name] * _is_unread(name)
                continue
            if member.islnk() or member.issym():
                above = posixpath.dirname(name) if member.issym() else at
                links[name] = posixpath.normpath(join(above, member.linkname.removeprefix("./")))
            elif member.isfile():
                if member.size > LARGEST_FILE:
                    raise tarfile.ReadError(f"{name[:80]} has {member.size / 2**30:.1f} GiB")
                rows[name] = out.tell() if out else start + member.offset_data, member.size
                if out and (content := tar.extractfile(member)):
                    out.write(content.read())
