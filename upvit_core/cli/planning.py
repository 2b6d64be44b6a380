"""plan, front, calibrate: what to remove, and what that is estimated to cost."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, cast

import typer

from upvit_core.cli.common import Bar, emit, removals_of
from upvit_core.cli.mapping import expectations, open_map
from upvit_core.cli.options import (
    Depth,
    DepthScores,
    Json,
    MapFile,
    ModelOptions,
    file_to_write,
    folder_to_write,
    takes_options,
)
from upvit_core.errors import CalibrationError
from upvit_core.records.basis import Basis
from upvit_core.records.ratios import Ratios

if TYPE_CHECKING:
    from upvit_core.mapping.surrogate import Surrogate
    from upvit_core.profiling.latency import Latency, PyramidLatency
    from upvit_core.records.plan import PruningPlan
    from upvit_core.records.scores import ImportanceScores
    from upvit_core.records.shape import ModelShape

app = typer.Typer()
Spread = Literal["best", "uniform", "stock", "isomorphic", "global"]
Per = Literal["channel", "params", "macs"]
Axis = Literal["macs", "params", "latency_ms"]
Preset = Literal[
    "deit_small", "deit_tiny", "pvt_v2_b0", "pvt_v2_b1", "pvt_v2_b2", "pvt_v2_b3", "pvt_v2_b4", "pvt_v2_b5"
]

REMOVED = "score_removed_percent"


@dataclass(frozen=True)
class WidthOptions:
    """Constraints on every width."""

    heads: Annotated[int | None, typer.Option(help="number of heads after merging; default: as they are")] = None
    round_to: Annotated[int, typer.Option(min=1, help="widths are multiples of this, such as 8")] = 1


@dataclass(frozen=True)
class LatencyOptions:
    """Device and batch size of a latency."""

    batch_size: Annotated[int, typer.Option(min=1, help="batch size of the latency")] = 1
    calibration: Annotated[
        Path | None, typer.Option(help="file that `calibrate` wrote; default: the one for this device")
    ] = None

    def of(self, shape: ModelShape) -> Latency | PyramidLatency:
        from upvit_core.profiling.calibration import Calibration
        from upvit_core.profiling.latency import latency_of

        if self.calibration is not None:
            return latency_of(shape, self.batch_size, Calibration.load(self.calibration))
        import torch

        from upvit_core.profiling.calibration import default_path
        from upvit_core.profiling.throughput import device_name

        path = default_path(device_name(ModelOptions().torch_device), "float32", torch.get_num_threads(), shape)
        if not (known := Calibration.load(path)).is_current:
            raise CalibrationError(
                f"{path} was measured with torch {known.versions['torch']}, another than is installed; run "
                "`upvit_core calibrate` again, or give it as --calibration."
            )
        return latency_of(shape, self.batch_size, known)


@app.command()
@takes_options
def plan(
    scores: Annotated[Path, typer.Argument(help="scores record")],
    out: Annotated[Path, typer.Option(callback=file_to_write, help="plan.json to write")],
    ratios: Ratios,
    chosen: WidthOptions,
    timing: LatencyOptions,
    snap: Annotated[bool, typer.Option("--snap", help="round widths to the nearest that the heads divide")] = False,
    preset: Annotated[Preset | None, typer.Option(help="widths of a stock model")] = None,
    basis: Annotated[Basis, typer.Option(help="what is removed: channels (UP-ViT), or directions")] = Basis.CHANNELS,
    budget: Annotated[
        list[str] | None, typer.Option(help="macs=1.2G, params=6M or latency_ms=4; repeat it for several limits")
    ] = None,
    allocation: Annotated[
        Spread | None,
        typer.Option(help="how widths spread over blocks; default: uniform for ratios, best for a budget"),
    ] = None,
    per: Annotated[Per, typer.Option(help="what a global threshold divides scores by")] = "channel",
    widths: Annotated[
        str | None, typer.Option(help="48:3x48x192*6: residual, then heads x attention x FFN of every block")
    ] = None,
    depth: Depth = None,
    depth_scores: DepthScores = None,
    map_file: MapFile = None,
    as_json: Json = False,
) -> None:
    """Choose what stays, from scores and ratios, a preset, a budget, or widths; --map adds what to expect of it.

    With --map, a budget gives the solver's plan, or another one if the map is sure that it is better.
    """
    from upvit_core.errors import PlanError
    from upvit_core.planning.ratios import plan_preset
    from upvit_core.planning.what_if import Allocation, WhatIf
    from upvit_core.profiling.macs import count_macs, count_parameters
    from upvit_core.records.scores import ImportanceScores

    record = ImportanceScores.load(scores)
    surrogate = None if map_file is None else open_map(map_file, record)
    names_ratios = any(ratios.named.values()) or preset is not None
    facts: dict[str, object] = {}
    if widths is not None and (names_ratios or budget):
        raise PlanError("--widths names all widths itself; leave ratios, presets and budgets out.")
    if budget:
        if names_ratios:
            raise PlanError("A budget chooses the ratios itself; give a budget, or ratios, or a preset.")
        wanted = BudgetChoice(allocation or "best", per, basis, chosen, timing, surrogate)
        made, facts = wanted.plan(record, budget, None if depth is not None else depth_scores)
        depth_scores = depth_scores if depth is not None else None
    elif preset is not None:
        made = plan_preset(record, preset, basis=basis)
    else:
        spread = cast(Allocation, allocation or "uniform")
        what_if = WhatIf(0, 0, chosen.heads, 0, basis, allocation=spread, round_to=chosen.round_to, widths=widths or "")
        what_if = what_if.with_percents(ratios.percents)
        made = what_if.plan_widths(record, snap=snap or allocation is not None, per=per)
    if (removals := removals_of(depth, depth_scores)) is not None:
        from upvit_core.planning.depth import plan_depth

        made = plan_depth(made, *removals)
    made.save(out)
    before, after = made.shape_before, made.shape_after
    costs = {"params": count_parameters(after), "macs": count_macs(after)}
    costs |= {"params_before": count_parameters(before), "macs_before": count_macs(before)}
    if surrogate is not None:
        facts |= expectations(surrogate, record, [made])[0]
    about = {"depth": after.depth, "stock_timm": after.is_uniform, "digest": made.digest}
    emit({"out": str(out), **costs, **about, **facts}, as_json)


@dataclass(frozen=True)
class BudgetChoice:
    """Options for the best plan within a budget."""

    allocation: Spread
    per: Per
    basis: Basis
    widths: WidthOptions
    timing: LatencyOptions
    surrogate: Surrogate | None = None

    def plan(
        self, record: ImportanceScores, texts: list[str], depth_scores: Path | None
    ) -> tuple[PruningPlan, dict[str, object]]:
        """The plan and what is known of it; with depth scores, of any depth that they reach."""
        from upvit_core.errors import PlanError
        from upvit_core.planning.budget import Budget, best_plan

        budget = Budget.parse(texts)
        is_timed = budget.latency_ms is not None or self.timing.calibration is not None
        latency = self.timing.of(record.shape) if is_timed else None
        share = partial(percent_of_score, record)
        if record.shape.one_share:
            self._refuse_beside_shares(record.shape.name, depth_scores)
            return self._plan_of_shares(record, budget.limits(), cast("PyramidLatency | None", latency))
        best = partial(
            best_plan,
            family=self.allocation,
            per=self.per,
            heads=self.widths.heads,
            round_to=self.widths.round_to,
            latency=cast("Latency | None", latency),
            basis=self.basis,
        )
        if depth_scores is not None:
            from upvit_core.planning.budget_depth import best_over_depth
            from upvit_core.records.block_removals import BlockRemovals

            removals = BlockRemovals.load(depth_scores)
            chosen, every = best_over_depth(record, removals, budget, **best.keywords)
            by_depth = {f"{REMOVED}_at_{other.depth}_blocks": share(other.predicted) for other in every}
            return chosen.best.plan, {REMOVED: share(chosen.predicted), **by_depth}
        solve = partial(best, budget=budget)
        choice = solve(record)
        values: dict[str, object] = {}
        if self.surrogate is not None:
            from upvit_core.mapping.choose import rank

            ranked = rank(self.surrogate, record, solve)
            choice, values = ranked.plans[ranked.best], {"solvers_own_choice": ranked.best == 0}
        values |= {REMOVED: share(choice.predicted), "gap_at_most": share(choice.gap)}
        if choice.latency_ms is not None:
            values |= {"latency_ms_estimated": choice.latency_ms, "batch_size": self.timing.batch_size}
        if self.allocation == "best":
            values[f"{REMOVED}_stock_timm"] = None
            with suppress(PlanError):
                values[f"{REMOVED}_stock_timm"] = share(best(record, budget, family="stock").predicted)
        return choice.plan, values

    def _refuse_beside_shares(self, model: str, depth_scores: Path | None) -> None:
        from upvit_core.errors import PlanError

        given = {
            "--heads": self.widths.heads is not None,
            "--round-to": self.widths.round_to > 1,
            "--depth-scores": depth_scores is not None,
            f"--allocation {self.allocation}": self.allocation not in ("best", "uniform", "stock"),
        }
        if refused := [name for name, is_given in given.items() if is_given]:
            raise PlanError(
                f"{', '.join(refused)} with a budget is defined for models without stages; {model} takes equal "
                "shares of each component: leave it out."
            )

    def _plan_of_shares(
        self, record: ImportanceScores, limits: dict[str, float], latency: PyramidLatency | None
    ) -> tuple[PruningPlan, dict[str, object]]:
        """Equal shares, as in a model of stages no width's cost is independent of the other widths."""
        from upvit_core.planning.budget_stages import best_shares, percents_of

        best = best_shares(record, limits, stock=self.allocation == "stock", latency=latency)
        values: dict[str, object] = {REMOVED: percent_of_score(record, best.predicted)}
        values |= {f"{component}_removed": share / 100 for component, share in percents_of(best.plan).items()}
        if best.latency_ms is not None:
            values["latency_ms_estimated"] = best.latency_ms
        return best.plan, values | ({} if latency is None else {"batch_size": self.timing.batch_size})


