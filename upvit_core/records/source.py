"""The name of a model with what a person said about opening it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from urllib.parse import parse_qsl, quote

from upvit_core.errors import CheckpointError

MARK, QUOTES = "#", "'\""
LARGEST_SIDE = 2048
FLAGS = {"heads": "num_heads", "size": "img_size"}


@dataclass(frozen=True)
class Source:
    """A path or name for `load_model` with its options, as text `path#heads=12` or `path#heads=6,4,5&weights=model`.

    `heads` and `head_dim` are one number or one a block, `weights` names one of a file's state dicts, `mean` and `std`
    are those of normalisation, one or one a colour, `size` is that of images, a side or height and width; "" leaves
    each to the file.
    """

    path: str
    heads: str = ""
    head_dim: str = ""
    weights: str = ""
    mean: str = ""
    std: str = ""
    size: str = ""

    def __str__(self) -> str:
        options = "&".join(f"{name}={quote(value, safe=',._')}" for name, value in self.options.items())
        return f"{self.path}{MARK}{options}" if self.path and options else self.path

    @property
    def options(self) -> Mapping[str, str]:
        """The options that were given, by name."""
        values = {field.name: str(getattr(self, field.name)) for field in fields(self)[1:]}
        return {name: value for name, value in values.items() if value}

    @property
    def flags(self) -> Mapping[str, str]:
        """The same as options of the command line."""
        return {FLAGS.get(name, name): value for name, value in self.options.items()}

    def with_flags(self, **flags: str | None) -> Source:
        """The same model with these options of the command line in place of its own; None leaves its own."""
        own = {flag: name for name, flag in FLAGS.items()}
        return replace(self, **{own.get(flag, flag): value for flag, value in flags.items() if value is not None})

    @classmethod
    def parse(cls, text: str | None) -> Source:
        """Raises CheckpointError where a number is none; a `#` that no option follows belongs to the path."""
        text = (text or "").strip()
        if len(text) > 1 and text[0] == text[-1] and text[0] in QUOTES:  # as a file manager copies a path
            text = text[1:-1].strip()
        text = text.removeprefix("file://")
        path, mark, rest = text.rpartition(MARK)
        names = {field.name for field in fields(cls)[1:]}
        options = dict(parse_qsl(rest, keep_blank_values=True)) if mark else {}
        if not options or not set(options) <= names:
            return cls(text)
        for name in ("heads", "head_dim"):
            numbers = options.get(name, "1").split(",")
            if not all(re.fullmatch("0*[1-9][0-9]{0,8}", number) for number in numbers):
                raise CheckpointError(
                    f"{options[name][:40]!r} is not a number of heads; give a whole number from 1 up, or one for "
                    "each block with commas between."
                )
        return cls(path, **options)


def sides_of(text: str) -> tuple[int, int] | None:
    """Height and width of images in pixels from `224` or `224,448`, None from "". Raises CheckpointError."""
    if not text:
        return None
    sides = text.replace(" ", "").split(",")
    numbers = [int(side) for side in sides if re.fullmatch("[0-9]{1,5}", side) and 0 < int(side) <= LARGEST_SIDE]
    if len(numbers) != len(sides) or len(sides) > 2:
        raise CheckpointError(
            f"{text[:40]!r} is no size of images; give one side in pixels, at most {LARGEST_SIDE:,}, or height and "
            "width with a comma between."
        )
    return numbers[0], numbers[-1]
