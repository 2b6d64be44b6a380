"""The device on which this process computes."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from upvit_core.errors import UnsupportedModelError


@contextmanager
def exact_float32() -> Iterator[None]:
    """Float32 products and convolutions of a GPU are float32 inside, whatever is allowed outside (TF32 has 11 bits)."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            yield
    finally:
        torch.set_float32_matmul_precision(before)


def use(name: str) -> str:
    """Make a device torch's current one before anything is allocated; returns its name.

    Raises UnsupportedModelError where this machine does not have it.
    """
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    count = torch.cuda.device_count()
    if device is None or device.type not in ("cpu", "cuda") or (device.index or 0) >= (count or 1):
        raise UnsupportedModelError(f"There is no device {name!r} here; give cpu, auto, or cuda:N of {count} GPUs.")
    if device.type == "cuda":
        if not count:
            raise UnsupportedModelError(f"torch finds no GPU here, and {name} was asked for; give --device cpu.")
        torch.cuda.set_device(device)
    return name
