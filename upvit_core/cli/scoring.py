"""score, score-blocks, import-scores, compare: what each channel and each half-block is worth."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from upvit_core.cli.common import Bar, depths_of, emit, known, removals_of
from upvit_core.cli.options import (
    DataOptions,
    Depth,
    DepthScores,
    Json,
    Model,
    ModelOptions,
    OptionalData,
    ProxyOptions,
    file_to_write,
    takes_options,
)
from upvit_core.records.basis import Basis
from upvit_core.records.criteria import BY_LABEL, OF_DIRECTIONS, WITHOUT_IMAGES, CriterionName, Precision, criteria_help

app = typer.Typer()
COMPARED = "kl,fisher,taylor,l1,l2,variance,random"


@app.command()
@takes_options
def score(
    model: Model,
    opening: ModelOptions,
    images: OptionalData,
    proxy: ProxyOptions,
    out: Annotated[Path, typer.Option(callback=file_to_write, help="scores record to write, .safetensors")],
    criterion: Annotated[CriterionName, typer.Option(help=criteria_help())] = CriterionName.FISHER,
    basis: Annotated[
        Basis, typer.Option(help=f"what is scored: channels, or directions (by {' or '.join(OF_DIRECTIONS)})")
    ] = (Basis.CHANNELS),
    precision: Annotated[Precision, typer.Option(help="of the forward passes; the KL is float32 or better")] = (
        Precision.FLOAT32
    ),
    depth: Depth = None,
    depth_scores: DepthScores = None,
    as_json: Json = False,
) -> None:
    """Score every channel by the KL divergence that its removal causes; with --depth, in the model cut to that first.

    Criteria of weights alone (l1, l2, random) need no --data.
    """
    from upvit_core.errors import ScoresError
    from upvit_core.importance.score import score as run
    from upvit_core.ranks import rank

    loaded = opening.open(model)
    if (removals := removals_of(depth, depth_scores)) is not None:
        from upvit_core.pruning.depth import at_depth

        loaded = at_depth(loaded, *removals)
    dataset = None if criterion in WITHOUT_IMAGES else images.given
    if dataset is None and criterion not in WITHOUT_IMAGES:
        raise ScoresError(f"The criterion {criterion.value} needs images; give --data.")
    train = None if dataset is None else dataset.open(loaded, "train", labelled=criterion in BY_LABEL)
    journal = out.with_name(f"{out.name}.partial{rank()}.jsonl")
    if basis is Basis.DIRECTIONS:
        from upvit_core.pruning.basis.scores import check_directions, score_directions

        check_directions(criterion.value)
        assert train is not None
        count, balanced = proxy.images or 2000, proxy.balanced
        record = score_directions(
            loaded, train, criterion.value, n=count, seed=proxy.seed, balanced=balanced, report=Bar()
        )
    else:
        record = run(
            loaded,
            train,
            criterion.value,
            n=proxy.images,
            seed=proxy.seed,
            balanced=proxy.balanced,
            precision=precision.value,
            journal=journal,
            report=Bar(),
        )
    for leftover in out.parent.glob(f"{out.name}.partial{rank()}*.jsonl"):
        leftover.unlink()
    if rank():
        return
    record.save(out)
    emit(
        {
            "out": str(out),
            "model": record.model,
            "criterion": record.criterion,
            "unit": record.unit,
            "images": record.images,
            "seed": proxy.seed,
            "seconds": record.seconds,
            "digest": record.digest,
            "skipped": len(train.skipped) if train else 0,
            **{key: record.notes[key] for key in ("stability",) if key in record.notes},
        },
        as_json,
    )


@app.command("score-blocks")
@takes_options
def score_blocks(
    model: Model,
    opening: ModelOptions,
    dataset: DataOptions,
    proxy: ProxyOptions,
    depth: Annotated[
        str, typer.Option(help="blocks that stay in the end, such as 8, or of each stage, such as 2,2,2,2")
    ],
    out: Annotated[Path, typer.Option(callback=file_to_write, help="record to write, .json")],
    after: Annotated[Path | None, typer.Option(help="plan.json of widths that are cut first")] = None,
    as_json: Json = False,
) -> None:
    """Remove half-blocks two by two, each time those whose absence costs least, and write all their scores."""
    from upvit_core.pruning.depth import score_blocks as run
    from upvit_core.ranks import rank
    from upvit_core.records.block_removals import pair_name
    from upvit_core.records.plan import PruningPlan

    loaded = opening.open(model)
    train = dataset.open(loaded, "train", labelled=False)
    journal = out.with_name(f"{out.name}.partial{rank()}.jsonl")
    record = run(
        loaded,
        train,
        depths_of(depth),
        n=proxy.images,
        seed=proxy.seed,
        balanced=proxy.balanced,
        after=None if after is None else PruningPlan.load(after),
        journal=journal,
        report=Bar(),
    )
    journal.unlink()
    if rank():
        return
    record.save(out)
    emit(
        {
            "out": str(out),
            "model": record.model,
            "images": record.images,
            "seed": proxy.seed,
            "seconds": record.seconds,
            "removed": [pair_name(step.removed) for step in record.steps],
            "kl": [step.kl / record.samples for step in record.steps],
            "digest": record.digest,
        },
        as_json,
    )


@app.command("import-scores")
def import_scores(
    folder: Annotated[Path, typer.Argument(help="folder of published score files")],
    out: Annotated[Path, typer.Option(callback=file_to_write, help="scores record to write")],
    as_json: Json = False,
) -> None:
    """Turn published score files into a record; check the lists beside them against the scores."""
    from upvit_core.importance.published import check_rank_lists
    from upvit_core.importance.published import import_scores as read

    record = read(folder)
    record.save(out)
    checks = {check.key: check.not_chosen for check in check_rank_lists(record, folder)}
    result: dict[str, object] = {
        "out": str(out),
        "model": record.model,
        "images": record.images,
        "digest": record.digest,
    }
    if checks:
        result["listed_but_not_chosen"] = checks
    emit(result, as_json)


@app.command()
@takes_options
def compare(
    model: Model,
    opening: ModelOptions,
    dataset: DataOptions,
    criteria: Annotated[
        str, typer.Option(help="names, comma-separated; the first is what the others are compared with")
    ] = COMPARED,
    residual: Annotated[float, typer.Option()] = 0.5,
    attention: Annotated[float, typer.Option()] = 0.5,
    ffn: Annotated[float, typer.Option()] = 0.5,
    heads: Annotated[int | None, typer.Option()] = None,
    images: Annotated[int, typer.Option(min=1, help="proxy images for every criterion")] = 128,
    test_images: Annotated[int, typer.Option(min=1)] = 1000,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    as_json: Json = False,
) -> None:
    """Criteria side by side at one plan: what each keeps, and top-1 (of a text, perplexity) and KL after its cut."""

    from upvit_core.comparison import compare_criteria
    from upvit_core.planning.ratios import plan_uniform
    from upvit_core.records.ratios import Ratios
    from upvit_core.records.task import task_of

    loaded = opening.open(model)
    names = [name.strip() for name in criteria.split(",")]
    if loaded.shape.features and criteria == COMPARED:
        names = [name for name in names if name not in BY_LABEL]
    train = dataset.open(loaded, "train", labelled=not BY_LABEL.isdisjoint(names), apart=True)
    test = dataset.open(loaded, "val", apart=True)
    results = compare_criteria(
        loaded,
        train,
        test,
        names,
        lambda record: plan_uniform(record, Ratios(residual, attention, ffn), heads=heads),
        score_images=images,
        test_images=test_images,
        seed=seed,
        report=Bar(),
    )
    if as_json:
        typer.echo(json.dumps({"criteria": [known(asdict(result)) for result in results]}))
        return
    task = task_of(loaded.shape)
    typer.echo(
        f"{'criterion':<12}{task.name + task.sign:>12}{'KL, nats':>10}{'seconds':>9}   kept as "
        f"{results[0].criterion}, by component"
    )
    for r in results:
        overlap = "  ".join(f"{component} {share:.0%}" for component, share in r.overlap.items())
        typer.echo(f"{r.criterion:<12}{r.value:>12.2f}{r.kl:>10.4f}{r.seconds:>9.1f}   {overlap}")
