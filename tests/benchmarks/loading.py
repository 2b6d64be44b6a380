"""Images a second that one core makes ready for training, two ways in turns: `python -m tests.benchmarks.loading`.

Before: timm's transforms to normalised float32, as a loader of it has them. Now: this project's loader, whose bytes are
normalised on the device. CPU seconds, so that other work on the machine counts little.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import median

import torch
from timm.data.transforms_factory import create_transform
from torch.utils.data import DataLoader, Dataset

from tests.benchmarks.gpu import write_jpegs
from tests.benchmarks.report import Row, publish
from upvit_core.data import open_images
from upvit_core.training.batches import batch_source, seed_everything

CFG = {"input_size": (3, 224, 224), "mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
BATCH = 64


class Floats(Dataset[tuple[torch.Tensor, int]]):
    """Each image seeded by itself, through timm's transforms for training."""

    def __init__(self, images: Dataset[tuple[torch.Tensor, int]]):
        self.images = images

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        seed_everything(0, 0, index)
        return self.images[index]


def rate(batches: Callable[[], Iterable[object]], count: int) -> float:
    """Images per CPU second of this process and its worker."""
    began = os.times()[:4]
    for _ in batches():
        pass
    return count / (sum(os.times()[:4]) - sum(began))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--epochs", type=int, default=8, help="in a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        write_jpegs(Path(folder), asked.images)
        size = sum(path.stat().st_size for path in Path(folder).rglob("*.jpg")) / asked.images
        images = open_images(folder, "train", pretrained_cfg=CFG, labelled=False)
        indices = [list(range(first, first + BATCH)) for first in range(0, asked.images, BATCH)] * asked.epochs
        timms = create_transform(**CFG, is_training=True, color_jitter=None, interpolation="bicubic")
        floats, source = Floats(images.dataset(timms)), batch_source(images, CFG, seed=0, workers=asked.workers)
        ways: dict[str, Callable[[], Iterable[object]]] = {
            "before: PIL to float32": lambda: DataLoader(floats, batch_sampler=indices, num_workers=asked.workers),
            "now: bytes": lambda: source.load((0, batch) for batch in indices),
        }
        found: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(asked.rounds):
            for name, way in ways.items():
                found[name].append(rate(way, asked.epochs * asked.images))
    first = next(iter(found.values()))
    rows: list[Row] = [
        {"loader": name, "images/s of one core": round(median(rates)), "times": median(rates) / median(first)}
        for name, rates in found.items()
    ]
    publish("loading", rows, asked.out, images=asked.images, rounds=asked.rounds, kilobytes=round(size / 1000))


if __name__ == "__main__":
    main()
