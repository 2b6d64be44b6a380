"""Classes of images that lie in one folder, from a list beside them: `file name,class` a line, or wnids in order."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from upvit_core.data.classes import WNID

LARGEST_LIST = 1 << 26
SUFFIXES = (".csv", ".tsv", ".txt")
BETWEEN = re.compile(r"\s*[,;\t]\s*")


def texts_in(folder: Path) -> Iterator[tuple[str, str]]:
    """(name, content) of the small text files of a folder."""
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in SUFFIXES and path.is_file() and path.stat().st_size <= LARGEST_LIST:
            yield path.name, path.read_text(encoding="utf-8", errors="replace")


def classes_from_lists(
    files: Sequence[str], texts: Iterable[tuple[str, str]]
) -> tuple[tuple[str, list[str]] | None, str]:
    """The first list that gives every file a class: its name and the class of each file; and why others were not used.

    A class is a wnid, a name, or a number where the list's numbers begin at 0. Numbers from 1 are those of a list that
    is not here (ImageNet's development kit has its own order), so they are refused.
    """
    stems = [_stem(file) for file in files]
    refused = ""
    for name, text in texts:
        lines = [line.strip().replace('"', "") for line in text.splitlines() if line.strip()]
        if len(lines) < len(stems):
            continue
        values = _by_file(stems, lines)
        if values is None and len(lines) == len(stems) and all(re.fullmatch(r"n\d{8}|\d+", line) for line in lines):
            values = lines
        if values is None:
            continue
        if not all(value.isdecimal() for value in values):
            return (name, values), ""
        if values is not lines and min(map(int, values)) == 0:
            return (name, [str(int(value)) for value in values]), ""
        refused = (
            f"{name} has numbers for classes, as ImageNet's development kit in an order of its own, and they are not "
            "known to be the model's"
        )
    return None, refused


def _stem(file: str) -> str:
    return file.rsplit("/", 1)[-1].rsplit(".", 1)[0]


def _by_file(stems: Sequence[str], lines: Sequence[str]) -> list[str] | None:
    """The class of each file by lines that begin with its name; None where one has no line."""
    known: dict[str, str] = {}
    for line in lines:
        fields = BETWEEN.split(line) if BETWEEN.search(line) else line.split(maxsplit=1)
        if len(fields) > 1:
            wnid = WNID.search(fields[1])
            for key in (fields[0].rsplit("/", 1)[-1], _stem(fields[0])):
                known[key] = wnid[0] if wnid else fields[1]
    return [known[stem] for stem in stems] if all(stem in known for stem in stems) else None
