"""prune, evaluate, profile, export: models cut, measured and handed on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, cast

import typer

from upvit_core.cli.common import Bar, emit
from upvit_core.cli.options import (
    DataOptions,
    Json,
    Model,
    ModelOptions,
    OptionalData,
    file_to_write,
    folder_to_write,
    takes_options,
)
from upvit_core.errors import ExportError

if TYPE_CHECKING:
    from upvit_core.models.checkpoint import LoadedModel
    from upvit_core.records.shape import ModelShape

app = typer.Typer()


@app.command()
@takes_options
def prune(
    model: Model,
    plan: Annotated[Path, typer.Argument(help="plan.json")],
    opening: ModelOptions,
    proxy: OptionalData,
    out: Annotated[Path, typer.Option(callback=folder_to_write, help="folder to write")],
    repair: Annotated[
        bool | None, typer.Option(help="refit the cut by least squares on proxy images; default: as the plan records")
    ] = None,
    images: Annotated[
        int | None, typer.Option(min=1, help="proxy images for --repair and directions; default: the plan's, or 2000")
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="draws those images; default: the plan's, or 0")] = None,
    as_json: Json = False,
) -> None:
    """Cut a model by a plan into a thinner model of the same structure; --repair and directions need --data."""
    from upvit_core.models.checkpoint import save_model
    from upvit_core.profiling.macs import count_macs, count_parameters
    from upvit_core.pruning.prune import cut_and_record
    from upvit_core.ranks import rank
    from upvit_core.records.plan import PruningPlan

    loaded, wanted = opening.open(model), PruningPlan.load(plan)
    wanted = wanted.at_size(loaded.shape.img_size)
    student, recorded = cut_and_record(
        loaded, wanted, repair=repair, data=proxy.data, root=proxy.root, images=images, seed=seed, report=Bar()
    )
    shape = wanted.shape_after
    if rank():
        return
    save_model(
        student,
        out,
        shape=shape,
        pretrained_cfg=loaded.pretrained_cfg,
        plan_json=recorded.to_json(),
        name=f"{loaded.name} pruned",
        class_names=loaded.class_names,
    )
    costs = {"params": count_parameters(shape), "macs": count_macs(shape)}
    emit({"out": str(out), **costs, "stock_timm": shape.is_uniform}, as_json)


@app.command()
@takes_options
def evaluate(
    model: Model,
    opening: ModelOptions,
    dataset: DataOptions,
    teacher: Annotated[
        str | None, typer.Option(help="adds kl: mean KL(teacher || model) in nats per image or token")
    ] = None,
    images: Annotated[int | None, typer.Option(min=1, help="number of images, drawn by seed; default: all")] = None,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    batch_size: Annotated[int | None, typer.Option(min=1, help="default: 100, fewer where outputs are large")] = None,
    as_json: Json = False,
) -> None:
    """Top-1 and top-5 in percent on the evaluation images, or the perplexity of a text; and the KL to a teacher.

    Of a model without a classifier, top-1 is that of k-NN among training images (k = 20, by cosine of the features),
    and with a teacher the mean cosine to its features is told.
    """
    from upvit_core.data import proxy_indices
    from upvit_core.evaluation import doubt, readout_of
    from upvit_core.evaluation import evaluate as run
    from upvit_core.records.task import check_teacher, task_of

    loaded, device = opening.open(model), opening.torch_device
    test = dataset.open(loaded, "val", apart=loaded.shape.features, tell=False)
    chosen = None if images is None else proxy_indices(test, images, seed)
    original = None
    if teacher is not None:
        known = opening.of_another.open(teacher)
        check_teacher(loaded.shape, known.shape)
        original = known.model
    batches = test.batches(batch_size or loaded.shape.batch_size(100), indices=chosen, device=device)
    readout = readout_of(loaded.shape, dataset.bank(loaded), test)
    result = run(loaded.model, batches, teacher=original, readout=readout)
    task = task_of(loaded.shape)
    low, high = task.interval(result)
    values: dict[str, object] = {task.key: task.value(result), f"{task.key}_low": low, f"{task.key}_high": high}
    if task.has_pictures:
        values["top5"] = result.top5
    values |= {task.samples: result.images, "skipped": len(test.skipped)}
    if result.kl is not None:
        values["kl"] = result.kl
    if result.cosine is not None:
        values["cosine"] = result.cosine
    if readout.told:
        values["judged_by"] = readout.told
    if test.notes:
        values["data"] = test.notes
    if doubted := doubt(loaded, result):
        values["doubt"] = doubted
    emit(values, as_json)


@app.command()
@takes_options
def profile(
    model: Model,
    opening: ModelOptions,
    plan: Annotated[Path | None, typer.Option(help="plan.json: adds the cost of the thinner model")] = None,
    measure: Annotated[bool, typer.Option("--measure", help="measure images per second on this device")] = False,
    batch_size: Annotated[int | None, typer.Option(min=1, help="default: 32, fewer where outputs are large")] = None,
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16"] | None,
        typer.Option(help="with --measure; default: float32, on a GPU half precision"),
    ] = None,
    compile: Annotated[
        bool, typer.Option("--compile", help="with --measure: models compiled by torch.compile")
    ] = False,
    as_json: Json = False,
) -> None:
    """Parameters and multiply-accumulates, exactly; images per second, measured."""
    from upvit_core.profiling.macs import count_macs, count_parameters
    from upvit_core.records.plan import PruningPlan

    loaded = replace(opening, pretrained=False).open(model)  # weights change no count, and need a network
    after = None if plan is None else PruningPlan.load(plan).at_size(loaded.shape.img_size).shape_after
    values: dict[str, object] = {"params": count_parameters(loaded.shape), "macs": count_macs(loaded.shape)}
    values["recognised"] = loaded.recognised.line
    if after is not None:
        values |= {"params_pruned": count_parameters(after), "macs_pruned": count_macs(after)}
    if measure:
        values |= _measured(loaded, after, batch_size or loaded.shape.batch_size(32), dtype, compile)
    emit(values, as_json)


def _measured(
    loaded: LoadedModel, pruned: ModelShape | None, batch_size: int, dtype: str | None, compiled: bool
) -> dict[str, object]:
    import torch
    from torch import nn

    from upvit_core.models.checkpoint import build_model
    from upvit_core.models.gpt2 import random_inputs
    from upvit_core.profiling.throughput import measure, usual_dtype

    device = next(loaded.model.parameters()).device
    models = [loaded.model] + ([] if pruned is None else [build_model(pruned).to(device)])
    inputs = random_inputs(loaded.shape, batch_size).to(device)
    if compiled:
        models = [cast(nn.Module, torch.compile(model)) for model in models]
    values: dict[str, object] = {"compiled": True} if compiled else {}
    results = measure(models, inputs, dtype=dtype or usual_dtype(device.type), seconds=20)
    for result, suffix in zip(results, ("", "_pruned"), strict=False):
        speeds = {"": result.images_per_s, "_low": result.low, "_high": result.high}
        values |= {f"images_per_s{suffix}{bound}": speed for bound, speed in speeds.items()}
        for key in () if suffix else ("batch_size", "dtype", "device", "threads"):
            values[key] = getattr(result, key)
    return values


@app.command("export")
@takes_options
def export_model(
    model: Model,
    opening: ModelOptions,
    dataset: OptionalData,
    out: Annotated[Path, typer.Option(help="file (onnx) or folder (timm) to write")],
    format: Literal["onnx", "timm"] = "onnx",
    backbone: Annotated[
        bool, typer.Option("--backbone", help="without a head: features, for a detector or another task")
    ] = False,
    int8: Annotated[
        Literal["dynamic", "static"] | None,
        typer.Option(
            help="onnx: 8-bit weights; activation ranges from each input (dynamic) or from training images (static)"
        ),
    ] = None,
    images: Annotated[
        int | None, typer.Option(min=1, help="with --int8: number of evaluation images; default: all")
    ] = None,
    as_json: Json = False,
) -> None:
    """Export to ONNX, checked with onnxruntime against the model, or to a folder for timm; whole or without its head.

    The ONNX backbone gives `features` (B, D), pooled, and `map` (B, D, H, W); timm opens a folder as local-dir:FOLDER.
    --int8 needs --data, and measures accuracy, KL and images per second beside the float32 file.
    """
    from upvit_core.export import export_backbone_onnx, export_int8, export_onnx, save_backbone
    from upvit_core.models.checkpoint import save_model

    if int8 and (format != "onnx" or backbone):
        raise ExportError("--int8 is for a whole model in ONNX; leave out --format timm and --backbone.")
    (file_to_write if format == "onnx" else folder_to_write)(out)
    data = dataset.given
    if int8 and data is None:
        raise ExportError("--int8 measures what it costs on images; give --data.")
    loaded = opening.open(model)
    loaded.model.cpu()  # where onnxruntime checks it
    if int8 and data:
        test, calibration = data.open(loaded, "val"), data.open(loaded, "train", labelled=False, tell=False)
        result = export_int8(loaded, out, int8, test, calibration, images)
    elif format == "onnx":
        result = (export_backbone_onnx if backbone else export_onnx)(loaded.model, loaded.shape, out)
    elif backbone:
        result = save_backbone(loaded, out)
    else:
        save_model(
            loaded.model,
            out,
            shape=loaded.shape,
            pretrained_cfg=loaded.pretrained_cfg,
            name=loaded.name,
            class_names=loaded.class_names,
        )
        result = {"stock_timm": loaded.shape.is_uniform}
    emit({"out": str(out), "format": format, **result}, as_json)
