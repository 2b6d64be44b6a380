"""Limits that a host sets for its studio: environment variables, or the same names in `.streamlit/secrets.toml`.

| name | limit |
|---|---|
| UPVIT_ROOTS | folders that may be read, separated by `:`; the demo and what the app itself wrote always may |
| UPVIT_LONGEST_RUN_HOURS | hours on a device after which a run is saved and stopped |
| UPVIT_RUNS_PER_SESSION | runs of one visitor that wait or go on at a time; reached by others, of one address |
| UPVIT_RUNS_IN_ALL | runs of all visitors together that wait or go on at a time |
| UPVIT_UPLOADS | `off`: no uploads; by default so where others reach the studio |
| UPVIT_HOST | `on`: others reach the studio, whatever address it is bound to; `off`: nobody else does |
| UPVIT_HOST_NAMES | names, separated by commas, by which browsers may call the studio |
| UPVIT_MAPS | `off`: cuts around a plan are measured when somebody asks, not by themselves |
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from upvit_core.errors import LimitError
from upvit_core.paths import place_of

NAME = re.compile(r"(?:hf[-_]hub:)?\w[\w.-]*(?:/\w[\w.-]*)*(?:@\w[\w.-]*)?")
LONGEST_PATH = 4096
LINK_DEPTH = 3
MOST_BLOCKS = 1000
"""The most blocks that a model, or a record of one, may have."""


@dataclass(frozen=True)
class Limits:
    """The limits of one studio; None stands for no limit."""

    roots: tuple[Path, ...] | None = None
    longest_run_hours: float | None = None
    runs_per_session: int | None = None
    runs_in_all: int | None = None
    uploads: bool | None = None
    host: bool | None = None
    host_names: tuple[str, ...] = ()
    maps: bool = True

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> Limits:
        """Raises LimitError where a value is not understood, rather than allow everything."""
        roots = environment.get("UPVIT_ROOTS")
        mine, every = (_number(environment, name) for name in ("UPVIT_RUNS_PER_SESSION", "UPVIT_RUNS_IN_ALL"))
        names = environment.get("UPVIT_HOST_NAMES", "").lower().split(",")
        return cls(
            None if roots is None else tuple(_root(part) for part in roots.split(os.pathsep) if part.strip()),
            _number(environment, "UPVIT_LONGEST_RUN_HOURS"),
            None if mine is None else int(mine),
            None if every is None else int(every),
            _switch(environment, "UPVIT_UPLOADS"),
            _switch(environment, "UPVIT_HOST"),
            tuple(name.strip() for name in names if name.strip()),
            _switch(environment, "UPVIT_MAPS") is not False,
        )

    def confine(self, place: str, app_folders: tuple[Path, ...] = ()) -> None:
        """Let pass names of models and data sets, and paths under the roots or under `app_folders`.

        A path counts as what it leads to, links in it and at the top of a folder followed. Raises LimitError, with the
        same words whether or not there is such a file.
        """
        if len(place) > LONGEST_PATH or "\0" in place:
            raise LimitError(f"{place[:40]!r}… is no path of a file; paths have at most {LONGEST_PATH} characters.")
        if self.roots is None:
            return
        path = place_of(place)
        if not path.is_absolute() and ".." not in path.parts and NAME.fullmatch(place) and not os.path.lexists(path):
            return
        allowed = (*self.roots, *(Path(os.path.realpath(folder)) for folder in app_folders))
        self._judge(place, path, allowed)
        for link in _links(path):
            self._judge(place, link, allowed)

    def _judge(self, place: str, reached: Path, allowed: tuple[Path, ...]) -> None:
        real = Path(os.path.realpath(reached))
        if not any(real.is_relative_to(root) for root in allowed):
            folders = ", ".join(map(str, self.roots or ())) or "none but the app's own"
            raise LimitError(f"{place} may not be read here; folders that may: {folders} (UPVIT_ROOTS).")


def _switch(environment: Mapping[str, str], name: str) -> bool | None:
    """None where it is not set."""
    text = environment.get(name, "").strip().lower()
    if not text:
        return None
    if text not in ("on", "off", "true", "false", "1", "0", "yes", "no"):
        raise LimitError(f"{name} is {text[:40]!r}; set it to on or off.")
    return text in ("on", "true", "1", "yes")


def _number(environment: Mapping[str, str], name: str) -> float | None:
    text = environment.get(name, "").strip()
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (0 < value < 1e9):
        raise LimitError(f"{name} is {text[:40]!r}; set it to a number above 0, or leave it out.")
    return value


def _root(text: str) -> Path:
    return Path(os.path.realpath(os.path.expanduser(text.strip())))


def _links(folder: Path, depth: int = LINK_DEPTH) -> list[Path]:
    """Links in a folder and in the folders in it, as deep as splits and classes lie."""
    links: list[Path] = []
    try:
        entries = list(os.scandir(folder))
    except OSError:
        return []
    for entry in entries:
        if entry.is_symlink():
            links.append(Path(entry.path))
        elif depth > 1 and entry.is_dir(follow_symlinks=False):
            links += _links(Path(entry.path), depth - 1)
    return links
