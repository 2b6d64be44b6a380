"""plan, front, calibrate: what to remove, and what that is estimated to cost."""

from __future__ import annotations

import json
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from upvit_core.cli.common import Bar, Basis, emit, removals_of
from upvit_core.cli.options import Calibrated, Depth, DepthScores, Json, ModelOptions, takes_options

if TYPE_CHECKING:
    from upvit_core.profiling.latency import Latency, PyramidLatency
    from upvit_core.records.plan import PruningPlan
    from upvit_core.records.scores import ImportanceScores
    from upvit_core.records.shape import ModelShape

app = typer.Typer()


class Preset(StrEnum):
    DEIT_SMALL = "deit_small"
    DEIT_TINY = "deit_tiny"
    PVT_V2_B0 = "pvt_v2_b0"
    PVT_V2_B1 = "pvt_v2_b1"
    PVT_V2_B2 = "pvt_v2_b2"
    PVT_V2_B3 = "pvt_v2_b3"
    PVT_V2_B4 = "pvt_v2_b4"
    PVT_V2_B5 = "pvt_v2_b5"


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


@app.command()
def plan(
    scores: Annotated[Path, typer.Argument(help="scores record")],
    out: Annotated[Path, typer.Option(help="plan.json to write")],
    residual: Annotated[float, typer.Option(help="share of residual channels removed")] = 0.0,
    attention: Annotated[float, typer.Option(help="share of attention channels removed")] = 0.0,
    ffn: Annotated[float, typer.Option(help="share of FFN channels removed")] = 0.0,
    reduction: Annotated[
        float | None, typer.Option(help="share of spatial reductions' channels removed; default: the residual's")
    ] = None,
    heads: Annotated[int | None, typer.Option(help="heads to merge into; default: as they are")] = None,
    snap: Annotated[bool, typer.Option("--snap", help="take widths to the nearest that heads divide")] = False,
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
    widths: Annotated[
        str | None, typer.Option(help="48:3x48x192*6: residual, then heads x attention x FFN of every block")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="of a latency budget")] = 1,
    calibration: Calibrated = None,
    depth: Depth = None,
    depth_scores: DepthScores = None,
    as_json: Json = False,
) -> None:
    """Choose what stays, from scores and ratios, a preset, a budget, or widths."""
    from upvit_core.errors import PlanError
    from upvit_core.planning.ratios import plan_preset
    from upvit_core.planning.what_if import Allocation, WhatIf, percent_of
    from upvit_core.profiling.macs import count_macs, count_parameters
    from upvit_core.records.scores import ImportanceScores

    record = ImportanceScores.load(scores)
    found: dict[str, Any] = {}
    has_ratios = bool(residual or attention or ffn or preset)
    if widths is not None and (has_ratios or budget):
        raise PlanError("--widths names all widths itself; leave ratios, presets and budgets out.")
    if budget:
        made, found = _within(
            record, budget, (allocation or AllocationName.BEST).value, per.value, heads, round_to, basis.value,
            calibration, batch_size, has_ratios, None if depth is not None else depth_scores,
        )  # fmt: skip
        depth_scores = depth_scores if depth is not None else None
    elif preset is not None:
        made = plan_preset(record, preset.value, basis=basis.value)
    else:
        what_if = WhatIf(
            percent_of(residual), percent_of(attention), heads, percent_of(ffn), basis.value,
            allocation=cast(Allocation, (allocation or AllocationName.UNIFORM).value), round_to=round_to,
            widths=widths or "", reduction=None if reduction is None else percent_of(reduction),
        )  # fmt: skip
        made = what_if.plan_widths(record, snap=snap or allocation is not None, per=per.value)
    if (removals := removals_of(depth, depth_scores)) is not None:
        from upvit_core.planning.depth import plan_depth

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
    basis: str, calibration: Path | None, batch_size: int, has_ratios: bool, depth_scores: Path | None,
) -> tuple[PruningPlan, dict[str, Any]]:  # fmt: skip
    """The best plan within the budget, and what is known of it; with depth scores alone, of any depth they reach."""
    from upvit_core.errors import PlanError
    from upvit_core.planning.budget import Budget, best_plan

    if has_ratios:
        raise PlanError("A budget chooses the ratios itself; give a budget, or ratios, or a preset.")
    budget = Budget.parse(texts)
    latency = None
    if budget.latency_ms is not None or calibration is not None:
        latency = _latency(record.shape, batch_size, calibration)
    if record.shape.one_share:
        staged = cast("PyramidLatency | None", latency)
        plan, told = _within_stages(record, budget.limits(), allocation, heads, round_to, depth_scores, staged)
        return plan, told | ({"batch_size": batch_size} if latency is not None else {})
    choices: dict[str, Any] = {"heads": heads, "round_to": round_to, "latency": latency, "basis": basis}
    predicted = "predicted_kl" if record.unit.startswith("nats") else "score_removed"
    if depth_scores is not None:
        from upvit_core.planning.budget_depth import best_over_depth
        from upvit_core.records.block_removals import BlockRemovals

        removals = BlockRemovals.load(depth_scores)
        chosen, every = best_over_depth(record, removals, budget, family=allocation, per=per, **choices)
        by_depth = {f"{predicted}_at_{choice.depth}_blocks": choice.predicted for choice in every}
        return chosen.best.plan, {predicted: chosen.predicted, **by_depth}
    best = best_plan(record, budget, family=allocation, per=per, **choices)  # type: ignore[arg-type]
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


