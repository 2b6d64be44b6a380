"""demo train: the demo teacher, made again from its data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from upvit_core.cli.common import Bar, Json, emit

app = typer.Typer()


@app.command("train")
def demo_train(
    data: Annotated[Path, typer.Option(help="folder of Fashion-MNIST's four .gz files")] = Path(
        "/usr/share/datasets/fashion-mnist"
    ),
    work: Annotated[Path, typer.Option(help="where checkpoints go; a stopped training goes on from there")] = Path(
        "runs/demo-training"
    ),
    out: Annotated[Path, typer.Option(help="folder to write the demo to")] = Path("assets/demo"),
    score_images: Annotated[int, typer.Option(min=1, help="images for the exact scores shipped with the demo")] = 1000,
    compile_model: Annotated[bool, typer.Option("--compile", help="use torch.compile")] = False,
    as_json: Json = False,
) -> None:
    """Train the demo teacher on all of Fashion-MNIST, and write model, images, card and exact scores."""
    from upvit_core.demo import train, write_assets

    model = train(data, work, compile_model=compile_model)
    emit(write_assets(model, data, work, out, score_images=score_images, report=Bar()), as_json)
