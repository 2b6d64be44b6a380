"""Image sets that timm opens by name: torchvision's (`torch/cifar10`) and Hugging Face's (`hfds/owner/name`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
from PIL import Image
from timm.data.dataset_factory import create_dataset

from upvit_core.data.images import digest_of
from upvit_core.data.pictures import decode
from upvit_core.errors import DataError

PREFIXES = ("torch", "hfds")
STREAMS = ("hfids", "tfds", "wds")
SPLITS = {"train": ("train",), "val": ("validation", "val", "test")}


@dataclass(frozen=True)
class NamedImages:
    """A data set with random access; `opener` gives one decoded image."""

    name: str
    labels: np.ndarray
    class_names: tuple[str, ...]
    digest: str
    opener: Callable[[int], Image.Image]

    def load(self, index: int) -> Image.Image:
        return self.opener(index)

    def file_name(self, index: int) -> str:
        return f"{self.name} image {index}"


@dataclass(frozen=True)
class _FromReader:
    reader: Sequence[tuple[BinaryIO, int]]

    def __call__(self, index: int) -> Image.Image:
        with self.reader[index][0] as file:
            return decode(file)


@dataclass(frozen=True)
class _FromTorchvision:
    dataset: Sequence[tuple[Image.Image, int]]

    def __call__(self, index: int) -> Image.Image:
        image: Image.Image = self.dataset[index][0]
        return image


def open_named(name: str, split: str, root: str | None) -> NamedImages:
    """Open `torch/…` or `hfds/…`, from `root` or downloaded into it. Raises DataError where that fails."""
    if name.partition("/")[0].lower() == "torch":
        return _torchvision(name, split, root)
    return _hugging_face(name, split, root)


def _torchvision(name: str, split: str, root: str | None) -> NamedImages:
    if root is None:
        raise DataError(f"{name} needs a root: the folder that holds the data set or is to hold it.")
    timm_split = SPLITS[split][0]
    try:
        dataset: Any = create_dataset(name, root=root, split=timm_split)
    except AssertionError as error:
        raise DataError(
            f"{name} is not a data set that timm knows ({error}); give for example torch/cifar10."
        ) from error
    except Exception:
        try:
            dataset = create_dataset(name, root=root, split=timm_split, download=True)
        except Exception as error:  # torchvision raises whatever its download gave
            raise DataError(
                f"{name} is not in {root} and could not be downloaded ({_short(error)}); give the folder that holds it."
            ) from error
    targets = getattr(dataset, "targets", None)
    if targets is None:
        raise DataError(f"{name} has labels only in its images; give it as a folder of classes.")
    labels = np.asarray(targets, dtype=np.int64)
    labels = labels[:, 0] if labels.ndim == 2 else labels
    classes = getattr(dataset, "classes", None) or [str(label) for label in range(int(labels.max()) + 1)]
    names = tuple(str(entry[0] if isinstance(entry, tuple) else entry) for entry in classes)
    return NamedImages(
        name, labels, names, digest_of([name, split, *names, labels.tolist()]), _FromTorchvision(dataset)
    )


def _hugging_face(name: str, split: str, root: str | None) -> NamedImages:
    failure: Exception | None = None
    for candidate in SPLITS[split]:
        try:
            dataset: Any = create_dataset(name, root=root, split=candidate)
            reader = dataset.reader
            targets = list(reader.iter_targets())
        except ImportError as error:
            raise DataError(f"{name} needs the package datasets; install it with `pip install datasets`.") from error
        except Exception as error:  # the package raises its own and its HTTP library's errors
            failure = failure or error
            continue
        if not targets or any(not isinstance(target, int) or target < 0 for target in targets):
            raise DataError(f"{name} ({candidate}) has images without a class in its column 'label'; give another set.")
        by_label = {label: str(key) for key, label in (reader.class_to_idx or {}).items()}
        names = tuple(by_label.get(label, str(label)) for label in range(max([*targets, *by_label]) + 1))
        digest = digest_of([name, candidate, *names, targets])
        return NamedImages(name, np.array(targets, np.int64), names, digest, _FromReader(reader))
    raise DataError(
        f"{name} has no {split} split that can be opened ({_short(failure)}); check the name, the network, or give a "
        "root that holds it."
    ) from failure


def _short(error: Exception | None) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:160]
