"""Folders of this checkout, and the one way in which a text names a place."""

import os.path
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1]
DEMO_FOLDER = PROJECT / "assets" / "demo"


def place_of(text: str) -> Path:
    """The path that a text names, without blanks and `local-dir:` before it, and with `~` expanded where it can be."""
    return Path(os.path.expanduser(text.strip().removeprefix("local-dir:").strip()))
