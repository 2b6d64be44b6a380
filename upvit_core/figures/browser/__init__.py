"""Browser scripts that several components share."""

from functools import cache
from pathlib import Path


@cache
def text_of(*names: str) -> str:
    """The scripts of these files, joined in this order."""
    return "\n".join((Path(__file__).parent / name).read_text(encoding="utf-8") for name in names) + "\n"
