"""report: a plan or a run as one HTML file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from upvit_core.cli.common import emit
from upvit_core.cli.mapping import open_map
from upvit_core.cli.options import DataOptions, Json, MapFile, ModelOptions, OptionalData, file_to_write, takes_options

if TYPE_CHECKING:
    from upvit_core.evaluation import Evaluation
    from upvit_core.records.plan import PruningPlan
    from upvit_core.report import Measurement

app = typer.Typer()


@app.command()
@takes_options
def report(
    what: Annotated[Path, typer.Argument(help="a plan.json, or the folder of a run")],
    opening: ModelOptions,
    dataset: OptionalData,
    out: Annotated[Path, typer.Option(callback=file_to_write, help="HTML file to write")],
    scores: Annotated[Path | None, typer.Option(help="scores of the model, for the pictures of what stays")] = None,
    model: Annotated[str | None, typer.Option(help="with --data: measure the plan, right after the cut")] = None,
    images: Annotated[int, typer.Option(min=1, help="how many of them, drawn by seed 0")] = 1000,
    map_file: MapFile = None,
    as_json: Json = False,
) -> None:
    """Show a plan or a run in one HTML file: figures, numbers, where they come from, how to make them again."""
    from upvit_core.atomic import write_atomically
    from upvit_core.records.plan import PruningPlan
    from upvit_core.records.scores import ImportanceScores
    from upvit_core.report import plan_report, run_report
    from upvit_core.runs.store import RunStore

    record = ImportanceScores.load(scores) if scores else None
    if what.is_dir():
        html = run_report(RunStore(what.resolve().parent), what.resolve().name, record)
    else:
        plan = PruningPlan.load(what)
        measured = []
        if model and dataset.given:
            measured = measure(plan, model, opening, dataset.given, images)
        surrogate = None if map_file is None or record is None else open_map(map_file, record)
        named = {"name": what.stem, "model": model or "", "data": dataset.data or ""}
        html = plan_report(plan, record, measured=measured, surrogate=surrogate, **named)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(out, html.encode())
    emit({"out": str(out), "bytes": out.stat().st_size}, as_json)


def measure(
    plan: PruningPlan, model: str, opening: ModelOptions, dataset: DataOptions, images: int
) -> list[Measurement]:
    """Top-1 (of a text, perplexity) and KL of the plan, right after the cut, and that of the whole model."""
    from upvit_core.data import proxy_indices
    from upvit_core.evaluation import evaluate, readout_of, run_teacher
    from upvit_core.profiling.throughput import device_name
    from upvit_core.pruning.prune import cut
    from upvit_core.records.task import task_of
    from upvit_core.report import Measurement

    loaded, device = opening.open(model), opening.torch_device
    test = dataset.open(loaded, "val", apart=loaded.shape.features)
    readout = readout_of(loaded.shape, dataset.bank(loaded), test)
    chosen = proxy_indices(test, min(images, len(test)), 0)
    size = loaded.shape.batch_size(100)
    teacher = run_teacher(loaded.model, test.batches(size, indices=chosen, device=device), readout=readout)
    whole = teacher.outcomes.summary()
    student = cut(loaded, plan, data=dataset.data if plan.basis == "directions" else None, root=dataset.root)
    batches = test.batches(size, indices=chosen, device=device)
    pruned = evaluate(student, batches, teacher=loaded.model, teacher_logits=teacher.logits, readout=readout)
    task = task_of(loaded.shape)
    low, high = task.interval(pruned)
    under, over = pruned.kl_interval or (0.0, 0.0)
    how = f"{pruned.images:,} {task.samples} of {test.name}, seed 0, on {device_name(device)}"

    def formatted(result: Evaluation) -> str:
        return task.format(task.value(result), 2)

    return [
        Measurement(f"{task.name} right after the cut", f"{formatted(pruned)} (95 %: {low:.2f} to {high:.2f})", how),
        Measurement(f"{task.name} of the whole model", formatted(whole), how),
        Measurement("KL to the whole model", f"{pruned.kl:.4g} {task.nats} (95 %: {under:.4g} to {over:.4g})", how),
    ]