def _within_stages(
    record: ImportanceScores, limits: dict[str, float], allocation: str, heads: int | None, round_to: int,
    depth_scores: Path | None, latency: PyramidLatency | None,
) -> tuple[PruningPlan, dict[str, Any]]:  # fmt: skip
    """The best equal shares: in a model of stages, no width of a block is independent of the others' in cost."""
    from upvit_core.errors import PlanError
    from upvit_core.planning.budget_stages import best_shares, percents_of

    asked = {"--heads": heads is not None, "--round-to": round_to > 1, "--depth-scores": depth_scores is not None,
             f"--allocation {allocation}": allocation not in ("best", "uniform", "stock")}  # fmt: skip
    if refused := [name for name, given in asked.items() if given]:
        raise PlanError(
            f"{', '.join(refused)} with a budget is defined for models without stages; {record.shape.name} takes equal "
            "shares of each component: leave it out."
        )
    found = best_shares(record, limits, stock=allocation == "stock", latency=latency)
    predicted = "predicted_kl" if record.unit.startswith("nats") else "score_removed"
    values = {predicted: found.predicted, **{f"{k}_removed": v / 100 for k, v in percents_of(found.plan).items()}}
    return found.plan, values | ({} if found.latency_ms is None else {"latency_ms_estimated": found.latency_ms})


def _latency(shape: ModelShape, batch_size: int, path: Path | None) -> Latency | PyramidLatency:
    """The estimate of this device, from a given calibration or from where `calibrate` leaves it."""
    from upvit_core.profiling.calibration import Calibration
    from upvit_core.profiling.latency import latency_of

    if path is None:
        import torch

        from upvit_core.profiling.calibration import default_path
        from upvit_core.profiling.throughput import device_name

        path = default_path(device_name(ModelOptions().torch_device), "float32", torch.get_num_threads(), shape)
    return latency_of(shape, batch_size, Calibration.load(path))


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
    from upvit_core.planning.pareto import candidate_plans
    from upvit_core.planning.pareto import pareto_rows as table
    from upvit_core.records.scores import ImportanceScores

    record = ImportanceScores.load(scores)
    timed = over is Axis.LATENCY_MS or calibration is not None
    latency = _latency(record.shape, batch_size, calibration) if timed else None
    plans = candidate_plans(record, heads=heads, round_to=round_to)
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
@takes_options
def calibrate(
    opening: ModelOptions,
    out: Annotated[Path | None, typer.Option(help="file to write; default: where plan and front look for it")] = None,
    seconds: Annotated[float, typer.Option(min=0, help="time for the measurements")] = 45.0,
    check: Annotated[bool, typer.Option(help="measure random plans too, and store how far estimates are off")] = True,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16")] = "float32",
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads; default: as torch chooses")] = None,
    model: Annotated[str | None, typer.Option(help="time the parts of this model; default: plain ViTs")] = None,
    as_json: Json = False,
) -> None:
    """Time what blocks are made of on this device, so that a plan's latency can be estimated."""
    import torch

    from upvit_core.importance.criterion import Progress
    from upvit_core.profiling.calibrate import calibrate as run
    from upvit_core.profiling.calibration import default_path
    from upvit_core.profiling.held_out import calibrate_and_check

    if threads is not None:
        torch.set_num_threads(threads)
    bar = Bar()
    shape = None if model is None else replace(opening, pretrained=False, device="cpu").open(model).shape
    known = (calibrate_and_check if check else run)(
        device=opening.torch_device, dtype=dtype, seconds=seconds, shape=shape,
        progress=lambda done, total: bar(Progress(done, max(total, 1e-9), "s", "timing", total - done)),
    )  # fmt: skip
    path = out or default_path(known.device, known.dtype, known.threads, shape)
    known.save(path)
    values: dict[str, Any] = {"out": str(path), "device": known.device, "dtype": known.dtype, "threads": known.threads,
                              "seconds": known.seconds}  # fmt: skip
    if known.error is not None:
        values |= {"median_error": known.error.median_error, "worst_error": known.error.worst_error,
                   "rank_correlation": known.error.correlation, "plans": known.error.plans}  # fmt: skip
    emit(values, as_json)
