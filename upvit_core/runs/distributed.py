"""The processes that train one run together: the first one writes, all of them decide at the same step.

Every method is collective: all processes call it, in the same order. With one process each returns at once.
"""

from dataclasses import dataclass
from typing import TypeVar

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import broadcast_object_list, gather_object
from torch import Tensor

from upvit_core.ranks import part_at_exit
from upvit_core.runs.devices import default_device
from upvit_core.training.distillation import PATIENCE

T = TypeVar("T")


@dataclass(frozen=True)
class Team:
    """The processes behind an Accelerator."""

    accelerator: Accelerator

    @property
    def size(self) -> int:
        return self.accelerator.num_processes

    @property
    def rank(self) -> int:
        return self.accelerator.process_index

    @property
    def is_first(self) -> bool:
        """True if this is the process that writes the run's files."""
        return self.accelerator.is_main_process

    def agree(self, *asked: bool) -> tuple[bool, ...]:
        """For each question, whether any process says yes."""
        if self.size == 1:
            return asked
        votes = torch.tensor(asked, dtype=torch.int32, device=self.accelerator.device)
        return tuple(bool(count) for count in self.accelerator.reduce(votes, reduction="sum").tolist())

    def broadcast(self, value: T) -> T:
        """The first process's `value`, on every process."""
        if self.size == 1:
            return value
        box = [value]
        broadcast_object_list(box, from_process=0)
        return box[0]

    def concatenate(self, tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Each tensor with those of the other processes behind it, by their number, along the first dimension."""
        if self.size == 1:
            return tensors
        shares: list[tuple[Tensor, ...]] = gather_object([tensors])
        return tuple(torch.cat(parts) for parts in zip(*shares, strict=True))


def meet(folder: str, device: str) -> str:
    """The run folder that the first process names, on every process."""
    device = default_device() if device == "auto" else device
    PartialState(cpu=device == "cpu", timeout=PATIENCE)
    part_at_exit()
    box = [folder]
    broadcast_object_list(box, from_process=0)
    return box[0]
