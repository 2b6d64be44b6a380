"""An opened image set: labels at once, pixels when asked for, unreadable images named and left out."""

from __future__ import annotations

import os
import struct
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from upvit_core.data.transforms import DEEP_TOLD, ToMode, data_config, eval_transform, is_deep
from upvit_core.errors import DataError
from upvit_core.files import Values, digest

CACHE_BYTES = 256 * 2**20
THREADED_PIXELS = 96 * 96
READ_ERRORS = (OSError, ValueError, SyntaxError, EOFError, struct.error, Image.DecompressionBombError)


class ImageSource(Protocol):
    """A reader of single images."""

    @property
    def labels(self) -> np.ndarray: ...

    @property
    def class_names(self) -> tuple[str, ...]: ...

    @property
    def digest(self) -> str: ...

    def load(self, index: int) -> Image.Image:
        """The image, decoded; raises one of READ_ERRORS where it cannot be."""

    def file_name(self, index: int) -> str:
        """The image's name in a message."""


class Pixels:
    """Decoded bytes after the evaluation transform, kept where the whole set is small; and what could not be read."""

    def __init__(self, source: ImageSource, pretrained_cfg: Values):
        config = data_config(pretrained_cfg)
        self.source, self.transform = source, eval_transform(pretrained_cfg, normalise=False)
        self.size = tuple(config["input_size"])  # (C, H, W)
        self.mean, self.std = (torch.tensor(config[key]).view(-1, 1, 1) for key in ("mean", "std"))
        self.unreadable: dict[int, str] = {}
        self.deep = False
        count = len(source.labels)
        self.filled = np.zeros(count, bool)
        fits = count * int(np.prod(self.size)) <= CACHE_BYTES
        self.kept = torch.empty((count, *self.size), dtype=torch.uint8) if fits else None

    def read(self, index: int) -> Tensor | None:
        """Bytes (C, H, W), or None where the image cannot be read."""
        if self.kept is not None and self.filled[index]:
            return self.kept[index]
        try:
            image = self.source.load(index)
            self.deep = self.deep or is_deep(image)
            pixels = self.transform(image)
        except READ_ERRORS:
            self.unreadable[index] = self.source.file_name(index)
            return None
        if self.kept is not None:
            self.kept[index] = pixels
            self.filled[index] = True
        return pixels

    def read_all(self, chunks: Iterable[np.ndarray]) -> Iterator[list[Tensor | None]]:
        """Each chunk's images; large ones are decoded by threads, one chunk ahead."""
        if self.size[1] * self.size[2] < THREADED_PIXELS:
            for chunk in chunks:
                yield [self.read(int(index)) for index in chunk]
            return
        pool = ThreadPoolExecutor(min(8, os.cpu_count() or 1))
        try:
            ahead: deque[list[Future[Tensor | None]]] = deque()
            for chunk in chunks:
                ahead.append([pool.submit(self.read, int(index)) for index in chunk])
                if len(ahead) > 1:
                    yield [future.result() for future in ahead.popleft()]
            while ahead:
                yield [future.result() for future in ahead.popleft()]
        finally:
            pool.shutdown(cancel_futures=True)


