"""Work of several processes: each takes a part of the proxy set, and the sums over images are added.

Processes are started by `accelerate launch` or `torchrun`, on one machine or many; Hugging Face Accelerate connects
them. Scores that are sums over images add up exactly; standard errors are rebuilt from sums of squares. Every function
here is collective: all processes call it, in the same order. A process alone returns at once.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from upvit_core.data import ProxySet
from upvit_core.errors import ScoresError
from upvit_core.importance.criterion import Proxy, standard_error
from upvit_core.ranks import PATIENCE, part_at_exit, process_count, rank
from upvit_core.records.scores import ImportanceScores

T = TypeVar("T")
ProxyT = TypeVar("ProxyT", bound=Proxy)


def own_shard(proxy: ProxyT) -> ProxyT:
    """This process's part of the proxy set, every WORLD_SIZE-th image.

    Raises ScoresError where there are fewer images than processes.
    """
    count = process_count()
    if count == 1:
        return proxy
    if len(proxy) < count:
        raise ScoresError(f"{len(proxy)} proxy images cannot be shared by {count} processes; use fewer processes.")
    assert isinstance(proxy, ProxySet)
    return replace(proxy, indices=proxy.indices[rank() :: count])


def connect(device: torch.device | str) -> None:
    """Join the other processes, by NCCL where tensors are on GPUs."""
    from accelerate import PartialState

    PartialState(cpu=not str(device).startswith("cuda"), timeout=PATIENCE)
    part_at_exit()


def add_up(*tensors: Tensor) -> None:
    """Replace each contiguous tensor by its sum over the processes."""
    if process_count() > 1:
        connect(tensors[0].device)
        for tensor in tensors:
            torch.distributed.all_reduce(tensor)


def agree(*tensors: Tensor) -> None:
    """Replace each tensor by the first process's, so that no rounding makes processes go different ways."""
    if process_count() > 1:
        connect(tensors[0].device)
        for tensor in tensors:
            whole = tensor.contiguous()
            torch.distributed.broadcast(whole, 0)
            tensor.copy_(whole)


def own_items(items: Sequence[T]) -> Sequence[T]:
    """This process's part of work that is not by image."""
    return items[rank() :: process_count()]


def merge(values: Mapping[str, np.ndarray], device: torch.device | str) -> dict[str, np.ndarray]:
    """The arrays of all processes, each key from whoever has it."""
    if process_count() == 1:
        return dict(values)
    from accelerate.utils import gather_object

    connect(device)
    parts: list[dict[str, np.ndarray]] = gather_object([dict(values)])
    return {key: value for part in parts for key, value in part.items()}


def all_reduce_scores(record: ImportanceScores, proxy: Proxy, device: torch.device | str) -> ImportanceScores:
    """The record of the whole proxy set, on every process, from each process's part."""
    if process_count() == 1:
        return record
    from accelerate.utils import gather_object

    connect(device)
    records: list[ImportanceScores] = gather_object([record])
    return replace(add(records), data_digest=proxy.digest)


def add(records: Sequence[ImportanceScores]) -> ImportanceScores:
    """One record of disjoint image sets from the records of each. Raises ScoresError where scores are not sums."""
    first = records[0]
    if not first.is_sum:
        raise ScoresError(f"Scores by {first.criterion} are no sums over images; score them with one process.")
    images = sum(record.images for record in records)
    values = {key: np.sum([record.values[key] for record in records], axis=0) for key in first.values}
    stderr = {}
    if all(record.stderr for record in records):
        for key, total in values.items():
            squares = np.sum([_squares(record, key) for record in records], axis=0)
            stderr[key] = standard_error(total, squares, images)
    seconds = max(record.seconds for record in records)
    return replace(first, values=values, stderr=stderr, images=images, seconds=seconds)


def _squares(record: ImportanceScores, key: str) -> np.ndarray:
    """Sum of squares over images, from the standard error of the sum."""
    n = record.images
    return record.stderr[key] ** 2 * (n - 1) / n + record.values[key] ** 2 / n
