"""Folders of classes, laid out as torchvision's ImageFolder: `train/` and `val/`, or one folder split by seed."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image
from torchvision.datasets.folder import IMG_EXTENSIONS

from upvit_core.data.images import digest_of
from upvit_core.errors import DataError

TRAIN = ("train", "training")
VAL = ("val", "validation", "valid", "test", "testing")
VAL_SHARE = 0.1
WANTED = "class folders of images, or train/ and val/ that hold class folders"


class Tree(Protocol):
    """Folders and images below a root, on disk or in an archive; paths are relative and use `/`."""

    @property
    def name(self) -> str: ...

    def folders(self, at: str = "") -> list[str]:
        """Names of the folders in `at`, sorted, hidden ones left out."""

    def images(self, at: str) -> Iterator[tuple[str, int]]:
        """(path, bytes) of every image file below `at`, sorted."""

    def read(self, name: str) -> bytes: ...


@dataclass(frozen=True)
class DiskTree:
    root: Path

    @property
    def name(self) -> str:
        return str(self.root)

    def folders(self, at: str = "") -> list[str]:
        with os.scandir(self.root / at) as entries:
            return sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith((".", "__")))

    def images(self, at: str) -> Iterator[tuple[str, int]]:
        with os.scandir(self.root / at) as entries:
            inside = sorted(entries, key=lambda entry: entry.name)
        for entry in inside:
            path = f"{at}/{entry.name}"
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                yield from self.images(path)
            elif entry.name.lower().endswith(IMG_EXTENSIONS):
                yield path, entry.stat().st_size if entry.is_file() else -1

    def read(self, name: str) -> bytes:
        return (self.root / name).read_bytes()


@dataclass(frozen=True)
class FileImages:
    """Image files of a tree, decoded when asked for."""

    tree: Tree
    files: tuple[str, ...]
    labels: np.ndarray
    class_names: tuple[str, ...]
    digest: str

    def load(self, index: int) -> Image.Image:
        image = Image.open(io.BytesIO(self.tree.read(self.files[index])))
        image.load()
        return image

    def file_name(self, index: int) -> str:
        return self.files[index]


def open_tree(tree: Tree, split: str, seed: int) -> FileImages:
    """The `train` or `val` split of a folder or archive.

    Classes are the sorted names of `train/`'s folders. Raises DataError where the layout is not understood.
    """
    try:
        return _open(tree, split, seed)
    except OSError as error:
        raise DataError(f"{tree.name} cannot be read ({error}); check its permissions.") from error


def _open(tree: Tree, split: str, seed: int) -> FileImages:
    root = ""
    while not _splits(tree, root) and len(inner := tree.folders(root)) == 1 and tree.folders(_join(root, inner[0])):
        root = _join(root, inner[0])
    parts = _splits(tree, root)
    if not parts:
        return _split_by_seed(tree, root, split, seed)
    if split not in parts:
        raise DataError(
            f"{tree.name} has {next(iter(parts.values()))}/ but no {'train/' if split == 'train' else 'val/ or test/'} "
            "folder of classes; add it, or give a folder of classes alone to have it split by seed."
        )
    classes = tuple(tree.folders(parts.get("train", parts[split])))
    foreign = sorted(set(tree.folders(parts[split])) - set(classes))
    if foreign:
        raise DataError(
            f"{tree.name} has the class {foreign[0]!r}{f' and {len(foreign) - 1} more' if foreign[1:] else ''} in "
            f"{parts[split]}/ but not in {parts['train']}/; both need the same class folders."
        )
    return _images(tree, classes, _scan(tree, parts[split], classes))


def _join(at: str, name: str) -> str:
    return f"{at}/{name}" if at else name


def _splits(tree: Tree, root: str) -> dict[str, str]:
    """`train` and `val` among the folders of `root`; a class that happens to be called so holds no folders itself."""
    inside = tree.folders(root)
    return {
        split: _join(root, folder)
        for split, names in (("train", TRAIN), ("val", VAL))
        if (folder := next((name for name in names if name in inside and tree.folders(_join(root, name))), None))
    }


def _scan(tree: Tree, at: str, classes: tuple[str, ...]) -> list[tuple[str, int, int]]:
    """(path, label, bytes) of every image, class by class."""
    present = set(tree.folders(at))
    return [
        (path, label, size)
        for label, name in enumerate(classes)
        if name in present
        for path, size in tree.images(_join(at, name))
    ]


def _split_by_seed(tree: Tree, root: str, split: str, seed: int) -> FileImages:
    """A tenth of each class, at least one image of two or more, is `val`; the rest is `train`."""
    classes = tuple(tree.folders(root))
    if not classes:
        raise DataError(f"{tree.name} has no class folders; give a folder with {WANTED}.")
    entries = _scan(tree, root, classes)
    labels = np.array([label for _, label, _ in entries], np.int64)
    held_out = np.zeros(len(entries), bool)
    for label in range(len(classes)):
        members = np.flatnonzero(labels == label)
        share = max(round(VAL_SHARE * len(members)), 1) if len(members) > 1 else 0
        held_out[np.random.default_rng((seed, label)).permutation(members)[:share]] = True
    chosen = np.flatnonzero(held_out if split == "val" else ~held_out)
    return _images(tree, classes, [entries[index] for index in chosen])


def _images(tree: Tree, classes: tuple[str, ...], entries: list[tuple[str, int, int]]) -> FileImages:
    if not entries:
        raise DataError(f"{tree.name} has no images ({', '.join(IMG_EXTENSIONS)}); give a folder with {WANTED}.")
    return FileImages(
        tree,
        tuple(path for path, _, _ in entries),
        np.array([label for _, label, _ in entries], np.int64),
        classes,
        digest_of([*classes, *entries]),
    )
