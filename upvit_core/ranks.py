"""The rank of this process among several, as `torchrun`, `accelerate launch` or Slurm set it. Imports no torch."""

import atexit
import ctypes
import gc
import os
import signal
import sys
from datetime import timedelta

from upvit_core.paths import PROJECT

PR_SET_PDEATHSIG = 1  # <sys/prctl.h>
PATIENCE = timedelta(hours=2)  # that processes wait for each other: the first one measures alone


def process_count() -> int:
    """Number of processes that were started together; 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """This process's number, from 0; the first one writes files."""
    return int(os.environ.get("RANK", "0"))


def local_process_count() -> int:
    """Number of them on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE") or process_count())


def local_rank() -> int:
    """This process's number on its machine, from 0."""
    return int(os.environ.get("LOCAL_RANK") or rank() % local_process_count())


def own_cores() -> int:
    """CPU cores for this process: those it may run on, divided among a launcher's processes on this machine."""
    own = os.environ.get("SLURM_CPUS_PER_TASK")
    if own and os.environ.get("SLURM_NTASKS") == str(process_count()):  # each process is a task of its own
        return int(own)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(cores // local_process_count(), 1)


def die_with_parent(parent: int) -> None:
    """Have Linux kill this process when its parent ends in any way; other systems have no such call."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it ended before it was asked for
            os._exit(1)


def part_at_exit() -> None:
    """Close connections to other processes before the interpreter ends: left alone, torch's threads may abort it."""
    atexit.unregister(_part)
    atexit.register(_part)


def _part() -> None:
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        gc.collect()  # a wrapped model holds the group, whose threads end with its last holder
        distributed.destroy_process_group()


def python_path() -> str:
    """PYTHONPATH of a process that finds this package wherever it is started."""
    return os.pathsep.join(filter(None, [str(PROJECT), os.environ.get("PYTHONPATH", "")]))
