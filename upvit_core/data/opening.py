"""From what a person types to an `ImageSet` that fits the model."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from upvit_core.data.archives import SUFFIXES, open_archive
from upvit_core.data.folders import DiskTree, FileImages, open_tree
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


def open_images(
    spec: str,
    split: Split,
    *,
    pretrained_cfg: Values,
    num_classes: int | None = None,
    root: str | None = None,
    seed: int = 0,
) -> ImageSet:
    """Open one split of `demo`, a folder, a tar archive of one, or a timm data set name (`torch/…`, `hfds/…`).

    `seed` splits a folder that has no split of its own. Raises DataError, in one sentence, where the set is
    missing, empty, of one class, or of other than `num_classes` classes.
    """
    spec = str(spec).strip()
    if split not in DEMO_FILES:
        raise DataError(f"There is no split {split!r}; ask for 'train' or 'val'.")
    if "tokenizer" in pretrained_cfg:
        return open_text(spec, split, pretrained_cfg, num_classes)
    source = _open(spec, split, root, seed)
    count = len(source.class_names)
    if count < 2:
        raise DataError(f"{spec} has one class ({source.class_names[0]}); a classifier needs images of at least two.")
    if num_classes is not None and count != num_classes:
        raise DataError(
            f"{spec} has {count} classes and the model {num_classes} outputs; give images of the classes that the "
            "model was trained on."
        )
    name = Path(spec).name if isinstance(source, FileImages) else spec
    return ImageSet(
        name, split, source.class_names, source.digest, source=source, pixels=Pixels(source, pretrained_cfg)
    )


def _open(spec: str, split: str, root: str | None, seed: int) -> ImageSource:
    if not spec:
        raise DataError("No image set was given; type demo, a folder, or a timm name such as torch/cifar10.")
    if spec == "demo":
        return _open_demo((Path(root) if root else DEMO_FOLDER) / DEMO_FILES[split])
    path = Path(spec).expanduser()
    if path.is_dir():
        return open_tree(DiskTree(path), split, seed)
    if path.is_file():
        if not path.name.lower().endswith(SUFFIXES):
            raise DataError(f"{spec} is a file, expected a folder or an archive ({', '.join(SUFFIXES)}).")
        return open_tree(open_archive(path), split, seed)
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
