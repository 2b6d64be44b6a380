"""Devices by name, without torch: which one `auto` means here, and the lease that only one run at a time holds."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager
from functools import cache
from pathlib import Path

from upvit_core.runs.files import locked


@cache
def default_device() -> str:
    """`cuda:0` where this machine shows an NVIDIA GPU to this process, else `cpu`."""
    if os.environ.get("CUDA_VISIBLE_DEVICES", "0") in ("", "-1"):
        return "cpu"
    return "cuda:0" if Path("/dev/nvidiactl").exists() else "cpu"


def lease_name(device: str) -> str:
    """Name of the queue that a run on `device` stands in."""
    device = default_device() if device == "auto" else device
    return "cuda:0" if device == "cuda" else device


def lease(root: Path, name: str) -> AbstractContextManager[bool]:
    """Try to take a device; the kernel gives it back when the holder ends, however it ends."""
    folder = root / ".leases"
    folder.mkdir(exist_ok=True)
    return locked(folder / f"{name.replace(':', '-')}.lock")
