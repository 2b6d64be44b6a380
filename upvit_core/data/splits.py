"""The part of a data set that a folder's name says it is: `train2018`, `Val`, `test_set`, `ILSVRC2012_img_val`."""

from __future__ import annotations

import re
from typing import Literal

Part = Literal["train", "val", "test"]
WORDS: dict[str, Part] = {
    **dict.fromkeys(("train", "training", "trn", "trainval"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "validate", "dev", "eval", "evaluation", "holdout"), "val"),
    **dict.fromkeys(("test", "testing", "tst"), "test"),
}
FILLERS = re.compile(r"\d+|k|px|in|set|data|dataset|images?|imgs?|split|folder|dir|part|cls|loc|ilsvrc|imagenet|cifar")
ENDING = re.compile(r"(set|data|images?|imgs?|split|dir)$")
FOREIGN = {
    "annotation", "annotations", "imagesets", "devkit", "bboxes", "boundingboxes", "eadir", "recyclebin",
    "systemvolumeinformation", "lostfound",
}  # fmt: skip
IMAGES = re.compile(r"(jpeg)?(images?|imgs?)", re.IGNORECASE)
LABELS = re.compile(
    r"labels?|masks?|gt|ground_?truths?|trimaps?|segmentations?|segmentation(class|object)", re.IGNORECASE
)
"""Folders beside one of images that hold pictures of another kind."""


def part_of(name: str, *, strict: bool = False) -> Part | None:
    """The part that a folder is named after; `strict`: by nothing but its word, numbers and words like `set`."""
    words = [word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|[0-9]+", name)]
    words = [word if word in WORDS else ENDING.sub("", word) or word for word in words]
    parts = [WORDS[word] for word in words if word in WORDS]
    rest = [word for word in words if word not in WORDS and not FILLERS.fullmatch(word)]
    if not parts or (strict and rest):
        return None
    return "train" if parts == ["train", "val"] else parts[0] if len({*parts}) == 1 else None


def is_foreign(name: str) -> bool:
    """True for folders that data sets keep beside their images, which are never classes."""
    return re.sub(r"[^a-z]", "", name.lower()) in FOREIGN
