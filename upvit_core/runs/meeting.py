"""Processes started by hand on a command line agree on the run folder before they work on it."""

from __future__ import annotations

from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from upvit_core.distillation import PATIENCE
from upvit_core.processes import part_at_exit
from upvit_core.runs.devices import default_device


def meet(folder: str, device: str) -> str:
    """The run folder that the first process names, on every process."""
    device = default_device() if device == "auto" else device
    PartialState(cpu=device == "cpu", timeout=PATIENCE)
    part_at_exit()
    box = [folder]
    broadcast_object_list(box, from_process=0)
    return box[0]
