"""Devices, without torch: their names, their memory, and the leases by which a run holds them."""

import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import psutil

from upvit_core.atomic import locked

CGROUP = Path("/sys/fs/cgroup")
QUERY_SECONDS = 10.0


@dataclass(frozen=True)
class Device:
    """`name` as runs ask for it (`cpu`, `cuda:0`); bytes of its memory in all and free now."""

    name: str
    label: str
    total: int
    free: int

    @property
    def used(self) -> int:
        return self.total - self.free


@cache
def default_device() -> str:
    """`cuda:0` where this machine shows an NVIDIA GPU to this process, else `cpu`."""
    if os.environ.get("CUDA_VISIBLE_DEVICES", "0") in ("", "-1"):
        return "cpu"
    return "cuda:0" if Path("/dev/nvidiactl").exists() else "cpu"


def lease_name(device: str) -> str:
    """Name of the queue in which a run on `device` waits."""
    device = default_device() if device == "auto" else device
    return "cuda:0" if device == "cuda" else device


def lease_names(device: str, processes: int = 1) -> tuple[str, ...]:
    """The devices that a run holds: its own, or with several processes a GPU each, counted from the one it names."""
    first = lease_name(device)
    if first == "cpu" or processes == 1:
        return (first,)
    number = int(first.partition(":")[2])
    return tuple(f"cuda:{number + offset}" for offset in range(processes))


def lease(root: Path, name: str) -> AbstractContextManager[bool]:
    """Try to take a device; the kernel gives it back when the holder ends, however it ends."""
    folder = root / ".leases"
    folder.mkdir(exist_ok=True)
    return locked(folder / f"{name.replace(':', '-')}.lock")


@contextmanager
def leases(root: Path, names: Sequence[str]) -> Iterator[bool]:
    """Try to take several devices: all of them or none, so that nobody keeps one while waiting for another."""
    with ExitStack() as stack:
        if not all(stack.enter_context(lease(root, name)) for name in sorted(names)):
            stack.close()
            yield False
        else:
            yield True


def devices() -> list[Device]:
    """The GPUs that this process may use, in torch's order, then the CPU."""
    return [*_gpus(), _cpu()]


def device_named(name: str) -> Device | None:
    """The device that a run names; None where this machine has none."""
    wanted = lease_name(name)
    if wanted == "cpu":
        return _cpu()
    return next((device for device in _gpus() if device.name == wanted), None)


def show_only(name: str, count: int = 1) -> None:
    """Hide every GPU from torch, which is not imported yet, but the `count` ones from the one that a run names on."""
    number = name.partition(":")[2]
    if number:
        visible = [word.strip() for word in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if word.strip()]
        wanted = range(int(number), int(number) + count)
        chosen = visible[wanted.start : wanted.stop] if visible else list(map(str, wanted))
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(chosen)


def _cpu() -> Device:
    """This machine's memory, or what its container may use of it."""
    memory = psutil.virtual_memory()
    total, free = memory.total, memory.available
    with suppress(OSError, ValueError):
        allowed = int((CGROUP / "memory.max").read_text())
        inactive = _cgroup_cache()
        total = min(total, allowed)
        free = min(free, max(allowed - int((CGROUP / "memory.current").read_text()) + inactive, 0))
    return Device("cpu", f"CPU, {os.cpu_count()} cores", total, free)


def _cgroup_cache() -> int:
    """File pages that are given up when memory is wanted."""
    for line in (CGROUP / "memory.stat").read_text().splitlines():
        if line.startswith("inactive_file "):
            return int(line.split()[1])
    return 0


def _gpus() -> list[Device]:
    if default_device() == "cpu" or not shutil.which("nvidia-smi"):
        return []
    command = ["nvidia-smi", "--query-gpu=index,uuid,name,memory.total,memory.free", "--format=csv,noheader,nounits"]
    with suppress(OSError, subprocess.SubprocessError):
        query = subprocess.run(command, capture_output=True, text=True, timeout=QUERY_SECONDS, check=True)
        return parse_gpus(query.stdout, os.environ.get("CUDA_VISIBLE_DEVICES"))
    return []


def parse_gpus(table: str, visible: str | None) -> list[Device]:
    """GPUs of nvidia-smi's table (index, uuid, name, MiB in all, MiB free), numbered as CUDA_VISIBLE_DEVICES says."""
    rows = [[cell.strip() for cell in line.split(",")] for line in table.splitlines() if line.count(",") == 4]
    if visible is not None:
        wanted = [word.strip() for word in visible.split(",") if word.strip()]
        rows = [row for word in wanted for row in rows if row[0] == word or (len(word) > 4 and row[1].startswith(word))]
    gpus = []
    for number, (_, _, name, total, free) in enumerate(rows):
        if total.isdigit() and free.isdigit():
            gpus.append(Device(f"cuda:{number}", f"GPU {number}, {name}", int(total) << 20, int(free) << 20))
    return gpus
