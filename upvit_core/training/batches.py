"""Training batches whose content depends on (seed, epoch, position) alone, so that a run can go on anywhere.

Every epoch's order and every image's augmentation are drawn from their own seeds, whichever process makes them. Split
over processes, the batches together are those of one process; each process holds pairs i, B-1-i of the global batch,
which timm's Mixup mixes with each other. Sets of small images that fit in memory are augmented a batch at a time: for
28x28 images that is some fifty times faster than one by one.
"""

import os
import random
from collections.abc import Iterable, Iterator
from functools import partial
from itertools import groupby
from operator import itemgetter
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from upvit_core.data import ImageSet, eval_transform, training_transform
from upvit_core.data.images import Pixels
from upvit_core.data.text import TokenSet
from upvit_core.errors import DataError
from upvit_core.ranks import die_with_parent, own_cores

SMALL_SHIFTS = ((28, 2), (32, 4))
MOST_WORKERS = 16  # by default: each holds two batches ready


class BatchSource(Protocol):
    """Loads the images of batches, with an augmentation that depends on epoch and image."""

    @property
    def workers(self) -> int | None:
        """Number of processes that load images beside this one; None where the images are in memory."""

    def __len__(self) -> int: ...

    @property
    def pixels(self) -> Pixels | None:
        """Mean and standard deviation by which bytes are normalised; None where inputs are tokens."""

    def load(self, batches: Iterable[tuple[int, list[int]]]) -> Iterator[tuple[Tensor, Tensor]]:
        """For each (epoch, indices): images (b, C, H, W) in uint8, or tokens, and labels (b,)."""


def seed_host(*key: int) -> int:
    """Seed NumPy, Python and torch's generator of the CPU with a hash of `key`; returns torch's seed."""
    first, second = map(int, np.random.SeedSequence(key).generate_state(2, np.uint64))
    np.random.seed(second & 0xFFFFFFFF)
    random.seed(second)
    torch.default_generator.manual_seed(first >> 1)
    return first >> 1


def seed_everything(*key: int) -> None:
    """Seed NumPy, Python and all of torch's generators with a hash of `key`."""
    torch.manual_seed(seed_host(*key))


def own_positions(batch_size: int, rank: int, processes: int) -> list[int]:
    """Positions of the global batch that process `rank` holds: its share of the first half, and their mirror images."""
    half = batch_size // 2 // processes
    first = range(rank * half, (rank + 1) * half)
    return [*first, *(batch_size - 1 - i for i in reversed(first))]


class LoadedBatches:
    """Images decoded and augmented one by one, by `workers` processes beside this one."""

    def __init__(
        self, images: ImageSet, pretrained_cfg: dict[str, Any], *, seed: int, augment: bool, workers: int | None
    ):
        transform = training_transform(pretrained_cfg) if augment else eval_transform(pretrained_cfg, normalise=False)
        self.dataset = SeededDataset(images.dataset(transform), seed)
        self.count, self.pixels = len(images), images.pixels
        self.workers = min(own_cores() - 1, MOST_WORKERS) if workers is None else workers

    def __len__(self) -> int:
        return self.count

    def load(self, batches: Iterable[tuple[int, list[int]]]) -> Iterator[tuple[Tensor, Tensor]]:
        loader = DataLoader(
            self.dataset,
            batch_sampler=([(epoch, index) for index in batch] for epoch, batch in batches),
            num_workers=self.workers,
            worker_init_fn=partial(_start_worker, os.getpid()),
            pin_memory=torch.cuda.is_available(),
        )
        for images, labels in loader:
            yield images.permute(0, 3, 1, 2), labels


def _start_worker(parent: int, _: int) -> None:
    die_with_parent(parent)


class SeededDataset(Dataset[tuple[Tensor, int]]):
    """A data set whose item (epoch, index) is drawn with the seed of (seed, epoch, index)."""

    def __init__(self, images: Dataset[tuple[Tensor, int]], seed: int):
        self.images, self.seed = images, seed

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, int]:
        epoch, index = key
        seed_host(self.seed, epoch, index)
        image, label = self.images[index]
        return image.permute(1, 2, 0), label  # channels last, as the pixels are stored


