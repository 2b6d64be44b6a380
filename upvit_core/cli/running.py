"""distill, finetune: training as a run, which outlives the command."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, ClassVar, Literal, cast

import typer

from upvit_core.cli.options import (
    DataOptions,
    Detach,
    Json,
    Model,
    ModelOptions,
    OptionalData,
    given_values,
    takes_options,
)
from upvit_core.cli.runs import Runs, launch_new
from upvit_core.errors import RunError
from upvit_core.ranks import rank
from upvit_core.records.elastic import FILE, is_elastic
from upvit_core.records.plan import PruningPlan
from upvit_core.runs.spec import absolute
from upvit_core.training.settings import FINETUNE_PRESETS, PRESETS, DistillSettings, usual_preset

app = typer.Typer()


@dataclass(frozen=True)
class TrainingOptions:
    """Fields of `DistillSettings`, which describes them, that take the place of the preset's."""

    SETTINGS: ClassVar = DistillSettings
    lr: float | None = None
    batch_size: int | None = None
    seed: int | None = None
    workers: int | None = None
    checkpoint_minutes: float | None = None
    from_scratch: Annotated[bool | None, typer.Option("--from-scratch")] = None
    compile: Annotated[bool | None, typer.Option("--compile")] = None
    plain: Annotated[bool | None, typer.Option("--plain")] = None


@dataclass(frozen=True)
class DistillOptions(TrainingOptions):
    """Options of training with a teacher."""

    alpha: float | None = None
    temperature: float | None = None
    feature_weight: float | None = None
    teacher_top_k: int | None = None
    sizes: int | None = None
    tensorboard: Annotated[bool | None, typer.Option("--tensorboard")] = None


@dataclass(frozen=True)
class FinetuneOptions(TrainingOptions):
    """Options of training without a teacher."""

    layer_decay: float | None = None
    head_only: Annotated[bool | None, typer.Option("--head-only")] = None


@dataclass(frozen=True)
class SlurmOptions:
    """Fields of `SlurmSettings`."""

    nodes: Annotated[int | None, typer.Option(help="slurm: machines")] = None
    gpus_per_node: Annotated[
        int | None, typer.Option("--gpus", help="slurm: GPUs per node; a process for each, unless --processes")
    ] = None
    partition: Annotated[str | None, typer.Option(help="slurm")] = None
    minutes: Annotated[int | None, typer.Option(help="slurm: time limit; a longer run saves and is queued again")] = (
        None
    )
    cpus_per_process: Annotated[int | None, typer.Option("--cpus", help="slurm: CPUs per process")] = None
    mem_gb: Annotated[float | None, typer.Option(help="slurm: memory per node")] = None
    account: Annotated[str | None, typer.Option(help="slurm")] = None
    qos: Annotated[str | None, typer.Option(help="slurm")] = None


@app.command()
@takes_options
def distill(
    *,
    teacher: Annotated[str | None, typer.Option(help="model to learn from")] = None,
    student: Annotated[str | None, typer.Option(help="folder of a pruned or an elastic model")] = None,
    epochs: Annotated[int | None, typer.Option(min=1)] = None,
    plan: Annotated[Path | None, typer.Option(help="plan.json to cut the teacher by, in place of --student")] = None,
    order: Annotated[
        Path | None, typer.Option(help="folder that the studio exported; other options override what it holds")
    ] = None,
    out: Runs = Path("runs"),
    preset: Annotated[
        str | None,
        typer.Option(
            "--preset",
            "--recipe",
            help="letter, released_code, demo, repaired or language; default: "
            "repaired if the student is elastic or records a repair, language for a GPT-2, else letter",
        ),
    ] = None,
    opening: ModelOptions,
    dataset: OptionalData,
    training: DistillOptions,
    priority: Annotated[int | None, typer.Option(help="-2 to 2; higher goes first in the device's queue")] = None,
    processes: Annotated[
        int | None,
        typer.Option(min=1, help="processes that train together on this machine, each on a GPU if there are GPUs"),
    ] = None,
    executor: Annotated[str | None, typer.Option(help="local or slurm")] = None,
    slurm: SlurmOptions,
    detach: Detach = False,
    as_json: Json = False,
) -> None:
    """Distil a pruned model from its teacher (Eq. 2), or all sizes of an elastic one; prints the run's folder first."""
    from upvit_core.runs.bundle import read_order

    if not opening.pretrained:
        raise RunError("A teacher without trained weights has nothing to teach; leave out --no-pretrained.")
    asked: dict[str, object] = read_order(order).model_dump() if order else {}
    if not order and preset is None:
        preset = _announced_preset(student, plan)
    settings = cast(dict[str, object], asked["settings"]) if preset is None else _settings(PRESETS, preset)
    slurm_settings = given_values(slurm)
    given = {
        "teacher": _opened_by(opening, teacher or asked.get("teacher")),
        "student": absolute(student),
        "data": dataset.data,
        "data_root": dataset.root,
        "img_size": opening.side,
        "epochs": epochs,
        "device": opening.device,
        "priority": priority,
        "processes": processes or slurm.gpus_per_node,
        "executor": executor,
        "slurm": slurm_settings or None,
        "settings": {**settings, **given_values(training)},
    }
    asked |= {key: value for key, value in given.items() if value is not None}
    if plan:
        record = PruningPlan.load(plan)
        asked |= {"plan": json.loads(record.to_json()), "repair": record.fitted is not None and record.fitted.repair}
    if missing := [f"--{name}" for name in ("teacher", "data", "epochs") if not asked.get(name)]:
        raise RunError(f"Give {', '.join(missing)}, or an --order that holds what is missing.")
    if asked.get("executor", "local") == "local" and slurm_settings:
        raise RunError(f"{', '.join(slurm_settings)} are for Slurm; add --executor slurm or leave them out.")
    if student and is_elastic(student):
        asked["kind"] = "elastic"
    asked.setdefault("name", Path(student).name if student else Path(plan or "run").stem)
    launch_new(asked, out, detach, as_json)