def percent_of_score(record: ImportanceScores, lost: float) -> float:
    """A sum of scores as a share of all, in percent; it tells no accuracy."""
    from upvit_core.planning.curves import total_score

    return 100 * lost / (total_score(record) or 1.0)


@app.command()
@takes_options
def front(
    scores: Annotated[Path, typer.Argument(help="scores record")],
    chosen: WidthOptions,
    timing: LatencyOptions,
    over: Annotated[Axis, typer.Option(help="cost by which plans are compared")] = "macs",
    out: Annotated[Path | None, typer.Option(callback=folder_to_write, help="folder to write every plan to")] = None,
    hide_dominated: Annotated[
        bool, typer.Option("--hide-dominated", help="leave out plans that another beats")
    ] = False,
    map_file: MapFile = None,
    as_json: Json = False,
) -> None:
    """A table of plans: what each costs, the share of the score that it removes, and which ones another beats.

    With --map also the expected KL and top-1 (of a text, perplexity) of each.
    """
    from upvit_core.planning.pareto import candidate_plans, pareto_rows
    from upvit_core.records.scores import ImportanceScores

    record = ImportanceScores.load(scores)
    is_timed = over == "latency_ms" or timing.calibration is not None
    latency = timing.of(record.shape) if is_timed else None
    surrogate = None if map_file is None else open_map(map_file, record)
    basis = record.basis if surrogate is None else surrogate.record.basis
    plans = candidate_plans(record, heads=chosen.heads, round_to=chosen.round_to, basis=basis)
    rows = pareto_rows(record, plans, latency=latency, axes=(over, "predicted"))
    rows = [row for row in rows if not (row.dominated and hide_dominated)]
    if out is not None:
        for row in rows:
            row.plan.save(out / f"{row.plan.digest}.json")
    known = expectations(surrogate, record, [row.plan for row in rows]) if surrogate else [{}] * len(rows)
    removed = [percent_of_score(record, row.predicted) for row in rows]
    if as_json:
        listed: list[dict[str, object]] = [
            {"plan": row.name, "params": row.params, "macs": row.macs}
            | ({} if row.latency_ms is None else {"latency_ms_estimated": row.latency_ms})
            | {REMOVED: percent, "stock_timm": row.stock, "dominated": row.dominated, **expected}
            | ({} if out is None else {"file": str(out / f"{row.plan.digest}.json")})
            for row, percent, expected in zip(rows, removed, known, strict=True)
        ]
        typer.echo(json.dumps({"front": listed}))
        return
    for row, percent, expected in zip(rows, removed, known, strict=True):
        ms = "" if row.latency_ms is None else f"{row.latency_ms:9.2f} ms (estimated)"
        marks = f"{'stock timm' if row.stock else '':<11}{'dominated' if row.dominated else ''}"
        line = f"{row.name:<28}{row.params:>14,}{row.macs:>18,}{ms}  {f'{percent:.3g} % of the score':<24}{marks:<22}"
        told = "  ".join(f"{name} {value:.4g}" for name, value in expected.items() if isinstance(value, float))
        typer.echo((line + told).rstrip())


@app.command()
@takes_options
def calibrate(
    opening: ModelOptions,
    out: Annotated[
        Path | None,
        typer.Option(callback=file_to_write, help="file to write; default: where verbs look for it"),
    ] = None,
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
    result = (calibrate_and_check if check else run)(
        device=opening.torch_device,
        dtype=dtype,
        seconds=seconds,
        shape=shape,
        progress=lambda done, total: bar(Progress(done, max(total, 1e-9), "s", "timing", total - done)),
    )
    path = out or default_path(result.device, result.dtype, result.threads, shape)
    result.save(path)
    values: dict[str, object] = {"out": str(path)}
    values |= {key: getattr(result, key) for key in ("device", "dtype", "threads", "seconds")}
    if (error := result.error) is not None:
        values |= {"median_error": error.median_error, "worst_error": error.worst_error}
        values |= {"rank_correlation": error.correlation, "plans": error.plans}
    emit(values, as_json)
