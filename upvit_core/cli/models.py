"""prune, evaluate, profile, export: models made, measured and handed on."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from upvit_core.cli.common import (
    Bar,
    Data,
    Device,
    Heads,
    Json,
    Model,
    Root,
    Size,
    device_of,
    emit,
    images_for,
    open_model,
)

if TYPE_CHECKING:
    from upvit_core.models.checkpoint import LoadedModel

app = typer.Typer()


@app.command()
def prune(
    model: Model,
    plan: Annotated[Path, typer.Argument(help="plan.json")],
    out: Annotated[Path, typer.Option(help="folder to write")],
    repair: Annotated[
        bool | None, typer.Option(help="mend the cut by least squares on proxy images; default: as the plan records")
    ] = None,
    data: Annotated[str | None, typer.Option(help="images for --repair and for plans that keep directions")] = None,
    images: Annotated[
        int | None, typer.Option(min=1, help="proxy images for --repair and directions; default: the plan's, or 2000")
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="which images; default: the plan's, or 0")] = None,
    num_heads: Heads = None,
    img_size: Size = None,
    root: Root = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Cut a model by a plan into a thinner model of the same structure."""
    from upvit_core.models.checkpoint import save_model
    from upvit_core.profiling.macs import count_macs, count_parameters
    from upvit_core.pruning.prune import cut_and_record
    from upvit_core.records.plan import PruningPlan

    loaded, wanted = open_model(model, num_heads, device=device_of(device), img_size=img_size), PruningPlan.load(plan)
    wanted = wanted.at_size(loaded.shape.img_size)
    student, made = cut_and_record(
        loaded, wanted, repair=repair, data=data, root=root, images=images, seed=seed, report=Bar()
    )
    shape = wanted.shape_after
    name = f"{loaded.name} pruned"
    save_model(
        student, out, shape=shape, pretrained_cfg=loaded.pretrained_cfg, plan_json=made.to_json(), name=name,
        class_names=loaded.class_names,
    )  # fmt: skip
    costs = {"params": count_parameters(shape), "macs": count_macs(shape)}
    emit({"out": str(out), **costs, "stock_timm": shape.is_uniform}, as_json)


