"""Devices, without torch: their names, their memory, and the leases by which a run holds them."""

import os
import re
import shutil
import socket
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import psutil

from upvit_core.atomic import locked
from upvit_core.errors import RunError
from upvit_core.ranks import local_process_count, local_rank, process_count

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
    windows = Path("/dev/dxg").exists() and shutil.which("nvidia-smi")  # a GPU of Windows, seen from its Linux
    return "cuda:0" if Path("/dev/nvidiactl").exists() or windows else "cpu"


def gpu_names() -> tuple[str, ...]:
    """The GPUs that this process may use by torch's names, without asking the driver."""
    if default_device() == "cpu":
        return ()
    count = len(_visible()) or len(list(Path("/dev").glob("nvidia[0-9]*"))) or 1
    return tuple(f"cuda:{number}" for number in range(count))


def own_device(wanted: str | None = None) -> str:
    """The device on which this process computes, of those that are wanted (None: `auto`).

    Processes that were started together on a machine take a GPU each, in turn. A process alone takes for `auto` the
    GPU with the most memory free of those that no run holds. Raises RunError where several processes want a GPU by
    its number.
    """
    first = lease_name(wanted or "auto")
    if first == "cpu":
        return first
    if process_count() > 1:
        if wanted not in (None, "auto", "cuda"):
            raise RunError(
                f"Several processes take a GPU each, so --device {wanted} cannot hold for all; leave it out, or name "
                "their GPUs in CUDA_VISIBLE_DEVICES."
            )
        return f"cuda:{local_rank() % len(_visible() or range(local_process_count()))}"
    if wanted not in (None, "auto") or len(gpu_names()) < 2:
        return first
    unheld = [name for name in gpu_names() if not is_held(name)]
    return freest_first(unheld or gpu_names())[0]


def freest_first(names: Sequence[str]) -> list[str]:
    """The GPU with the most memory free first."""
    free = {device.name: device.free for device in _gpus()}
    return sorted(names, key=lambda name: -free.get(name, 0))


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


def candidates(device: str, processes: int = 1) -> tuple[tuple[str, ...], int]:
    """The devices of which a run takes some, and how many: for `auto` any GPUs, else those of `lease_names`."""
    names = gpu_names()
    if device != "auto" or len(names) <= processes:
        names = lease_names(device, processes)
    return names, min(processes, len(names))


def lease_folder() -> Path:
    """The folder of this machine's leases, whichever runs folder a run is in; UPVIT_LEASES takes another place."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "upvit-studio" / "leases"
    return Path(os.environ.get("UPVIT_LEASES") or cache) / socket.gethostname()


def lease(name: str) -> AbstractContextManager[bool]:
    """Try to take a device; the kernel gives it back when the holder ends, however it ends."""
    folder, visible = lease_folder(), _visible()
    folder.mkdir(parents=True, exist_ok=True)
    number = name.partition(":")[2]
    if number.isdigit() and int(number) < len(visible):  # by the machine's number, which all processes share
        name = f"cuda:{visible[int(number)]}"
    return locked(folder / f"{name.replace(':', '-').replace('/', '-')}.lock")


def is_held(name: str) -> bool:
    """True if some process holds the device."""
    with lease(name) as free:
        return not free


@contextmanager
def leases(names: Sequence[str], count: int | None = None) -> Iterator[tuple[str, ...]]:
    """Try to take `count` of several devices (None: all), the freest of them; yields those taken.

    They are so many or none, so that nobody keeps one while waiting for another.
    """
    count = len(names) if count is None else count
    with ExitStack() as stack:
        taken: dict[str, ExitStack] = {}
        for name in sorted(names):
            own = stack.enter_context(ExitStack())
            if own.enter_context(lease(name)):
                taken[name] = own
        kept = tuple(freest_first(list(taken)) if len(taken) > count else taken)[:count]
        for name in taken if len(kept) < count else taken.keys() - set(kept):
            taken[name].close()
        yield kept if len(kept) == count else ()


def devices() -> list[Device]:
    """The GPUs that this process may use, in torch's order, then the CPU."""
    return [*_gpus(), _cpu()]


def devices_named(names: Sequence[str]) -> list[Device]:
    """These devices as they are now; those that this machine does not have are left out."""
    return [device for device in ([_cpu()] if "cpu" in names else _gpus()) if device.name in names]


def devices_for(device: str, processes: int = 1) -> list[Device]:
    """The devices that a run would get now, or the freest of those that it may get."""
    names, count = candidates(device, processes)
    return sorted(devices_named(names), key=lambda found: -found.free)[:count]


def show_only(names: Sequence[str]) -> None:
    """Hide every GPU but these from torch, which is not imported yet."""
    numbers = [int(name.partition(":")[2]) for name in names if ":" in name]
    if numbers:
        visible = _visible()
        chosen = [visible[n] for n in numbers if n < len(visible)] if visible else list(map(str, numbers))
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(chosen)


def _visible() -> list[str]:
    """The names in CUDA_VISIBLE_DEVICES, in order; empty where it is not set."""
    return [word.strip() for word in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if word.strip()]


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
        table, listing = (
            subprocess.run(asked, capture_output=True, text=True, timeout=QUERY_SECONDS, check=True).stdout
            for asked in (command, ["nvidia-smi", "-L"])
        )
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        return parse_instances(listing, visible) or parse_gpus(table, visible)
    return []


MIG = re.compile(r"MIG (\S*?(\d+)gb\S*)\s.*\(UUID: (MIG-[^)]+)\)")


def parse_instances(listing: str, visible: str | None) -> list[Device]:
    """Parts of GPUs (MIG) of `nvidia-smi -L`: those that CUDA_VISIBLE_DEVICES names, else the first, as CUDA does.

    The driver does not tell how much of a part is in use, so all of it counts as free, which the label says.
    """
    found = [match.groups() for match in map(MIG.search, listing.splitlines()) if match]
    if visible is not None:
        words = [word.strip() for word in visible.split(",") if word.strip().startswith("MIG-")]
        found = [part for word in words for part in found if part[2].startswith(word)]
    parts = found if visible is not None else found[:1]
    return [
        Device(f"cuda:{n}", f"GPU {n}, MIG {profile} (its use is not known)", int(size) << 30, int(size) << 30)
        for n, (profile, size, _) in enumerate(parts)
    ]


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
