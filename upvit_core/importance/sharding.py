"""Scoring by several processes: each takes a part of the proxy set, and the sums over images are added.

Processes are started by `accelerate launch` or `torchrun`, on one machine or many; Hugging Face Accelerate connects
them. Scores that are sums over images add up exactly; standard errors are rebuilt from sums of squares.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from upvit_core.data import ProxySet
from upvit_core.errors import ScoresError
from upvit_core.ranks import part_at_exit, process_count, rank
from upvit_core.records.scores import ImportanceScores


def own_shard(proxy: ProxySet) -> ProxySet:
    """This process's part of the proxy set, every WORLD_SIZE-th image.

    Raises ScoresError where there are fewer images than processes.
    """
    count = process_count()
    if len(proxy) < count:
        raise ScoresError(f"{len(proxy)} proxy images cannot be shared by {count} processes; use fewer processes.")
    return replace(proxy, indices=proxy.indices[rank() :: count])


def all_reduce_scores(record: ImportanceScores, proxy: ProxySet, device: str) -> ImportanceScores:
    """The record of the whole proxy set, on every process, from each process's part."""
    from accelerate import PartialState
    from accelerate.utils import gather_object

    PartialState(cpu=not device.startswith("cuda"))
    part_at_exit()
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
            stderr[key] = np.sqrt(np.maximum(squares - total**2 / images, 0) * images / (images - 1))
    seconds = max(record.seconds for record in records)
    return replace(first, values=values, stderr=stderr, images=images, seconds=seconds)


def _squares(record: ImportanceScores, key: str) -> np.ndarray:
    """Sum of squares over images, from the standard error of the sum."""
    n = record.images
    return record.stderr[key] ** 2 * (n - 1) / n + record.values[key] ** 2 / n
