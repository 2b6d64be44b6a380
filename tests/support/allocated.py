"""Memory as torch's profiler sees it allocated on the CPU."""

from collections.abc import Callable

import torch
from torch import Tensor, nn


def allocated(work: Callable[[], object]) -> int:
    """The most bytes that `work` holds at a time beyond those held before; it is called twice, measured once."""
    work()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        work()
    assert profile.profiler is not None
    held = highest = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            highest = max(highest, held)
    return highest


def peak(model: nn.Module, inputs: Tensor) -> int:
    """Bytes of a forward pass beyond weights and inputs."""
    with torch.inference_mode():
        return allocated(lambda: model(inputs))
