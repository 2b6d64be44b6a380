"""Batches that do not fit into memory, run in smaller parts.

In training, gradients of the parts add up to the whole batch's: both terms of the loss are means over the batch, so the
part of b of B images counts b/B; what is drawn inside the model (stochastic depth) is drawn part by part.
"""

import gc
import itertools
from collections.abc import Callable, Iterator
from typing import TypeVar

import torch
from torch import Tensor

from upvit_core.errors import MemoryLimitError, RunError

Result = TypeVar("Result")
Batch = TypeVar("Batch", Tensor, range)


def is_out_of_memory(error: BaseException) -> bool:
    """True where a device, or the CPU's allocator, had no room; a process that Linux kills raises nothing."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(mark in str(error) for mark in ("alloc_cpu", "allocate memory"))


def in_halves(
    compute: Callable[[Batch], Result], batch: Batch, size: int | None = None
) -> Iterator[tuple[Batch, Result]]:
    """Parts of a batch, of `size` at first, with what `compute` returns; a part that does not fit in memory is halved.

    Raises MemoryLimitError where a single item does not fit.
    """
    size, first = size or len(batch), 0
    while first < len(batch):
        part = batch[first : first + size]
        try:
            result = compute(part)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if len(part) == 1:
                raise MemoryLimitError(
                    "Not even one at a time fits into memory; close other programs, or use a larger machine."
                ) from error
            size = max(1, len(part) // 2)
        else:
            yield part, result
            first += len(part)
            continue
        free_memory()


def free_memory() -> None:
    """Return what a failed step held to the device."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def bounds(images: int, parts: int) -> list[tuple[int, int]]:
    """First and last (excluded) image of each of `parts` parts, whose sizes differ by at most one."""
    edges = [images * i // parts for i in range(parts + 1)]
    return list(itertools.pairwise(edges))


def halved(images: int, parts: int, processes: int) -> int:
    """Twice as many parts, once what the failed step held is freed. Raises RunError where no smaller part is left."""
    free_memory()
    if processes > 1:  # the others wait inside this step already
        raise RunError(
            f"One of {processes} processes ran out of memory with {-(-images // parts)} images at once; start again "
            "with a smaller batch_size, or with more processes."
        )
    if images // parts < 2:
        raise RunError(
            "The device ran out of memory with a single image; free memory on it, or choose a larger device or a "
            "smaller model."
        )
    return min(2 * parts, images)


def sentence(images: int, parts: int) -> str:
    """The note in the log and the app."""
    largest = max(last - first for first, last in bounds(images, parts))
    return f"Out of memory: the batch of {images} is trained {largest} images at a time, gradients added up."
