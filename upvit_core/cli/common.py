"""What the verbs share: options, output, opening of models."""

from __future__ import annotations

import json
import sys
import time
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

if TYPE_CHECKING:
    from upvit_core.data import ImageSet
    from upvit_core.importance.criterion import Progress
    from upvit_core.models.checkpoint import LoadedModel
    from upvit_core.records.block_removals import BlockRemovals

Model = Annotated[str, typer.Argument(help="demo, a folder, a file, hf-hub:…, or a timm model name")]
Data = Annotated[
    str, typer.Option(help="demo, a folder of classes, an archive of one, or a timm name like torch/cifar10")
]
Root = Annotated[str | None, typer.Option("--root", help="where a named data set lies")]
Json = Annotated[bool, typer.Option("--json", help="print one JSON object")]
Heads = Annotated[int | None, typer.Option("--num-heads", help="head count, which no tensor holds")]
Size = Annotated[int | None, typer.Option("--img-size", help="side of the images in pixels; default: the model's")]
Calibrated = Annotated[Path | None, typer.Option("--calibration", help="default: what `calibrate` left on this device")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 …")]
Depth = Annotated[int | None, typer.Option(min=1, help="blocks that stay; needs --depth-scores")]
DepthScores = Annotated[Path | None, typer.Option(help="what score-blocks wrote")]


class Basis(StrEnum):
    CHANNELS = "channels"
    DIRECTIONS = "directions"


def emit(result: dict[str, Any], as_json: bool) -> None:
    """Print a result: one JSON object, or a line a value."""
    if as_json:
        typer.echo(json.dumps(result))
        return
    for key, value in result.items():
        text = f"{value:,}" if isinstance(value, int) else f"{value:.4g}" if isinstance(value, float) else str(value)
        typer.echo(f"{key:<20} {text}")


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


def device_of(name: str) -> str:
    from upvit_core.runs.devices import default_device

    return default_device() if name == "auto" else name


def open_model(
    model: str, num_heads: int | None = None, *, pretrained: bool = True, device: str = "cpu",
    img_size: int | None = None,
) -> LoadedModel:  # fmt: skip
    from upvit_core.models.checkpoint import load_model

    return load_model(model, num_heads=num_heads, pretrained=pretrained, device=device, img_size=img_size)


def images_for(loaded: LoadedModel, data: str, split: Literal["train", "val"], root: str | None = None) -> ImageSet:
    """The images of a split as the model reads them."""
    from upvit_core.data import open_images

    cfg, classes = loaded.pretrained_cfg, loaded.shape.num_classes
    return open_images(data, split, pretrained_cfg=cfg, num_classes=classes, root=root)


def depths_of(text: str) -> int | tuple[int, ...]:
    """`8` or `2,2,2,2` as numbers."""
    from upvit_core.errors import PlanError

    try:
        depths = tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise PlanError(f"{text!r} is no depth; give a number of blocks, or one for each stage, as 2,2,2,2.") from error
    return depths[0] if len(depths) == 1 else depths


def removals_of(depth: int | None, path: Path | None) -> tuple[BlockRemovals, int] | None:
    """The record and the depth, where both are given; None where neither is."""
    from upvit_core.errors import PlanError
    from upvit_core.records.block_removals import BlockRemovals

    if depth is None and path is None:
        return None
    if depth is None or path is None:
        given, missing = ("--depth-scores", "--depth") if depth is None else ("--depth", "--depth-scores")
        raise PlanError(f"{given} was given without {missing}; give both (score-blocks writes the depth scores).")
    return BlockRemovals.load(path), depth
