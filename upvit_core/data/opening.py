"""From what a person types to an `ImageSet` that fits the model."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from upvit_core.data.archives import SUFFIXES, open_archive
from upvit_core.data.classes import Known, known_names, order_classes
from upvit_core.data.disk import open_folder
from upvit_core.data.folders import FileImages, open_tree
from upvit_core.data.images import ImageSet, ImageSource, Pixels, digest_of
from upvit_core.data.named import PREFIXES, STREAMS, open_named
from upvit_core.data.text import open_text
from upvit_core.errors import DataError
from upvit_core.files import Values
from upvit_core.paths import DEMO_FOLDER

Split = Literal["train", "val"]
DEMO_FILES = {"train": "train.npz", "val": "test.npz"}


@dataclass(frozen=True)
class ArrayImages:
    """Images held in memory, (N, H, W) or (N, H, W, 3) bytes."""

    images: np.ndarray
    labels: np.ndarray
    class_names: tuple[str, ...]
    digest: str

    def load(self, index: int) -> Image.Image:
        return Image.fromarray(self.images[index])

    def file_name(self, index: int) -> str:
        return f"image {index}"


@dataclass(frozen=True)
class Relabelled:
    """Some images of a source, with other labels."""

    source: ImageSource
    indices: np.ndarray
    labels: np.ndarray
    class_names: tuple[str, ...]
    digest: str

    def load(self, index: int) -> Image.Image:
        return self.source.load(int(self.indices[index]))

    def file_name(self, index: int) -> str:
        return self.source.file_name(int(self.indices[index]))


def open_images(
    spec: str,
    split: Split,
    *,
    pretrained_cfg: Values,
    num_classes: int | None = None,
    class_names: Sequence[str] | None = None,
    labelled: bool = True,
    apart: bool = False,
    root: str | None = None,
    seed: int = 0,
) -> ImageSet:
    """Open one split of `demo`, a folder, a tar archive of one, or a timm data set name (`torch/…`, `hfds/…`).

    Labels are classes of a model of `num_classes` outputs called `class_names`: by name, wnid or number where these
    tell, else in natural order; the set's `told` says which. Where not `labelled`, any images do, with or without
    classes. A folder without splits of its own is used whole for training images, and divided by `seed` for evaluation,
    or for both where they must be `apart`. Raises DataError, in one sentence, where the set is missing, empty, of one
    class, or of classes that are not the model's.
    """
    spec = str(spec).strip()
    if split not in DEMO_FILES:
        raise DataError(f"There is no split {split!r}; ask for 'train' or 'val'.")
    if "tokenizer" in pretrained_cfg:
        return open_text(spec, split, pretrained_cfg, num_classes)
    source = _open(spec, split, root, seed, apart, labelled)
    name, told, undivided = spec, "", False
    if isinstance(source, FileImages):
        name, told, undivided = Path(spec).name, source.told, source.undivided
    if labelled:
        source, by = _in_order(spec, source, known_names(class_names, pretrained_cfg), num_classes)
        told = f"{by if spec != 'demo' else ''} {told}".strip()
    pixels, about = Pixels(source, pretrained_cfg), (name, split, source.class_names, source.digest)
    return ImageSet(*about, source=source, pixels=pixels, told=told, undivided=undivided)


def _in_order(spec: str, source: ImageSource, known: Known | None, num_classes: int | None) -> tuple[ImageSource, str]:
    """The source with the labels of the model's classes, and how these were found."""
    old = source.class_names
    if len(old) < 2 and num_classes is None:
        raise DataError(f"{spec} has one class ({old[0]}); a classifier needs images of at least two.")
    files = source if isinstance(source, FileImages) else None
    order = order_classes(
        old,
        known,
        num_classes,
        empty=files.empty if files else (),
        ordered=files is None,
        what="folders" if files else f"classes of {spec}",
    )
    if files and files.unknown and not order.known:
        raise DataError(files.unknown)
    same = order.indices == tuple(range(len(old)))
    if same and order.names == old:
        return source, order.told
    places = np.array([-1 if index is None else index for index in order.indices])
    labels = places[source.labels]
    kept = np.flatnonzero(labels >= 0)
    if not len(kept):
        raise DataError(f"{spec} has no image of a class that is known ({order.told})")
    digest = source.digest if same else digest_of([source.digest, *order.indices])
    return Relabelled(source, kept, labels[kept], order.names, digest), order.told


def _open(spec: str, split: str, root: str | None, seed: int, apart: bool, labelled: bool) -> ImageSource:
    if not spec:
        raise DataError("No image set was given; type demo, a folder, or a timm name such as torch/cifar10.")
    if spec == "demo":
        return _open_demo((Path(root) if root else DEMO_FOLDER) / DEMO_FILES[split])
    path = Path(spec).expanduser()
    if path.is_dir():
        return open_tree(open_folder(path), split, seed, apart=apart, labelled=labelled)
    if path.is_file():
        if not path.name.lower().endswith(SUFFIXES):
            raise DataError(f"{spec} is a file, expected a folder or an archive ({', '.join(SUFFIXES)}).")
        return open_tree(open_archive(path), split, seed, apart=apart, labelled=labelled)
    prefix = spec.partition("/")[0].lower()
    if "/" in spec and prefix in PREFIXES:
        return open_named(spec, split, root)
    if "/" in spec and prefix in STREAMS:
        raise DataError(f"{spec} is a stream, and images are drawn by number; give a set under torch/ or hfds/.")
    raise DataError(f"{spec} does not exist; give demo, a folder or archive, or a timm name such as torch/cifar10.")


def _open_demo(path: Path) -> ArrayImages:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            images, labels = arrays["images"], arrays["labels"].astype(np.int64)
            classes = tuple(str(name) for name in arrays["classes"])
        if images.dtype != np.uint8 or images.ndim not in (3, 4) or len(images) != len(labels) or not len(images):
            raise ValueError(f"images {images.shape} of {images.dtype} and {len(labels)} labels do not fit")
        if not 0 <= labels.min() <= labels.max() < len(classes):
            raise ValueError(f"labels up to {labels.max()} for {len(classes)} classes")
    except FileNotFoundError as error:
        raise DataError(
            f"The demo images are missing ({path}); restore them from the repository, or make them again with "
            "`python -m upvit_core demo train`."
        ) from error
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(
            f"The demo images in {path} are damaged ({error}); restore them from the repository."
        ) from error
    return ArrayImages(images, labels, classes, digest_of([*classes, labels.tolist(), images.tobytes().hex()]))
