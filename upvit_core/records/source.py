"""The name of a model with the number of heads that a person gave for it."""

from __future__ import annotations

from dataclasses import dataclass

from upvit_core.errors import CheckpointError

MARK = "#heads="


@dataclass(frozen=True)
class Source:
    """A path or name for `load_model`, and a head count (None: its configuration's); as text `path#heads=12`."""

    path: str
    heads: int | None = None

    def __str__(self) -> str:
        return f"{self.path}{MARK}{self.heads}" if self.path and self.heads else self.path

    @classmethod
    def parse(cls, text: str | None) -> Source:
        """Raises CheckpointError where the number of heads is not a whole number above 0."""
        path, mark, heads = (text or "").partition(MARK)
        if not mark:
            return cls(path)
        if not (heads.isascii() and heads.isdigit()) or int(heads) < 1:
            raise CheckpointError(f"{heads!r} is not a number of heads; give a whole number from 1 up.")
        return cls(path, int(heads))
