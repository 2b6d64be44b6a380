"""demo train, tour, train-language: the demo teacher made again from its data; its tour; a small language model."""

from pathlib import Path
from typing import Annotated

import typer

from upvit_core.cli.common import Bar, emit
from upvit_core.cli.options import Json
from upvit_core.paths import DEMO_FOLDER

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
    from upvit_core.demo.vit import train, write_assets

    model = train(data, work, compile_model=compile_model)
    emit(write_assets(model, data, work, out, score_images=score_images, report=Bar()), as_json)


@app.command("train-language")
def demo_train_language(
    out: Annotated[Path, typer.Option(help="folder to write")],
    text: Annotated[Path | None, typer.Option(help="UTF-8 text; default: what Debian's bible-kjv prints")] = None,
    epochs: Annotated[int, typer.Option(min=1)] = 2,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    as_json: Json = False,
) -> None:
    """Train a small GPT-2 on a text, minutes on a CPU; the text is kept in the folder, to be given as --data."""
    from upvit_core.demo.gpt2 import train_language

    def show(row: dict[str, float]) -> None:
        typer.echo(f"step {row['step']:>6}  loss {row['loss']:.3f} nats a token", err=True)

    emit(train_language(out, text, epochs=epochs, seed=seed, report=show), as_json)


@app.command("tour")
def demo_tour(
    folder: Annotated[Path, typer.Option(help="folder of the demo, with both records of scores")] = DEMO_FOLDER,
    out: Annotated[Path | None, typer.Option(help="tour.json to write; default: into the folder")] = None,
    as_json: Json = False,
) -> None:
    """Measure what the first screen shows: the demo at every percent removed, cut as in the paper and repaired."""
    from upvit_core.demo.tour import measure_tour

    tour, place = measure_tour(folder, report=Bar()), out or folder / "tour.json"
    tour.save(place)
    half = {name: way.top1[50] for name, way in tour.ways.items()}
    emit({"out": str(place), "top1": tour.original, **{f"top1_half_{n}": v for n, v in half.items()}}, as_json)