@dataclass(frozen=True)
class ImageSet:
    """Images of one split, with labels from 0 in the order of `class_names`.

    `digest` covers names, labels and file sizes, not transforms. `len` counts unreadable images too. `told` says how
    labels were found and which part of the set this is; `undivided`: the set has no splits of its own.
    """

    name: str
    split: str
    class_names: tuple[str, ...]
    digest: str
    source: ImageSource = field(repr=False, compare=False)
    pixels: Pixels = field(repr=False, compare=False)
    told: str = field(default="", kw_only=True)
    undivided: bool = field(default=False, kw_only=True)

    def __len__(self) -> int:
        return len(self.source.labels)

    @property
    def notes(self) -> str:
        """Notes for the reader: `told`, and the scaling of unusual images that were read so far."""
        return " ".join(filter(None, (self.told, DEEP_TOLD if self.pixels.deep else "")))

    @property
    def skipped(self) -> tuple[str, ...]:
        """Images that could not be read so far, by name."""
        return tuple(self.pixels.unreadable[index] for index in sorted(self.pixels.unreadable))

    def labels(self) -> np.ndarray:
        """Labels (N,) int64 of all images, readable or not."""
        return self.source.labels

    def answers(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """The right answers (N,) int64 to these images; of blocks of text, token by token (N · T,)."""
        return self.labels()[np.asarray(indices)]

    def readable(self, indices: Iterable[int]) -> np.ndarray:
        """The indices of images that have not proved unreadable so far."""
        return np.array([index for index in indices if index not in self.pixels.unreadable], dtype=np.int64)

    @property
    def answer_names(self) -> tuple[str, ...]:
        """Every answer as it is read."""
        return self.class_names

    def batches(
        self, batch_size: int, *, indices: Sequence[int] | np.ndarray | None = None, device: torch.device | str = "cpu"
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Normalised float32 (B, C, H, W) and labels (B,) in the order of `indices`, unreadable images left out.

        Raises DataError where none of the images can be read.
        """
        order = np.arange(len(self)) if indices is None else np.asarray(indices, dtype=np.int64)
        asked = len(order)
        if self.pixels.unreadable:
            order = order[~np.isin(order, list(self.pixels.unreadable))]
        chunks = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
        mean, std = self.pixels.mean.to(device), self.pixels.std.to(device)
        given = 0
        for chunk, images in zip(chunks, self.pixels.read_all(chunks), strict=True):
            kept = [position for position, image in enumerate(images) if image is not None]
            if not kept:
                continue
            given += len(kept)
            x = torch.stack([image for image in images if image is not None]).to(device)  # (B, C, H, W) bytes
            labels = torch.from_numpy(self.source.labels[chunk[kept]]).to(device)
            yield (x.to(torch.float32) / 255 - mean) / std, labels
        if not given:
            raise DataError(
                f"None of the {asked} images asked of {self.name} could be read "
                f"({', '.join(self.skipped[:3]) or 'none were asked for'}); check the files."
            )

    def image(self, index: int) -> Image.Image:
        """One image for showing, untransformed, grey or colour."""
        try:
            image = self.source.load(index)
            return image if image.mode in ("L", "RGB") else ToMode("RGB")(image)
        except READ_ERRORS as error:
            self.pixels.unreadable[index] = self.source.file_name(index)
            raise DataError(f"{self.source.file_name(index)} is not a readable image ({error}).") from error

    def dataset(self, transform: Callable[[Image.Image], Tensor]) -> Dataset[tuple[Tensor, int]]:
        """(transformed image, label) for a loader; an unreadable image gives way to the next readable one."""
        return _Transformed(self.source, transform, self.pixels.unreadable)


class _Transformed(Dataset[tuple[Tensor, int]]):
    def __init__(self, source: ImageSource, transform: Callable[[Image.Image], Tensor], unreadable: dict[int, str]):
        self.source, self.transform, self.unreadable = source, transform, unreadable

    def __len__(self) -> int:
        return len(self.source.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        count = len(self)
        if not -count <= index < count:
            raise IndexError(index)
        for candidate in ((index + step) % count for step in range(count)):
            if candidate in self.unreadable:
                continue
            try:
                image = self.source.load(candidate)
            except READ_ERRORS:
                self.unreadable[candidate] = self.source.file_name(candidate)
                continue
            return self.transform(image), int(self.source.labels[candidate])
        raise DataError(f"None of {count} images could be read; check the files.")


def digest_of(entries: Iterable[object]) -> str:
    """First 16 hex digits of the SHA-256 over the entries' text."""
    return digest("\n".join(map(str, entries)))
