"""elastic, slice: one model whose prefixes are every size, and a size of it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, cast

import typer

from upvit_core.cli.common import Bar, emit
from upvit_core.cli.options import DataOptions, Json, Model, ModelOptions, folder_to_write, takes_options
from upvit_core.cli.planning import LatencyOptions
from upvit_core.errors import PlanError
from upvit_core.records.elastic import is_elastic
from upvit_core.records.ratios import Ratios

if TYPE_CHECKING:
    from upvit_core.profiling.latency import Latency

app = typer.Typer()


@app.command()
@takes_options
def elastic(
    model: Model,
    opening: ModelOptions,
    dataset: DataOptions,
    out: Annotated[Path, typer.Option(callback=folder_to_write, help="folder to write")],
    images: Annotated[
        int, typer.Option(min=5, help="training images by which channels are ordered; labels are not used")
    ] = 2000,
    seed: Annotated[int, typer.Option(min=0, help="seed that draws these images")] = 0,
    as_json: Json = False,
) -> None:
    """Rotate and sort a ViT so that its first channels are a thinner model, at any size; `slice` cuts a size.

    Stock timm opens the folder, with the original's logits; `distill --student` trains all its sizes at once.
    """
    from upvit_core.pruning.elastic import make_elastic, save_elastic

    loaded = opening.open(model)
    train = dataset.open(loaded, "train", labelled=False, apart=True)
    made = make_elastic(loaded, train, n=images, seed=seed, report=Bar())
    save_elastic(made, out)
    about: dict[str, object] = {"out": str(out), "images": made.elastic.origin.images, "seed": seed}
    about |= {"stock_timm": made.shape.is_uniform, "repair_bytes": made.elastic.repair_bytes}
    emit(about | {"digest": made.elastic.digest}, as_json)


@app.command("slice")
@takes_options
def cut_slice(
    folder: Annotated[Path, typer.Argument(help="folder that `elastic` or an elastic run wrote")],
    out: Annotated[Path, typer.Option(callback=folder_to_write, help="folder to write")],
    ratios: Ratios,
    timing: LatencyOptions,
    budget: Annotated[
        list[str] | None, typer.Option(help="macs=1.2G, params=6M or latency_ms=4; repeat it for several limits")
    ] = None,
    allocation: Annotated[
        Literal["stock", "uniform", "best"],
        typer.Option(help="with --budget: stock (timm opens it), uniform (equal blocks) or best (each block its own)"),
    ] = "stock",
    widths: Annotated[
        str | None, typer.Option(help="48:6x48x192*6: residual, then heads x attention x FFN of every block")
    ] = None,
    repair: Annotated[
        bool | None,
        typer.Option(help="refit the cut layers from the second moments in the folder; default: if it has them"),
    ] = None,
    as_json: Json = False,
) -> None:
    """Cut a thinner model from an elastic one, without images; give its size by shares, widths or a budget."""
    from upvit_core.api import save_model, slice_model
    from upvit_core.profiling.macs import count_macs, count_parameters
    from upvit_core.pruning.elastic import open_elastic

    opened = open_elastic(folder)
    if is_elastic(out):
        raise PlanError(f"{out} holds an elastic model, which a slice would overwrite; give another folder.")
    is_timed = any(text.strip().startswith("latency_ms") for text in budget or ())
    latency = cast("Latency", timing.of(opened.shape)) if is_timed else None
    began = time.perf_counter()
    made = slice_model(
        opened,
        **ratios.named,
        widths=widths,
        budget=",".join(budget) if budget else None,
        allocation=allocation,
        latency=latency,
        repair=repair,
    )
    seconds = time.perf_counter() - began
    save_model(made, out)
    costs = {"params": count_parameters(made.shape), "macs": count_macs(made.shape)}
    emit({"out": str(out), **costs, "stock_timm": made.shape.is_uniform, "seconds": seconds}, as_json)
