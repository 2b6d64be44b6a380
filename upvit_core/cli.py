"""The verbs of the command line. Each calls the function that the pages call; --json prints one JSON object."""

from __future__ import annotations

import json
import os
import sys
import time
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from upvit_core.errors import UPViTError
from upvit_core.importance.criterion_names import CriterionName, Precision

if TYPE_CHECKING:
    from upvit_core.importance.block_removals import BlockRemovals
    from upvit_core.importance.criterion import Progress
    from upvit_core.importance.scores import ImportanceScores
    from upvit_core.models.checkpoint import LoadedModel
    from upvit_core.models.shape import ModelShape
    from upvit_core.planning.best import LatencyParts
    from upvit_core.planning.plan import PruningPlan

app = typer.Typer(
    no_args_is_help=True, add_completion=False, help="Prune Vision Transformers: score, plan, cut, distil."
)
demo_app = typer.Typer(no_args_is_help=True, help="The demo teacher.")
app.add_typer(demo_app, name="demo")

Model = Annotated[str, typer.Argument(help="demo, a folder, a file, hf-hub:…, or a timm model name")]
Data = Annotated[
    str, typer.Option(help="demo, a folder of classes, an archive of one, or a timm name like torch/cifar10")
]
Root = Annotated[str | None, typer.Option("--root", help="where a named data set lies")]
Json = Annotated[bool, typer.Option("--json", help="print one JSON object")]
Heads = Annotated[int | None, typer.Option("--num-heads", help="head count, which no tensor holds")]
Calibrated = Annotated[Path | None, typer.Option("--calibration", help="default: what `calibrate` left on this device")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 …")]
Depth = Annotated[int | None, typer.Option(min=1, help="blocks that stay; needs --depth-scores")]
DepthScores = Annotated[Path | None, typer.Option(help="what score-blocks wrote")]


class Preset(StrEnum):
    DEIT_SMALL = "deit_small"
    DEIT_TINY = "deit_tiny"


class AllocationName(StrEnum):
    BEST = "best"
    UNIFORM = "uniform"
    STOCK = "stock"
    ISOMORPHIC = "isomorphic"
    GLOBAL = "global"


class PerName(StrEnum):
    CHANNEL = "channel"
    PARAMS = "params"
    MACS = "macs"


class Axis(StrEnum):
    MACS = "macs"
    PARAMS = "params"
    LATENCY_MS = "latency_ms"


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
        left = "" if progress.seconds_left is None else f", {_duration(progress.seconds_left)} left"
        line = f"{progress.share:4.0%}  {progress.what}{left}"
        end = "\n" if progress.share >= 1 else ""
        if sys.stderr.isatty():
            typer.echo(f"\r\033[K{line}{end}", err=True, nl=False)
        elif progress.share >= 1:
            typer.echo(line, err=True)


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _device(name: str) -> str:
    from upvit_core.runs.devices import default_device

    return default_device() if name == "auto" else name


def _open(model: str, num_heads: int | None = None, *, pretrained: bool = True, device: str = "cpu") -> LoadedModel:
    from upvit_core.models.checkpoint import load_model

    return load_model(model, num_heads=num_heads, pretrained=pretrained, device=device)


@app.command()
def score(
    model: Model,
    data: Data,
    out: Annotated[Path, typer.Option(help="scores record to write, .safetensors")],
    criterion: Annotated[CriterionName, typer.Option()] = CriterionName.FISHER,
    images: Annotated[
        int | None, typer.Option(min=1, help="proxy images; default: 2,000, fisher stops when the kept set is stable")
    ] = None,
    seed: Annotated[int, typer.Option()] = 0,
    balanced: Annotated[bool, typer.Option(help="equally many of each class")] = False,
    pretrained: Annotated[bool, typer.Option(help="--no-pretrained: random weights, for shapes only")] = True,
    precision: Annotated[Precision, typer.Option(help="of the forward passes; the KL is float32 or better")] = (
        Precision.FLOAT32
    ),
    depth: Depth = None,
    depth_scores: DepthScores = None,
    num_heads: Heads = None,
    root: Root = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Score every channel by the KL-divergence that its removal causes; with --depth, of the model cut to it first."""
    from upvit_core.data import open_images
    from upvit_core.importance.score import score as run
    from upvit_core.importance.sharding import rank

    loaded = _open(model, num_heads, pretrained=pretrained, device=_device(device))
    if (removals := _removals(depth, depth_scores)) is not None:
        from upvit_core.depth import at_depth

        loaded = at_depth(loaded, *removals)
    train = open_images(
        data, "train", pretrained_cfg=loaded.pretrained_cfg, num_classes=loaded.shape.num_classes, root=root
    )
    journal = out.with_name(f"{out.name}.partial{rank()}.jsonl")
    record = run(
        loaded, train, criterion.value, n=images, seed=seed, balanced=balanced, precision=precision.value,
        journal=journal, report=Bar(),
    )  # fmt: skip
    for leftover in out.parent.glob(f"{out.name}.partial{rank()}*.jsonl"):
        leftover.unlink()
    if rank():
        return
    record.save(out)
    emit(
        {
            "out": str(out), "model": record.model, "criterion": record.criterion, "unit": record.unit,
            "images": record.images, "seed": seed, "seconds": record.seconds, "digest": record.digest,
            "skipped": len(train.skipped), **{key: record.notes[key] for key in ("stability",) if key in record.notes},
        },
        as_json,
    )  # fmt: skip


def _removals(depth: int | None, path: Path | None) -> tuple[BlockRemovals, int] | None:
    """The record and the depth, where both are given; None where neither is."""
    from upvit_core.errors import PlanError
    from upvit_core.importance.block_removals import BlockRemovals

    if depth is None and path is None:
        return None
    if depth is None or path is None:
        given, missing = ("--depth-scores", "--depth") if depth is None else ("--depth", "--depth-scores")
        raise PlanError(f"{given} was given without {missing}; give both (score-blocks writes the depth scores).")
    return BlockRemovals.load(path), depth


@app.command("score-blocks")
def score_blocks(
    model: Model,
    data: Data,
    depth: Annotated[int, typer.Option(min=1, help="blocks that stay in the end; every depth above it is scored too")],
    out: Annotated[Path, typer.Option(help="record to write, .json")],
    images: Annotated[int | None, typer.Option(min=1, help="proxy images; default: 2,000")] = None,
    after: Annotated[Path | None, typer.Option(help="plan.json of widths that are cut first")] = None,
    seed: Annotated[int, typer.Option()] = 0,
    balanced: Annotated[bool, typer.Option(help="equally many of each class")] = False,
    pretrained: Annotated[bool, typer.Option(help="--no-pretrained: random weights, for shapes only")] = True,
    num_heads: Heads = None,
    root: Root = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Remove half-blocks two by two, each time those whose absence costs least, and write all their scores."""
    from upvit_core.data import open_images
    from upvit_core.depth import score_blocks as run
    from upvit_core.importance.block_removals import pair_name
    from upvit_core.planning.plan import PruningPlan

    loaded = _open(model, num_heads, pretrained=pretrained, device=_device(device))
    train = open_images(
        data, "train", pretrained_cfg=loaded.pretrained_cfg, num_classes=loaded.shape.num_classes, root=root
    )
    journal = out.with_name(f"{out.name}.partial.jsonl")
    record = run(
        loaded, train, depth, n=images, seed=seed, balanced=balanced,
        after=None if after is None else PruningPlan.load(after), journal=journal, report=Bar(),
    )  # fmt: skip
    record.save(out)
    journal.unlink()
    emit(
        {
            "out": str(out), "model": record.model, "images": record.images, "seed": seed, "seconds": record.seconds,
            "removed": [pair_name(step.removed) for step in record.steps],
            "kl": [step.kl / record.images for step in record.steps], "digest": record.digest,
        },
        as_json,
    )  # fmt: skip


@app.command()
def plan(
    scores: Annotated[Path, typer.Argument(help="scores record")],
    out: Annotated[Path, typer.Option(help="plan.json to write")],
    residual: Annotated[float, typer.Option(help="share of residual channels removed")] = 0.0,
    attention: Annotated[float, typer.Option(help="share of attention channels removed")] = 0.0,
    ffn: Annotated[float, typer.Option(help="share of FFN channels removed")] = 0.0,
    heads: Annotated[int | None, typer.Option(help="heads to merge into; default: as they are")] = None,
    preset: Annotated[Preset | None, typer.Option(help="widths of a stock model")] = None,
    basis: Annotated[Basis, typer.Option(help="what is removed: channels (UP-ViT), or directions")] = Basis.CHANNELS,
    budget: Annotated[
        list[str] | None, typer.Option(help="macs=1.2G, params=6M or latency_ms=4; may be given for each")
    ] = None,
    allocation: Annotated[
        AllocationName | None, typer.Option(help="over blocks; default: uniform for ratios, best for a budget")
    ] = None,
    per: Annotated[PerName, typer.Option(help="what a global threshold divides scores by")] = PerName.CHANNEL,
    round_to: Annotated[int, typer.Option(min=1, help="widths are multiples of this, such as 8")] = 1,
    batch_size: Annotated[int, typer.Option(min=1, help="of a latency budget")] = 1,
    calibration: Calibrated = None,
    depth: Depth = None,
    depth_scores: DepthScores = None,
    as_json: Json = False,
) -> None:
    """Choose what stays, from scores and ratios, a preset, or a budget."""
    from upvit_core.importance.scores import ImportanceScores
    from upvit_core.planning.select import plan_preset, plan_uniform
    from upvit_core.profiling.macs import count_macs, count_parameters

    record = ImportanceScores.load(scores)
    found: dict[str, Any] = {}
    if budget:
        made, found = _within(
            record, budget, (allocation or AllocationName.BEST).value, per.value, heads, round_to, basis.value,
            calibration, batch_size, bool(residual or attention or ffn or preset),
        )  # fmt: skip
    elif preset is not None:
        made = plan_preset(record, preset.value, basis=basis.value)
    elif allocation is not None or round_to > 1:
        from upvit_core.planning.allocate import plan_allocated

        made = plan_allocated(
            record, residual=residual, attention=attention, ffn=ffn, heads=heads, round_to=round_to, per=per.value,
            allocation=(allocation or AllocationName.UNIFORM).value, basis=basis.value,  # type: ignore[arg-type]
        )  # fmt: skip
    else:
        made = plan_uniform(record, residual=residual, attention=attention, ffn=ffn, heads=heads, basis=basis.value)
    if (removals := _removals(depth, depth_scores)) is not None:
        from upvit_core.planning.blocks import plan_depth

        made = plan_depth(made, *removals)
    made.save(out)
    before, after = made.shape_before, made.shape_after
    emit(
        {
            "out": str(out), "params": count_parameters(after), "macs": count_macs(after),
            "params_before": count_parameters(before), "macs_before": count_macs(before),
            "depth": after.depth, "stock_timm": after.is_uniform, "digest": made.digest, **found,
        },
        as_json,
    )  # fmt: skip


def _within(
    record: ImportanceScores, texts: list[str], allocation: str, per: str, heads: int | None, round_to: int,
    basis: str, calibration: Path | None, batch_size: int, has_ratios: bool,
) -> tuple[PruningPlan, dict[str, Any]]:  # fmt: skip
    """The best plan within the budget, and what is known of it."""
    from upvit_core.errors import PlanError
    from upvit_core.planning.best import Budget, best_plan

    if has_ratios:
        raise PlanError("A budget chooses the ratios itself; give a budget, or ratios, or a preset.")
    budget = Budget.parse(texts)
    latency = None
    if budget.latency_ms is not None or calibration is not None:
        latency = _latency(record.shape, batch_size, calibration)
    choices: dict[str, Any] = {"heads": heads, "round_to": round_to, "latency": latency, "basis": basis}
    best = best_plan(record, budget, family=allocation, per=per, **choices)  # type: ignore[arg-type]
    predicted = "predicted_kl" if record.unit.startswith("nats") else "score_removed"
    values: dict[str, Any] = {predicted: best.predicted, "gap_at_most": best.gap}
    if best.latency_ms is not None:
        values |= {"latency_ms_estimated": best.latency_ms, "batch_size": batch_size}
    if allocation == "best":
        try:
            stock = best_plan(record, budget, family="stock", **choices)
            values[f"{predicted}_stock_timm"] = stock.predicted
        except PlanError:
            values[f"{predicted}_stock_timm"] = None
    return best.plan, values


def _latency(shape: ModelShape, batch_size: int, path: Path | None) -> LatencyParts:
    """The estimate of this device, from a given calibration or from where `calibrate` leaves it."""
    from upvit_core.profiling.latency import Calibration, Latency

    if path is None:
        import torch

        from upvit_core.profiling.latency import default_path
        from upvit_core.profiling.throughput import device_name

        path = default_path(device_name(_device("auto")), "float32", torch.get_num_threads())
    return Latency(shape, batch_size, Calibration.load(path))


@app.command()
def calibrate(
    out: Annotated[Path | None, typer.Option(help="file to write; default: where plan and front look for it")] = None,
    seconds: Annotated[float, typer.Option(min=0, help="time for the measurements")] = 45.0,
    check: Annotated[bool, typer.Option(help="measure random plans too, and store how far estimates are off")] = True,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16")] = "float32",
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads; default: as torch chooses")] = None,
    model: Annotated[str | None, typer.Option(help="a model whose embedding is timed too")] = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Time what blocks are made of on this device, so that a plan's latency can be estimated."""
    import torch

    from upvit_core.importance.criterion import Progress
    from upvit_core.models.shape import deit_shape
    from upvit_core.profiling.calibrate import DEMO
    from upvit_core.profiling.calibrate import calibrate as run
    from upvit_core.profiling.held_out import held_out
    from upvit_core.profiling.latency import default_path

    if threads is not None:
        torch.set_num_threads(threads)
    bar, where = Bar(), _device(device)
    shapes = [] if model is None else [_open(model, pretrained=False).shape]
    known = run(
        device=where, dtype=dtype, seconds=seconds, shapes=shapes,
        progress=lambda done, total: bar(Progress(done, max(total, 1e-9), "s", "timing", total - done)),
    )  # fmt: skip
    if check:
        known = known.with_error(
            held_out(known, [(DEMO, (8, 32), 6), (deit_shape("tiny"), (1, 4), 6)], device=where)[1]
        )
    path = out or default_path(known.device, known.dtype, known.threads)
    known.save(path)
    values: dict[str, Any] = {"out": str(path), "device": known.device, "dtype": known.dtype, "threads": known.threads,
                              "seconds": known.seconds}  # fmt: skip
    if known.error is not None:
        values |= {"median_error": known.error.median_error, "worst_error": known.error.worst_error,
                   "rank_correlation": known.error.correlation, "plans": known.error.plans}  # fmt: skip
    emit(values, as_json)


@app.command()
def front(
    scores: Annotated[Path, typer.Argument(help="scores record")],
    over: Annotated[Axis, typer.Option(help="cost against which plans are compared")] = Axis.MACS,
    heads: Annotated[int | None, typer.Option(help="heads to merge into; default: as they are")] = None,
    round_to: Annotated[int, typer.Option(min=1, help="widths are multiples of this, such as 8")] = 1,
    batch_size: Annotated[int, typer.Option(min=1, help="of the latency")] = 1,
    calibration: Calibrated = None,
    out: Annotated[Path | None, typer.Option(help="folder to write every plan to")] = None,
    hide_dominated: Annotated[bool, typer.Option("--hide-dominated", help="only plans that no other beats")] = False,
    as_json: Json = False,
) -> None:
    """A table of plans: what each costs, the KL that scores predict, and which ones another beats."""
    from upvit_core.importance.scores import ImportanceScores
    from upvit_core.planning.front import candidates
    from upvit_core.planning.front import front as table

    record = ImportanceScores.load(scores)
    timed = over is Axis.LATENCY_MS or calibration is not None
    latency = _latency(record.shape, batch_size, calibration) if timed else None
    plans = candidates(record, heads=heads, round_to=round_to)
    rows = table(record, plans, latency=latency, axes=(over.value, "predicted"))
    predicted = "predicted_kl" if record.unit.startswith("nats") else "score_removed"
    listed: list[dict[str, Any]] = []
    for row in rows:
        if row.dominated and hide_dominated:
            continue
        entry: dict[str, Any] = {"plan": row.name, "params": row.params, "macs": row.macs}
        if row.latency_ms is not None:
            entry["latency_ms_estimated"] = row.latency_ms
        entry |= {predicted: row.predicted, "stock_timm": row.stock, "dominated": row.dominated}
        if out is not None:
            entry["file"] = str(out / f"{row.plan.digest}.json")
            row.plan.save(entry["file"])
        listed.append(entry)
    if as_json:
        typer.echo(json.dumps({"front": listed}))
        return
    for entry in listed:
        ms = f"{entry['latency_ms_estimated']:9.2f} ms (estimated)" if "latency_ms_estimated" in entry else ""
        marks = f"{'stock timm' if entry['stock_timm'] else '':<11}{'dominated' if entry['dominated'] else ''}"
        line = f"{entry['plan']:<28}{entry['params']:>14,}{entry['macs']:>18,}{ms}  {entry[predicted]:<12.4g}{marks}"
        typer.echo(line.rstrip())


@app.command()
def prune(
    model: Model,
    plan: Annotated[Path, typer.Argument(help="plan.json")],
    out: Annotated[Path, typer.Option(help="folder to write")],
    repair: Annotated[bool, typer.Option("--repair", help="mend the cut by least squares on proxy images")] = False,
    data: Annotated[str | None, typer.Option(help="images for --repair and for plans that keep directions")] = None,
    images: Annotated[int, typer.Option(min=1, help="proxy images for --repair and directions")] = 2000,
    seed: Annotated[int, typer.Option()] = 0,
    num_heads: Heads = None,
    root: Root = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Cut a model by a plan into a thinner model of the same structure."""
    from upvit_core.cut import cut
    from upvit_core.models.checkpoint import save_model
    from upvit_core.planning.plan import PruningPlan
    from upvit_core.profiling.macs import count_macs, count_parameters

    loaded, wanted = _open(model, num_heads, device=_device(device)), PruningPlan.load(plan)
    student = cut(loaded, wanted, repair=repair, data=data, root=root, images=images, seed=seed, report=Bar())
    shape = wanted.shape_after
    name = f"{loaded.name} pruned"
    save_model(
        student, out, shape=shape, pretrained_cfg=loaded.pretrained_cfg, plan_json=wanted.to_json(), name=name,
        class_names=loaded.class_names,
    )  # fmt: skip
    costs = {"params": count_parameters(shape), "macs": count_macs(shape)}
    emit({"out": str(out), **costs, "stock_timm": shape.is_uniform}, as_json)


@app.command()
def evaluate(
    model: Model,
    data: Data,
    teacher: Annotated[str | None, typer.Option(help="adds kl: mean nats an image, KL(teacher || model)")] = None,
    images: Annotated[
        int | None, typer.Option(min=1, help="evaluate on this many, drawn by seed; default: all")
    ] = None,
    seed: Annotated[int, typer.Option()] = 0,
    batch_size: Annotated[int, typer.Option(min=1)] = 100,
    num_heads: Heads = None,
    root: Root = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Top-1 and top-5 in percent on the evaluation images, and the KL to a teacher."""
    from upvit_core.data import open_images, proxy_indices
    from upvit_core.evaluation import evaluate as run
    from upvit_core.evaluation import predict

    where = _device(device)
    loaded = _open(model, num_heads, device=where)
    test = open_images(
        data, "val", pretrained_cfg=loaded.pretrained_cfg, num_classes=loaded.shape.num_classes, root=root
    )
    chosen = None if images is None else proxy_indices(test, images, seed)
    teacher_logits = None
    if teacher is not None:
        teacher_logits, _ = predict(
            _open(teacher, device=where).model, test.batches(batch_size, indices=chosen, device=where)
        )
    result = run(loaded.model, test.batches(batch_size, indices=chosen, device=where), teacher_logits=teacher_logits)
    low, high = result.top1_interval
    values: dict[str, Any] = {
        "top1": result.top1, "top1_low": low, "top1_high": high, "top5": result.top5, "images": result.images,
        "skipped": len(test.skipped),
    }  # fmt: skip
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
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Parameters and multiply-accumulates, exactly; images per second, measured."""
    from upvit_core.planning.plan import PruningPlan
    from upvit_core.profiling.macs import count_macs, count_parameters

    loaded = _open(model, num_heads, pretrained=pretrained, device=_device(device))
    wanted = None if plan is None else PruningPlan.load(plan)
    values: dict[str, Any] = {"params": count_parameters(loaded.shape), "macs": count_macs(loaded.shape)}
    if wanted is not None:
        values |= {"params_pruned": count_parameters(wanted.shape_after), "macs_pruned": count_macs(wanted.shape_after)}
    if measure:
        values |= _measured(loaded, None if wanted is None else wanted.shape_after, batch_size)
    emit(values, as_json)


def _measured(loaded: LoadedModel, pruned: Any, batch_size: int) -> dict[str, Any]:
    import torch

    from upvit_core.models.checkpoint import build_model
    from upvit_core.profiling.throughput import measure

    device = next(loaded.model.parameters()).device
    models = [loaded.model] + ([] if pruned is None else [build_model(pruned).to(device)])
    images = torch.randn(batch_size, loaded.shape.in_chans, *loaded.shape.img_size, device=device)
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


@app.command()
def distill(
    teacher: Annotated[str, typer.Option(help="model to learn from")],
    student: Annotated[str, typer.Option(help="folder of the pruned model")],
    data: Data,
    epochs: Annotated[int, typer.Option(min=1)],
    out: Annotated[Path, typer.Option(help="folder of runs")] = Path("runs"),
    preset: Annotated[str, typer.Option(help="letter, released_code or demo")] = "letter",
    lr: Annotated[float | None, typer.Option()] = None,
    batch_size: Annotated[int | None, typer.Option()] = None,
    alpha: Annotated[float | None, typer.Option(help="weight of the KL term")] = None,
    temperature: Annotated[float | None, typer.Option()] = None,
    seed: Annotated[int, typer.Option()] = 0,
    checkpoint_minutes: Annotated[float | None, typer.Option(help="work that a kill can lose, at most")] = None,
    from_scratch: Annotated[
        bool, typer.Option("--from-scratch", help="same shape, fresh weights: the baseline")
    ] = False,
    root: Root = None,
    device: Device = "auto",
    detach: Annotated[bool, typer.Option("--detach", help="return at once; the run goes on by itself")] = False,
    as_json: Json = False,
) -> None:
    """Distil a pruned model from its teacher (Eq. 2); prints the run's folder first."""
    from upvit_core.errors import RunError
    from upvit_core.recipe import PRESETS
    from upvit_core.runs.executors import executor_for
    from upvit_core.runs.spec import RunSpec
    from upvit_core.runs.store import RunStore

    if preset not in PRESETS:
        raise RunError(f"There is no preset {preset!r}; choose one of {', '.join(PRESETS)}.")
    given = {"lr": lr, "batch_size": batch_size, "alpha": alpha, "temperature": temperature, "seed": seed,
             "checkpoint_minutes": checkpoint_minutes, "from_scratch": from_scratch}  # fmt: skip
    values = PRESETS[preset].model_dump() | {key: value for key, value in given.items() if value is not None}
    spec = RunSpec.from_json(
        json.dumps(
            {"name": Path(student).name, "teacher": teacher, "student": _absolute(student), "data": data,
             "data_root": root, "epochs": epochs, "settings": values, "device": device}
        ),
        "This run",
    )  # fmt: skip
    store = RunStore(out)
    run = store.create(spec)
    typer.echo(str(run.folder), err=as_json)
    executor_for(store, spec).submit(run)
    if detach:
        emit({"run": str(run.folder)}, as_json)
    else:
        _follow(store, run.id, as_json)


def _absolute(path: str) -> str:
    return str(Path(path).resolve()) if os.path.exists(path) else path


def _follow(store: Any, run_id: str, as_json: bool) -> None:
    """Print new rows until the run ends; the run does not need this process."""
    offset, last = 0, {}
    while True:
        state = store.state(run_id)
        rows, offset = store.read_metrics(run_id, offset)
        for row in rows:
            if "top1" in row:
                last = row
                typer.echo(f"step {row['step']:>7}  {row['phase']:<9} top-1 {row['top1']:.2f} %", err=True)
        if not state.is_active:
            break
        time.sleep(0.5)
    if state.state != "done":
        from upvit_core.errors import RunError

        raise RunError(f"The run {run_id} ended as {state.state}: {state.error or 'see its log.txt'}")
    emit({"run": str(store.folder(run_id)), "top1": last.get("top1"), "state": state.state}, as_json)


Runs = Annotated[Path, typer.Option("--out", help="folder of runs")]


@app.command()
def runs(out: Runs = Path("runs"), as_json: Json = False) -> None:
    """List runs, newest first."""
    from upvit_core.runs.store import RunStore

    listed = [
        {"run": s.id, "name": s.name, "state": s.state.state, "progress": s.state.progress, "top1": s.state.top1}
        for s in RunStore(out).list()
    ]
    if as_json:
        typer.echo(json.dumps({"runs": listed}))
    for row in [] if as_json else listed:
        top1 = "" if row["top1"] is None else f"  top-1 {row['top1']:.2f} %"
        typer.echo(f"{row['run']:<60} {row['state']:<12} {row['progress']:4.0%}{top1}")


@app.command()
def resume(run: str, out: Runs = Path("runs"), as_json: Json = False) -> None:
    """Go on with an interrupted, failed or cancelled run from its last checkpoint."""
    from upvit_core.runs.executors import executor_for
    from upvit_core.runs.store import RunStore

    store = RunStore(out)
    again = store.resume(run)
    executor_for(store, again.spec).submit(again)
    emit({"run": str(again.folder), "state": store.state(run).state}, as_json)


@app.command()
def cancel(run: str, out: Runs = Path("runs"), as_json: Json = False) -> None:
    """Stop a run; its last checkpoint stays."""
    from upvit_core.runs.store import RunStore

    emit({"run": run, "state": RunStore(out).cancel(run).state}, as_json)


@app.command("import-scores")
def import_scores(
    folder: Annotated[Path, typer.Argument(help="folder of published score files")],
    out: Annotated[Path, typer.Option(help="scores record to write")],
    as_json: Json = False,
) -> None:
    """Turn published score files into a record; check the lists beside them against the scores."""
    from upvit_core.importance.published import check_rank_lists
    from upvit_core.importance.published import import_scores as read

    record = read(folder)
    record.save(out)
    checks = {check.key: check.not_chosen for check in check_rank_lists(record, folder)}
    result: dict[str, Any] = {"out": str(out), "model": record.model, "images": record.images, "digest": record.digest}
    if checks:
        result["listed_but_not_chosen"] = checks
    emit(result, as_json)


@app.command()
def compare(
    model: Model,
    data: Data,
    criteria: Annotated[
        str, typer.Option(help="names, comma-separated; the first is what the others are compared with")
    ] = ("kl,fisher,taylor,l1,l2,variance,random"),
    residual: Annotated[float, typer.Option()] = 0.5,
    attention: Annotated[float, typer.Option()] = 0.5,
    ffn: Annotated[float, typer.Option()] = 0.5,
    heads: Annotated[int | None, typer.Option()] = None,
    images: Annotated[int, typer.Option(min=1, help="proxy images for every criterion")] = 128,
    test_images: Annotated[int, typer.Option(min=1)] = 1000,
    seed: Annotated[int, typer.Option()] = 0,
    num_heads: Heads = None,
    root: Root = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Criteria side by side at one plan: what each keeps, and top-1 and KL right after its cut."""
    from dataclasses import asdict

    from upvit_core.comparison import compare_criteria
    from upvit_core.data import open_images
    from upvit_core.planning.select import plan_uniform

    loaded = _open(model, num_heads, device=_device(device))
    train, test = (
        open_images(data, split, pretrained_cfg=loaded.pretrained_cfg, num_classes=loaded.shape.num_classes, root=root)
        for split in ("train", "val")
    )
    results = compare_criteria(
        loaded, train, test, [name.strip() for name in criteria.split(",")],
        lambda record: plan_uniform(record, residual=residual, attention=attention, ffn=ffn, heads=heads),
        score_images=images, test_images=test_images, seed=seed, report=Bar(),
    )  # fmt: skip
    if as_json:
        typer.echo(json.dumps({"criteria": [asdict(result) for result in results]}))
        return
    typer.echo(
        f"{'criterion':<12}{'top-1 %':>9}{'KL, nats':>10}{'seconds':>9}   kept as {results[0].criterion}, by component"
    )
    for r in results:
        overlap = "  ".join(f"{component} {share:.0%}" for component, share in r.overlap.items())
        typer.echo(f"{r.criterion:<12}{r.top1:>9.2f}{r.kl:>10.4f}{r.seconds:>9.1f}   {overlap}")


class Format(StrEnum):
    ONNX = "onnx"


@app.command("export")
def export_model(
    model: Model,
    out: Annotated[Path, typer.Option(help="file to write")],
    format: Annotated[Format, typer.Option()] = Format.ONNX,
    num_heads: Heads = None,
    as_json: Json = False,
) -> None:
    """Export to ONNX and check the file with onnxruntime against the model."""
    from upvit_core.export import export_onnx

    loaded = _open(model, num_heads)
    emit({"out": str(out), "format": format.value, **export_onnx(loaded.model, loaded.shape, out)}, as_json)


@demo_app.command("train")
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


def main() -> None:
    """Entry point: an error of this project becomes one sentence on standard error and exit status 2."""
    try:
        app(standalone_mode=True)
    except UPViTError as error:
        typer.echo(f"Error: {error}", err=True)
        raise SystemExit(2) from None
