"""A batch that does not fit into memory, in parts: their gradients add up to the whole batch's.

Both terms of the loss are means over the batch, so the part of b of B images counts b/B; what is drawn inside the model
(stochastic depth) is drawn part by part.
"""

from __future__ import annotations

import gc
import itertools

import torch

from upvit_core.errors import RunError


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device, or the allocator of the CPU, had no room; not whether Linux killed a process for it."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and "alloc_cpu" in str(error)


def bounds(images: int, parts: int) -> list[tuple[int, int]]:
    """First and last (excluded) image of each of `parts` parts, whose sizes differ by at most one."""
    edges = [images * i // parts for i in range(parts + 1)]
    return list(itertools.pairwise(edges))


def halved(images: int, parts: int, processes: int) -> int:
    """Twice as many parts, once what the failed step held is freed. Raises RunError where no smaller part is left."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
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
    """What the log and the app say."""
    largest = max(last - first for first, last in bounds(images, parts))
    return f"Out of memory: the batch of {images} is trained {largest} images at a time, gradients added up."
