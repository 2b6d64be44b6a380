"""Folders that the app writes to: under $UPVIT_HOME, else the user's cache; runs in `runs/` of where it was started."""

import os
from pathlib import Path


def home() -> Path:
    return Path(os.environ.get("UPVIT_HOME") or Path.home() / ".cache" / "upvit-studio").expanduser()


def _made(name: str) -> Path:
    folder = home() / name
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def uploads() -> Path:
    return _made("uploads")


def scores() -> Path:
    return _made("scores")


def looks() -> Path:
    return _made("looks")


def pruned() -> Path:
    return _made("pruned")


def plans() -> Path:
    return _made("plans")


def workshop() -> Path:
    return _made("workshop")


def runs() -> Path:
    """The folder of runs: $UPVIT_RUNS, else `runs`, as on the command line."""
    return Path(os.environ.get("UPVIT_RUNS") or "runs").expanduser()