class CachedBatches:
    """Small images kept as bytes; shifts of up to `max_shift` pixels (zeros come in) and flips for a whole batch."""

    workers = None

    def __init__(self, images: ImageSet, *, seed: int, max_shift: int, flip: bool = True):
        self.images, self.seed, self.max_shift, self.flip = images, seed, max_shift, flip
        self.pixels = images.pixels

    def __len__(self) -> int:
        return len(self.images)

    def load(self, batches: Iterable[tuple[int, list[int]]]) -> Iterator[tuple[Tensor, Tensor]]:
        kept = self.pixels.kept
        assert kept is not None
        for epoch, of_epoch in groupby(batches, key=itemgetter(0)):
            random_state = np.random.default_rng((self.seed, epoch, 1))
            shifts = torch.from_numpy(random_state.integers(0, 2 * self.max_shift + 1, (len(self), 2)))
            flips = torch.from_numpy(random_state.random(len(self)) < (0.5 if self.flip else 0.0))
            for _, batch in of_epoch:
                readable = torch.tensor([self._readable(index) for index in batch])
                x = shift_and_flip(kept[readable], shifts[batch], flips[batch], self.max_shift)
                yield x, torch.from_numpy(self.images.labels()[readable])

    def _readable(self, index: int) -> int:
        """`index`, or the next image that can be read."""
        for candidate in range(index, index + len(self)):
            if self.pixels.read(candidate % len(self)) is not None:
                return candidate % len(self)
        raise DataError(f"None of the {len(self)} images of {self.images.name} could be read; check the files.")


def shift_and_flip(x: Tensor, shifts: Tensor, flips: Tensor, max_shift: int) -> Tensor:
    """Move image i by `shifts[i] - max_shift` pixels, zeros coming in, then mirror it where `flips[i]`.

    x: (B, C, H, W); shifts: (B, 2), rows and columns, from 0 to 2·max_shift; flips: (B,) booleans.
    """
    B, _, H, W = x.shape
    padded = torch.nn.functional.pad(x, [max_shift] * 4)
    rows = shifts[:, :1] + torch.arange(H)  # (B, H)
    columns = shifts[:, 1:] + torch.arange(W)  # (B, W)
    columns = torch.where(flips[:, None], columns.flip(1), columns)
    return padded[torch.arange(B)[:, None, None], :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def batch_source(
    images: ImageSet, pretrained_cfg: dict[str, Any], *, seed: int, augment: bool = True, workers: int | None = None
) -> BatchSource:
    """The faster source that fits: in memory for up to 32 pixels where the whole set is kept, else image by image."""
    if isinstance(images, TokenSet):
        return TokenBlocks(images, seed=seed, augment=augment)
    side = max(images.pixels.size[1:])
    shift = next((shift for size, shift in SMALL_SHIFTS if side <= size), None)
    if images.pixels.kept is not None and (shift is not None or not augment):
        return CachedBatches(images, seed=seed, max_shift=shift if augment and shift else 0, flip=augment)
    return LoadedBatches(images, pretrained_cfg, seed=seed, augment=augment, workers=workers)


class TokenBlocks:
    """Blocks of a text; each epoch's begin at another token, so that the same words come in other places."""

    workers = pixels = None

    def __init__(self, blocks: TokenSet, *, seed: int, augment: bool):
        self.blocks, self.seed, self.augment = blocks, seed, augment

    def __len__(self) -> int:
        return len(self.blocks)

    def load(self, batches: Iterable[tuple[int, list[int]]]) -> Iterator[tuple[Tensor, Tensor]]:
        for epoch, batch in batches:
            random_state = np.random.default_rng((self.seed, epoch, 2))
            yield self.blocks.pairs(batch, int(random_state.integers(self.blocks.context)) if self.augment else 0)


class TrainingBatches:
    """Shuffled, augmented batches of an image set; the last, smaller batch of an epoch is left out.

    `batch_size` is the global one and even, so that images can be mixed in pairs; a smaller set makes it smaller.
    """

    def __init__(self, source: BatchSource, *, batch_size: int, seed: int, rank: int = 0, processes: int = 1):
        step = 2 * processes
        self.batch_size = min(batch_size, len(source)) // step * step
        if not self.batch_size:
            raise DataError(
                f"Training with {processes} process(es) needs batches of at least {step} images; batch_size is "
                f"{batch_size} and the set has {len(source)}: give more images or a larger batch_size."
            )
        self.source, self.seed = source, seed
        self.positions = own_positions(self.batch_size, rank, processes)

    @property
    def steps_per_epoch(self) -> int:
        return len(self.source) // self.batch_size

    def indices(self, epoch: int) -> np.ndarray:
        """The images that each step of an epoch takes, (steps, batch_size), over all processes."""
        order = np.random.default_rng((self.seed, epoch, 0)).permutation(len(self.source))
        return order[: self.steps_per_epoch * self.batch_size].reshape(-1, self.batch_size)

    def steps(self, first: int, last: int) -> Iterator[tuple[Tensor, Tensor]]:
        """This process's images (b, C, H, W) in uint8 and labels (b,), for the run's steps `first` to `last` - 1.

        The processes that load them stay alive across epochs.
        """
        return self.source.load(self._batches(first, last))

    def _batches(self, first: int, last: int) -> Iterator[tuple[int, list[int]]]:
        for epoch, steps in groupby(range(first, last), key=lambda step: step // self.steps_per_epoch):
            order = self.indices(epoch)[:, self.positions]
            yield from ((epoch, order[step % self.steps_per_epoch].tolist()) for step in steps)
