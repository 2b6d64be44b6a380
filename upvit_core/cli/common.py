"""Output and small readers that verbs share."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from upvit_core.importance.criterion import Progress
    from upvit_core.records.block_removals import BlockRemovals


def emit(result: Mapping[str, object], as_json: bool) -> None:
    """Print what is known of a result: one JSON object, or one line per value."""
    result = known(result)
    if as_json:
        typer.echo(json.dumps(result))
        return
    for key, value in result.items():
        text = f"{value:,}" if isinstance(value, int) else f"{value:.4g}" if isinstance(value, float) else str(value)
        typer.echo(f"{key:<20} {text}")


def known(values: Mapping[str, object]) -> dict[str, object]:
    """Without numbers, and pairs of numbers, that are NaN, such as the top-1 of features without labels."""
    each = {key: value if isinstance(value, list | tuple) else (value,) for key, value in values.items()}
    return {key: value for key, value in values.items() if not any(number != number for number in each[key])}


class Bar:
    """Progress with time left, on standard error, at most five times a second."""

    def __init__(self) -> None:
        self._last = 0.0

    def __call__(self, progress: Progress) -> None:
        now = time.monotonic()
        if now - self._last < 0.2 and progress.share < 1:
            return
        self._last = now
        left = "" if progress.seconds_left is None else f", {duration(progress.seconds_left)} left"
        line = f"{progress.share:4.0%}  {progress.what}{left}"
        end = "\n" if progress.share >= 1 else ""
        if sys.stderr.isatty():
            typer.echo(f"\r\033[K{line}{end}", err=True, nl=False)
        elif progress.share >= 1:
            typer.echo(line, err=True)


def duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def depths_of(text: str) -> int | tuple[int, ...]:
    """`8` or `2,2,2,2` as numbers."""
    from upvit_core.errors import PlanError

    try:
        depths = tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise PlanError(
            f"{text!r} is not a depth; give a number of blocks, or one for each stage, as 2,2,2,2."
        ) from error
    return depths[0] if len(depths) == 1 else depths


def removals_of(depth: int | None, path: Path | None) -> tuple[BlockRemovals, int] | None:
    """The record and the depth; None where neither is given. Raises PlanError where only one is."""
    from upvit_core.errors import PlanError
    from upvit_core.records.block_removals import BlockRemovals

    if depth is None and path is None:
        return None
    if depth is None or path is None:
        given, missing = ("--depth-scores", "--depth") if depth is None else ("--depth", "--depth-scores")
        raise PlanError(f"{given} was given without {missing}; give both (score-blocks writes the depth scores).")
    return BlockRemovals.load(path), depth