@app.command()
@takes_options
def finetune(
    model: Model,
    opening: ModelOptions,
    dataset: DataOptions,
    training: FinetuneOptions,
    epochs: Annotated[int, typer.Option(min=1)],
    out: Runs = Path("runs"),
    preset: Annotated[str, typer.Option(help="finetune or demo (minutes on a CPU)")] = "finetune",
    head: Annotated[Literal["auto", "new", "keep"], typer.Option(help="auto: a new one where classes differ")] = "auto",
    in_chans: Annotated[int | None, typer.Option(help="1 (grey) or 3 (colour); default: the model's")] = None,
    detach: Detach = False,
    as_json: Json = False,
) -> None:
    """Take a model to other images: a new head where the classes differ, no teacher; a run like any other.

    --no-pretrained draws fresh weights, as --from-scratch does.
    """
    _refuse_text(model, opening)
    settings = {**_settings(FINETUNE_PRESETS, preset), **given_values(training)}
    asked: dict[str, object] = {
        "kind": "finetune",
        "name": f"{Path(model).name} on {Path(dataset.data).name.split('.')[0]}"[:200],
        "student": _opened_by(opening, absolute(model)),
        "data": dataset.data,
        "data_root": dataset.root,
        "head": head,
        "in_chans": in_chans,
        "img_size": opening.side,
        "epochs": epochs,
        "settings": settings if opening.pretrained else settings | {"from_scratch": True},
        "device": opening.device or "auto",
    }
    launch_new(asked, out, detach, as_json)


def _refuse_text(model: str, opening: ModelOptions) -> None:
    """Raises UnsupportedModelError before a run is made, where the model is a folder of a language model."""
    from upvit_core.models.retarget import DISTIL, FINE_TUNING
    from upvit_core.records.task import refuse_language

    if Path(model).is_dir():
        refuse_language(replace(opening, pretrained=True, device="cpu").open(model).shape, FINE_TUNING, DISTIL)


def _settings(presets: Mapping[str, DistillSettings], name: str) -> dict[str, object]:
    if name not in presets:
        raise RunError(f"There is no preset {name!r}; choose one of {', '.join(presets)}.")
    return presets[name].model_dump()


def _opened_by(opening: ModelOptions, model: object) -> object:
    return str(opening.source(str(model))) if model else model


REASONS = {
    "letter": "no repair of the student is recorded",
    "repaired": "{path} records repair, which large steps and mixed images would undo",
    "language": "{path} is for a language model",
}


def _announced_preset(student: str | None, plan: Path | None) -> str:
    """Name of the usual preset for this student; the first process prints it on standard error, with the reason."""
    elastic = student is not None and is_elastic(student)
    path = plan if plan is not None else Path(student or "") / (FILE if elastic else "plan.json")
    record = PruningPlan.load(path) if path.is_file() and not elastic else None
    repaired = elastic or (record is not None and record.is_repaired)
    name = usual_preset(record.shape_before.family if record else "vit", repaired=repaired)
    if rank() == 0:
        typer.echo(f"Recipe {name}: {REASONS[name].format(path=path)}; --recipe NAME takes another.", err=True)
    return name
