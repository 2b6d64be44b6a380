"""Checkpoints of a run: each replaces nothing until it is whole, is read without running code; two are kept."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from upvit_core.atomic import replaced

KEPT = 2
_NAME = re.compile(r"step-(\d{9})\.pt")


def save_checkpoint(folder: Path, state: dict[str, Any]) -> Path:
    """Write `state` (tensors and plain values, with its `step`), then drop all but the newest two."""
    folder.mkdir(exist_ok=True)
    path = folder / f"step-{state['step']:09d}.pt"
    with replaced(path) as temporary, temporary.open("wb") as file:  # given a path, torch hides that the disk is full
        torch.save(state, file)
    for old in list_checkpoints(folder)[KEPT:]:
        old.unlink(missing_ok=True)
    return path


def list_checkpoints(folder: Path) -> list[Path]:
    """Newest first."""
    if not folder.is_dir():
        return []
    return sorted((p for p in folder.iterdir() if _NAME.fullmatch(p.name)), key=lambda p: p.name, reverse=True)


def load_step(folder: Path, step: int) -> dict[str, Any]:
    """The checkpoint of one step, which another process of the run has read before."""
    return torch.load(folder / f"step-{step:09d}.pt", map_location="cpu", weights_only=True)


def load_newest(folder: Path, warn: Callable[[str], None] = lambda message: None) -> dict[str, Any] | None:
    """The newest checkpoint that can be read, or None; `warn` receives a sentence for each that cannot."""
    for path in list_checkpoints(folder):
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
            if isinstance(state, dict) and "step" in state:
                return state
            warn(f"{path.name} is not a checkpoint of a run; trying the one before.")
        except Exception as error:  # torch's reader raises whatever a torn file leads it to
            why = (str(error).splitlines() or [type(error).__name__])[0][:200]
            warn(f"{path.name} cannot be read ({why}); trying the one before.")
    return None
