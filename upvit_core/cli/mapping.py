"""map: cuts measured around a model, from which plan and front estimate all others."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from upvit_core.cli.common import Bar, duration, emit
from upvit_core.cli.options import DataOptions, Json, Model, ModelOptions, file_to_write, takes_options
from upvit_core.records.basis import Basis

if TYPE_CHECKING:
    from upvit_core.mapping.surrogate import Surrogate
    from upvit_core.records.plan import PruningPlan
    from upvit_core.records.scores import ImportanceScores

app = typer.Typer()


@app.command("map")
@takes_options
def make_map(
    model: Model,
    opening: ModelOptions,
    dataset: DataOptions,
    scores: Annotated[Path, typer.Option(help="scores record of the model")],
    out: Annotated[Path, typer.Option(callback=file_to_write, help="map.json to write or to continue")],
    cuts: Annotated[
        int, typer.Option(min=1, help="most cuts to measure; fewer if estimates are good enough before")
    ] = 48,
    basis: Annotated[Basis, typer.Option(help="what is removed: channels, or directions")] = Basis.CHANNELS,
    repair: Annotated[bool, typer.Option("--repair", help="repair every cut by least squares")] = False,
    images: Annotated[int, typer.Option(min=2, help="held-out images on which every cut is measured")] = 1000,
    fitted_to: Annotated[int, typer.Option(min=5, help="training images for --repair and directions")] = 500,
    as_json: Json = False,
) -> None:
    """Measure cuts of a model on held-out images. Each cut is saved; after a stop, the same command continues."""
    from upvit_core.mapping.cost import expected_cost, seconds_a_mac
    from upvit_core.mapping.grow import grow
    from upvit_core.mapping.measure import CutMeter
    from upvit_core.records.map import Map
    from upvit_core.records.scores import ImportanceScores

    loaded, record = opening.open(model), ImportanceScores.load(scores)
    needs_train = repair or basis is Basis.DIRECTIONS or loaded.shape.features
    train = dataset.open(loaded, "train", apart=loaded.shape.features) if needs_train else None
    test, bar = dataset.open(loaded, "val", apart=loaded.shape.features), Bar()
    meter = CutMeter(loaded, record, test, train, basis, repair, held_out=images, fitted_to=fitted_to, report=bar)
    known = Map.load(out) if out.exists() else None
    cost = expected_cost(meter, seconds_a_mac(meter))
    left = max(cuts - (len(known.cuts) if known else 0), 0)
    spent = f"about {duration(cost.seconds * left)} after preparation, at most {cost.memory / 2**20:,.0f} MiB"
    typer.echo(f"Up to {left} cuts to measure: {spent}.", err=True)
    made = grow(meter, known, most=cuts, report=bar, on_cut=lambda grown: grown.save(out))
    made.save(out)
    errors = made.errors[-1].model_dump(exclude={"cuts"}) if made.errors else {}
    told = {"seconds_a_cut_expected": cost.seconds, "memory_mib_expected": cost.memory / 2**20}
    taken = {"seconds_a_cut": sum(cut.seconds for cut in made.cuts) / max(len(made.cuts), 1)}
    left_out = {f"left_out_{name}": value for name, value in errors.items()}
    emit({"out": str(out), "cuts": len(made.cuts), **told, **taken, **left_out, "digest": made.digest}, as_json)


def open_map(path: Path, scores: ImportanceScores) -> Surrogate:
    """Estimates by a map of these scores. Raises MapError where it is of others."""
    from upvit_core.errors import MapError
    from upvit_core.mapping.surrogate import Surrogate
    from upvit_core.records.map import Map

    record = Map.load(path)
    if record.scores_digest != scores.digest:
        raise MapError(f"{path} is a map of other scores than these; make one of these with `map`.")
    return Surrogate(record)


def expectations(surrogate: Surrogate, scores: ImportanceScores, plans: list[PruningPlan]) -> list[dict[str, object]]:
    """The map's account of each plan: measured where this very plan was, else estimated with its band of 80 %.

    Raises MapError where a plan is of the other basis.
    """
    from upvit_core.errors import MapError
    from upvit_core.mapping.points import Worth

    record, name = surrogate.record, surrogate.task.key
    if other := next((plan.basis for plan in plans if plan.basis != record.basis), None):
        raise MapError(f"The map is of {record.basis} and the plan of {other}; make a map with --basis {other}.")
    worth = Worth(scores, record.basis)
    told: list[dict[str, object]] = []
    found = surrogate.estimate([worth.of(plan) for plan in plans])
    for row, plan in enumerate(plans):
        if (cut := record.measured(plan.digest)) is not None:
            told.append({"kl_measured": cut.kl, f"{name}_measured": surrogate.task.value(cut)})
        elif not found.known[row]:
            told.append({"kl_estimated": None, f"{name}_estimated": None})
        else:
            bands = (
                ("kl", found.kl, found.kl_low, found.kl_high),
                (name, found.value, found.value_low, found.value_high),
            )
            told.append(
                {
                    f"{of}_{end}": float(values[row])
                    for of, *ends in bands
                    for end, values in zip(("estimated", "low", "high"), ends, strict=True)
                }
            )
    return told
