"""The rank of this process among several, as `torchrun`, `accelerate launch` or Slurm set it. Imports no torch."""

import atexit
import ctypes
import gc
import os
import signal
import sys

from upvit_core.paths import PROJECT

PR_SET_PDEATHSIG = 1  # <sys/prctl.h>


def process_count() -> int:
    """Number of processes that were started together; 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """This process's number, from 0; the first one writes files."""
    return int(os.environ.get("RANK", "0"))


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