@app.command()
def evaluate(
    model: Model,
    data: Data,
    teacher: Annotated[
        str | None, typer.Option(help="adds kl: mean nats an image or token, KL(teacher || model)")
    ] = None,
    images: Annotated[
        int | None, typer.Option(min=1, help="evaluate on this many, drawn by seed; default: all")
    ] = None,
    seed: Annotated[int, typer.Option()] = 0,
    batch_size: Annotated[int, typer.Option(min=1)] = 100,
    num_heads: Heads = None,
    img_size: Size = None,
    root: Root = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Top-1 and top-5 in percent on the evaluation images, or the perplexity of a text; and the KL to a teacher."""
    from upvit_core.data import proxy_indices
    from upvit_core.evaluation import evaluate as run
    from upvit_core.evaluation import predict
    from upvit_core.records.task import task_of

    where = device_of(device)
    loaded = open_model(model, num_heads, device=where, img_size=img_size)
    test = images_for(loaded, data, "val", root)
    chosen = None if images is None else proxy_indices(test, images, seed)
    teacher_logits = None
    if teacher is not None:
        teacher_logits, _ = predict(
            open_model(teacher, device=where, img_size=img_size).model,
            test.batches(batch_size, indices=chosen, device=where),
        )
    result = run(loaded.model, test.batches(batch_size, indices=chosen, device=where), teacher_logits=teacher_logits)
    task = task_of(loaded.shape)
    low, high = task.interval(result)
    values: dict[str, Any] = {task.key: task.value(result), f"{task.key}_low": low, f"{task.key}_high": high}
    if task.has_classes:
        values["top5"] = result.top5
    values |= {task.samples: result.images, "skipped": len(test.skipped)}
    if result.kl is not None:
        values["kl"] = result.kl
    emit(values, as_json)


@app.command()
def profile(
    model: Model,
    plan: Annotated[Path | None, typer.Option(help="plan.json: adds what the thinner model costs")] = None,
    measure: Annotated[bool, typer.Option("--measure", help="measure images per second on this device")] = False,
    batch_size: Annotated[int, typer.Option(min=1)] = 32,
    pretrained: Annotated[bool, typer.Option(help="--no-pretrained: shape only")] = True,
    num_heads: Heads = None,
    img_size: Size = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Parameters and multiply-accumulates, exactly; images per second, measured."""
    from upvit_core.profiling.macs import count_macs, count_parameters
    from upvit_core.records.plan import PruningPlan

    loaded = open_model(model, num_heads, pretrained=pretrained, device=device_of(device), img_size=img_size)
    wanted = None if plan is None else PruningPlan.load(plan)
    after = None if wanted is None else wanted.at_size(loaded.shape.img_size).shape_after
    values: dict[str, Any] = {"params": count_parameters(loaded.shape), "macs": count_macs(loaded.shape)}
    if after is not None:
        values |= {"params_pruned": count_parameters(after), "macs_pruned": count_macs(after)}
    if measure:
        values |= _measured(loaded, after, batch_size)
    emit(values, as_json)


def _measured(loaded: LoadedModel, pruned: Any, batch_size: int) -> dict[str, Any]:
    from upvit_core.models.checkpoint import build_model
    from upvit_core.models.gpt2 import random_inputs
    from upvit_core.profiling.throughput import measure

    device = next(loaded.model.parameters()).device
    models = [loaded.model] + ([] if pruned is None else [build_model(pruned).to(device)])
    images = random_inputs(loaded.shape, batch_size).to(device)
    results = measure(models, images, seconds=20)
    first = results[0]
    values: dict[str, Any] = {
        "images_per_s": first.images_per_s, "images_per_s_low": first.low, "images_per_s_high": first.high,
        "batch_size": first.batch_size, "dtype": first.dtype, "device": first.device, "threads": first.threads,
    }  # fmt: skip
    if pruned is not None:
        values |= {"images_per_s_pruned": results[1].images_per_s, "images_per_s_pruned_low": results[1].low,
                   "images_per_s_pruned_high": results[1].high}  # fmt: skip
    return values


class Format(StrEnum):
    ONNX = "onnx"
    TIMM = "timm"


@app.command("export")
def export_model(
    model: Model,
    out: Annotated[Path, typer.Option(help="file (onnx) or folder (timm) to write")],
    format: Annotated[Format, typer.Option()] = Format.ONNX,
    backbone: Annotated[
        bool, typer.Option("--backbone", help="without a head: features, for a detector or another task")
    ] = False,
    num_heads: Heads = None,
    img_size: Size = None,
    as_json: Json = False,
) -> None:
    """Export to ONNX, checked with onnxruntime against the model, or to a folder for timm; whole or without its head.

    The ONNX backbone gives `features` (B, D), pooled, and `map` (B, D, H, W); timm opens a folder as local-dir:FOLDER.
    """
    from upvit_core.export import export_backbone_onnx, export_onnx, save_backbone
    from upvit_core.models.checkpoint import save_model

    loaded = open_model(model, num_heads, img_size=img_size)
    if format is Format.ONNX:
        write = export_backbone_onnx if backbone else export_onnx
        result = write(loaded.model, loaded.shape, out)
    elif backbone:
        result = save_backbone(loaded, out)
    else:
        save_model(
            loaded.model, out, shape=loaded.shape, pretrained_cfg=loaded.pretrained_cfg, name=loaded.name,
            class_names=loaded.class_names,
        )  # fmt: skip
        result = {"stock_timm": loaded.shape.is_uniform}
    emit({"out": str(out), "format": format.value, **result}, as_json)
