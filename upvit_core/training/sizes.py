"""The interface of an elastic student to its distillation."""

from collections.abc import Sequence
from typing import Any, Protocol

from torch import nn


class Sizes(Protocol):
    """The sizes of an elastic student, several of which are trained in each step."""

    def wrap(self, student: nn.Module) -> nn.Module:
        """A module whose forward pass takes images and a size, with the parameters of `student`."""

    def draw(self, step: int) -> Sequence[Any]:
        """The sizes of a step, the same in every process."""
