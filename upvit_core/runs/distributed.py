"""The processes that train one run together: the first one writes, all of them decide at the same step.

Every method is collective: all processes call it, in the same order. With one process each returns at once.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import broadcast_object_list, gather_object
from torch import Tensor

from upvit_core.ranks import PATIENCE, part_at_exit
from upvit_core.runs.devices import default_device

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
        return asked if self.size == 1 else self.cast(*asked)()

    def cast(self, *asked: bool) -> Callable[[], tuple[bool, ...]]:
        """Begin to ask; what is returned waits for the answers, and for no later work of the device."""
        device = self.accelerator.device
        votes = torch.cat([torch.full((1,), int(yes), dtype=torch.int32, device=device) for yes in asked])
        counts = self.accelerator.reduce(votes, reduction="sum").to("cpu", non_blocking=True)
        counted = torch.cuda.Event() if device.type == "cuda" else None
        if counted is not None:
            counted.record()

        def answers() -> tuple[bool, ...]:
            if counted is not None:
                counted.synchronize()
            return tuple(map(bool, counts.tolist()))

        return answers

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


class LateVote:
    """`Team.agree` in every step of a loop, answered a step later, so that no process waits for its device."""

    def __init__(self, team: Team):
        self.team = team
        self.before: Callable[[], tuple[bool, ...]] | None = None

    def __call__(self, *asked: bool) -> tuple[bool, ...]:
        if self.team.size == 1:
            return asked
        before, self.before = self.before, self.team.cast(*asked)
        answers = (False,) * len(asked) if before is None else before()
        if any(answers):  # what was asked since is the same again
            self.before = None
        return answers


def meet(folder: str, device: str) -> str:
    """The run folder that the first process names, on every process."""
    device = default_device() if device == "auto" else device
    PartialState(cpu=device == "cpu", timeout=PATIENCE)
    part_at_exit()
    box = [folder]
    broadcast_object_list(box, from_process=0)
    return box[0]
