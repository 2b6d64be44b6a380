"""The last feature of a model, which its classifier reads, and the linear map from a student's to its teacher's."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


@contextmanager
def last_feature(model: nn.Module) -> Iterator[list[Tensor]]:
    """A list that receives what the classifier reads, (B, D) or of a text (B, T, D), at every forward pass inside."""
    seen: list[Tensor] = []
    handle = model.get_submodule("head").register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    try:
        yield seen
    finally:
        handle.remove()


def feature_map(student: nn.Module, teacher: nn.Module, seed: int) -> nn.Linear:
    """A linear map from the width of the student's last feature to the teacher's; its weights are drawn by `seed`."""
    inputs, outputs = (model.get_submodule("head").in_features for model in (student, teacher))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Linear(int(inputs), int(outputs))  # type: ignore[arg-type]
