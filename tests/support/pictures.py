"""Folders of made-up pictures, opened as image sets."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from upvit_core.data import ImageSet, open_images
from upvit_core.paths import DEMO_FOLDER

COLOUR = {
    "input_size": (3, 16, 16), "mean": (0.4, 0.5, 0.6), "std": (0.2, 0.3, 0.4), "crop_pct": 0.8,
    "interpolation": "bicubic",
}  # fmt: skip
GREY = {"input_size": (1, 28, 28), "mean": (0.286,), "std": (0.353,), "crop_pct": 1.0, "interpolation": "bicubic"}
CLASSES = ("ant", "bee", "cat")


def picture(seed: int, size: tuple[int, int] = (20, 24), mode: str = "RGB") -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    return Image.fromarray(noise).convert(mode)


def fill(folder: Path, counts: dict[str, int], seed: int = 0) -> Path:
    for number, (name, count) in enumerate(counts.items()):
        (folder / name).mkdir(parents=True)
        for index in range(count):
            picture(seed + 1000 * number + index).save(folder / name / f"{index:03}.png")
    return folder


def opened(spec: object, split: str = "train", **arguments: object) -> ImageSet:
    return open_images(str(spec), split, **{"pretrained_cfg": COLOUR, **arguments})  # type: ignore[arg-type]


def files(images: ImageSet) -> list[str]:
    return [images.source.file_name(index) for index in range(len(images))]


def fashion(root: Path, name_of: Callable[[int, str], str], count: int = 10) -> Path:
    """`val/` with so many of the demo's own test images of each class, in folders called `name_of(index, name)`."""
    with np.load(DEMO_FOLDER / "test.npz") as arrays:
        for index, name in enumerate(map(str, arrays["classes"])):
            folder = root / "val" / name_of(index, name)
            folder.mkdir(parents=True)
            for number in np.flatnonzero(arrays["labels"] == index)[:count]:
                Image.fromarray(arrays["images"][number]).save(folder / f"{number}.png")
    return root
