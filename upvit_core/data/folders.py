"""Folders of classes as torchvision's ImageFolder reads them: in `train/` and `val/` by any name, or in one folder."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image

from upvit_core.data.disk import join
from upvit_core.data.images import digest_of
from upvit_core.data.lists import classes_from_lists
from upvit_core.data.pictures import SUFFIXES, decode, passed_over
from upvit_core.data.splits import FILLERS, IMAGES, LABELS, Part, is_foreign, part_of
from upvit_core.errors import DataError

ORDER: dict[str, tuple[Part, ...]] = {"train": ("train",), "val": ("val", "test")}
VAL_SHARE = 0.1
WANTED = "class folders of images, or train/ and val/ that hold class folders"
SORT_THEM = (
    "sort them into a folder for each class (the usual script valprep.sh does so for ImageNet's val/), or lay a list "
    "beside them with `file name,class` a line, as LOC_val_solution.csv"
)


class Tree(Protocol):
    """Folders and images below a root, on disk or in an archive; paths are relative and use `/`."""

    @property
    def name(self) -> str: ...

    @property
    def unread(self) -> list[str]:
        """Paths of pictures of formats that are not read."""

    def folders(self, at: str = "") -> list[str]:
        """Names of the folders in `at`, sorted, hidden ones left out."""

    def images(self, at: str) -> Iterator[tuple[str, int]]:
        """(path, bytes) of every image file below `at`, sorted."""

    def holds_images(self, at: str) -> bool:
        """True if there is an image in `at` or below it."""

    def archives(self, at: str) -> list[str]:
        """Names of the tar archives in `at`."""

    def texts(self, at: str) -> Iterator[tuple[str, str]]:
        """(name, content) of the small text files beside the images of `at`, nearest first."""

    def read(self, name: str) -> bytes: ...


@dataclass(frozen=True)
class FileImages:
    """Image files of a tree, decoded when asked for.

    `empty`: class folders without images. `unknown`: what to say where names do not tell the classes, "" where order
    may. `told`: which part of the folder these are. `undivided`: the folder has no parts of its own.
    """

    tree: Tree
    files: tuple[str, ...]
    labels: np.ndarray
    class_names: tuple[str, ...]
    digest: str
    empty: tuple[str, ...] = ()
    unknown: str = ""
    told: str = ""
    undivided: bool = False

    def load(self, index: int) -> Image.Image:
        return decode(self.tree.read(self.files[index]))

    def file_name(self, index: int) -> str:
        return self.files[index]


def content(tree: Tree, at: str) -> list[str]:
    """The folders in `at` that hold images, but for those that are foreign to a set of classes."""
    names = [name for name in tree.folders(at) if not is_foreign(name) and tree.holds_images(join(at, name))]
    if any(map(IMAGES.fullmatch, names)):
        return [name for name in names if not LABELS.fullmatch(name)]
    return names


def open_tree(tree: Tree, split: str, seed: int, *, apart: bool = False, labelled: bool = True) -> FileImages:
    """The `train` or `val` split of a folder or archive, classes in the sorted order of their names.

    One folder without such parts is used whole, but for `val` a tenth of each class is drawn by `seed`, unless the
    folder is called `val` or `test` itself. `apart`: the splits share no image, so `train` is the rest. Images without
    classes do where they need not be `labelled`. Raises DataError where the layout is not understood.
    """
    try:
        return _open(tree, split, seed, apart, labelled)
    except OSError as error:
        raise DataError(f"{tree.name} cannot be read ({error}); check its permissions.") from error


def _open(tree: Tree, split: str, seed: int, apart: bool, labelled: bool) -> FileImages:
    root, parts = _parts(tree)
    left_out = ""
    if labelled and len(parts) == 2 and _has_no_classes(tree, parts["val"]):
        left_out = f"{parts.pop('val')}/ has images without classes and is left out."
    undivided = len(parts) < len(ORDER)  # one part alone must not be trained on and judged by too
    inside = {} if parts else {name: content(tree, join(root, name)) for name in content(tree, root)}
    within = {name: _parts_among(tree, join(root, name), [*filter(part_of, inside[name])]) for name in inside}
    whole = [found for found in within.values() if len(found) == len(ORDER)]
    by_class = len(inside) > 1 and 2 * len(whole) >= len(inside)
    undivided = undivided and not by_class
    base = _inner(tree, parts.get(split) or next(iter(parts.values()), root))
    paths, names, sizes, source = _entries(tree, base, labelled)
    own = set(names)
    if by_class:
        own = {name for name in names if within[name]}
        places = [
            next((part for part, at in within[name].items() if path.startswith(f"{at}/")), "")
            for path, name in zip(paths, names, strict=True)
        ]
        if lost := places.count(""):
            source = f"Images in neither part of their class are left out ({lost:,}, as {paths[places.index('')]})."
        kept = [i for i, place in enumerate(places) if place == split]
        paths, names, sizes = [paths[i] for i in kept], [names[i] for i in kept], [sizes[i] for i in kept]
    both = labelled and split == "val" and len(parts) == 2
    trained = set(content(tree, _inner(tree, parts["train"]))) if both else set()
    if all(name.isdecimal() for name in own) and not any(name.isdecimal() for name in trained):
        trained = set()  # a list of numbers: the model's own, not the folders'
    classes = tuple(sorted(own | trained))
    number = {name: label for label, name in enumerate(classes)}
    labels = np.array([number[name] for name in names], np.int64)
    beside = tree.folders(base) + (tree.folders(_inner(tree, parts["train"])) if both else [])
    below = next(iter(inside.values()), [])
    same = not by_class and 1 < len(inside) <= 3 and all(below == names for names in inside.values())
    if same and any(name.isdecimal() or not FILLERS.fullmatch(name.lower()) for name in below):
        twins = f"{' and '.join(list(inside)[:2])} hold folders of the same names ({', '.join(below[:3])})"
        source = " ".join(filter(None, (source, f"{twins}: if those are the classes, name these train and val.")))
    passed = passed_over(name for name in tree.unread if name.startswith(f"{base}/" if base else ""))
    told = "" if base.rsplit("/", 1)[-1] == split else f"Images are those of {base}/."
    if by_class:
        told = f"Images are those of {whole[0][split].rsplit('/', 1)[-1]}/ in each class."
    if undivided:
        chosen, told = _divided(tree, base, labels, seed, split, apart)
        paths, sizes, labels = [paths[i] for i in chosen], [sizes[i] for i in chosen], labels[chosen]
        told = f"{f'{base}/ is the only part' if parts else 'There is no train/ and val/ folder'}: {told}"
    unknown = ""
    if trained and (foreign := sorted(own - trained)):
        more = f" and {len(foreign) - 1} more" if foreign[1:] else ""
        unknown = (
            f"{tree.name} has the class {foreign[0]!r}{more} in {base}/ but not in {parts['train']}/; both need the "
            "same class folders."
        )
    return FileImages(
        tree,
        tuple(paths),
        labels,
        classes,
        digest_of(chain(classes, zip(paths, labels.tolist(), sizes, strict=True))),
        empty=tuple(n for n in dict.fromkeys(beside) if not (n in own or n in trained or n in inside or is_foreign(n))),
        unknown=unknown,
        told=" ".join(filter(None, (left_out, told, source, passed))),
        undivided=undivided,
    )


def _parts(tree: Tree) -> tuple[str, dict[str, str]]:
    """The folder of classes or parts, below folders that hold nothing else, and its parts by split if it has any."""
    root = ""
    while True:
        root = _inner(tree, root, in_part=False)
        inside = content(tree, root)
        parts = _parts_among(tree, root, inside)
        named = [join(root, name) for name in inside if any(map(part_of, tree.folders(join(root, name))))]
        whole = [at for at in named if len(_parts_among(tree, at, content(tree, at))) == len(ORDER)]
        if (
            parts
            or len(whole) != 1
            or (named[1:] and not any(content(tree, join(whole[0], n)) for n in content(tree, whole[0])))
        ):
            return root, parts  # with parts of loose images in several folders, these are classes
        root = whole[0]


def _inner(tree: Tree, at: str, *, in_part: bool = True) -> str:
    """The folder that holds classes, parts or images, where `at` holds nothing but it, as `images/`."""
    while len(inside := content(tree, at)) == 1 and (in_part or not part_of(inside[0])):
        below = join(at, inside[0])
        if not content(tree, below) and not FILLERS.fullmatch(inside[0].lower()):
            break
        at = below
    return at


def _has_no_classes(tree: Tree, at: str) -> bool:
    """True for a test part whose images lie in one folder and whose classes no list tells, as competitions have."""
    inner = _inner(tree, at)
    if part_of(at.rsplit("/", 1)[-1]) != "test" or content(tree, inner):
        return False
    return classes_from_lists([path for path, _ in tree.images(inner)], tree.texts(inner))[0] is None


def _parts_among(tree: Tree, root: str, inside: list[str]) -> dict[str, str]:
    """Parts by their names; a class that happens to be called so lies beside other classes and holds no folders."""
    named = {name: part for name in inside if (part := part_of(name))}
    strict = {name for name in named if part_of(name, strict=True)}
    nested = {name for name in named if content(tree, join(root, name))}
    if len(named) < len(inside) and len({named[name] == "train" for name in nested}) < 2:
        nested &= strict
    chosen = nested | strict if nested or len(strict) == len(inside) else nested
    parts = {}
    for split, wanted in ORDER.items():
        ranked = [
            (name not in nested, wanted.index(named[name]), name not in strict, name)
            for name in chosen
            if named[name] in wanted
        ]
        if ranked:
            parts[split] = join(root, min(ranked)[-1])
    return parts


def _entries(tree: Tree, at: str, labelled: bool) -> tuple[list[str], list[str], list[int], str]:
    """Path, class and bytes of every image below `at`, and a sentence where a list gives the classes."""
    paths: list[str] = []
    names: list[str] = []
    sizes: list[int] = []
    for name in content(tree, at) or [""]:
        for path, size in tree.images(join(at, name) if name else at):
            paths.append(path)
            sizes.append(size)
        names += [name] * (len(paths) - len(names))
    if any(names):
        return paths, names, sizes, ""
    if not paths:
        what = "images" if tree.folders(at) else "class folders and no images"
        if inside := tree.archives(at):
            raise DataError(
                f"{tree.name} has no images but the archive {inside[0]}; give the archive itself, or unpack it (for "
                "training and evaluation those of both, into train/ and val/)."
            )
        passed = passed_over(tree.unread)
        hint = f"{passed[0].lower()}{passed[1:]}" if passed else f"give a folder with {WANTED}."
        raise DataError(f"{tree.name} has no {what} ({', '.join(SUFFIXES)}); {hint}")
    if not labelled:
        return paths, names, sizes, ""
    found, refused = classes_from_lists(paths, tree.texts(at))
    if found is None:
        raise DataError(
            f"{len(paths):,} images lie directly in {join(tree.name, at)}, without class folders, so their classes "
            f"are not known{f' ({refused})' if refused else ''}; {SORT_THEM}."
        )
    return paths, found[1], sizes, f"Classes are those of the list {found[0]}."


def _divided(tree: Tree, base: str, labels: np.ndarray, seed: int, split: str, apart: bool) -> tuple[np.ndarray, str]:
    """Indices of the images of a split of one folder, and a sentence.

    They are all, or a tenth of each class (one image of two or more).
    """
    called = part_of(base.rsplit("/", 1)[-1] or Path(tree.name).name)
    held_out = np.zeros(len(labels), bool)
    for label in np.unique(labels).tolist():
        members = np.flatnonzero(labels == label)
        share = max(round(VAL_SHARE * len(members)), 1) if len(members) > 1 else 0
        held_out[np.random.default_rng((seed, label)).permutation(members)[:share]] = True
    if apart and not held_out.any():
        raise DataError(
            f"{tree.name} has one image a class, so none can be held out for evaluation; give more or val/."
        )
    if not apart and (split == "train" or called in ("val", "test") or not held_out.any()):
        return np.arange(len(labels)), f"all {len(labels):,} images are used."
    chosen = np.flatnonzero(held_out if split == "val" else ~held_out)
    use = f"{len(chosen):,} of {len(labels):,} images are used for {'evaluation' if split == 'val' else 'training'}"
    return chosen, f"a tenth of each class is held out by seed {seed}, and {use}."
