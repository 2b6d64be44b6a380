"""distill, finetune: training as a run, which outlives the command."""

from __future__ import annotations

import json
import os
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from upvit_core.cli.common import Data, Device, Heads, Json, Model, Root, open_model
from upvit_core.cli.runs import carry_out
from upvit_core.records.plan import PruningPlan
from upvit_core.training.settings import usual_preset

app = typer.Typer()


@app.command()
def distill(
    teacher: Annotated[str | None, typer.Option(help="model to learn from")] = None,
    student: Annotated[str | None, typer.Option(help="folder of the pruned model")] = None,
    data: Annotated[
        str | None, typer.Option(help="demo, a folder of classes, an archive of one, or a timm name")
    ] = None,
    epochs: Annotated[int | None, typer.Option(min=1)] = None,
    plan: Annotated[Path | None, typer.Option(help="plan.json to cut the teacher by, in place of --student")] = None,
    order: Annotated[
        Path | None, typer.Option(help="folder that the studio exported; what else is given here goes before it")
    ] = None,
    out: Annotated[Path, typer.Option(help="folder of runs")] = Path("runs"),
    preset: Annotated[
        str | None,
        typer.Option(
            "--preset",
            "--recipe",
            help="letter, released_code, demo, repaired or language; default: "
            "repaired where the student's plan.json, or --plan, records repair, else letter",
        ),
    ] = None,
    lr: Annotated[float | None, typer.Option()] = None,
    batch_size: Annotated[int | None, typer.Option()] = None,
    alpha: Annotated[float | None, typer.Option(help="weight of the KL term")] = None,
    temperature: Annotated[float | None, typer.Option()] = None,
    feature_weight: Annotated[
        float | None, typer.Option(help="weight of the last feature's mean square, beside the logits; default: 0")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="default 0")] = None,
    checkpoint_minutes: Annotated[float | None, typer.Option(help="work that a kill can lose, at most")] = None,
    teacher_top_k: Annotated[
        int | None, typer.Option(help="keep so many of the teacher's logits an image for other runs with this seed")
    ] = None,
    tensorboard: Annotated[bool | None, typer.Option("--tensorboard", help="write event files too")] = None,
    from_scratch: Annotated[
        bool | None, typer.Option("--from-scratch", help="same shape, fresh weights: the baseline")
    ] = None,
    root: Root = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:1 …")] = None,
    priority: Annotated[
        int | None, typer.Option(help="-2 to 2; higher goes first where runs wait for a device")
    ] = None,
    processes: Annotated[
        int | None, typer.Option(min=1, help="that train together on a machine, a GPU each where there are")
    ] = None,
    executor: Annotated[str | None, typer.Option(help="local or slurm")] = None,
    nodes: Annotated[int | None, typer.Option(help="slurm: machines")] = None,
    gpus: Annotated[int | None, typer.Option(help="slurm: GPUs a node; as many processes unless --processes")] = None,
    partition: Annotated[str | None, typer.Option(help="slurm")] = None,
    minutes: Annotated[int | None, typer.Option(help="slurm: time; a longer run saves and is queued again")] = None,
    cpus: Annotated[int | None, typer.Option(help="slurm: CPUs a process")] = None,
    mem_gb: Annotated[float | None, typer.Option(help="slurm: memory a node")] = None,
    account: Annotated[str | None, typer.Option(help="slurm")] = None,
    qos: Annotated[str | None, typer.Option(help="slurm")] = None,
    detach: Annotated[bool, typer.Option("--detach", help="return at once; the run goes on by itself")] = False,
    as_json: Json = False,
) -> None:
    """Distil a pruned model from its teacher (Eq. 2); prints the run's folder first."""
    pass
    from upvit_core.errors import RunError
    from upvit_core.ranks import rank
    from upvit_core.records.plan import PruningPlan
    from upvit_core.runs.bundle import read_order
    from upvit_core.training.settings import PRESETS

    asked: dict[str, Any] = read_order(order).model_dump() if order else {}
    if not order and preset is None:
        preset, why = recipe_for(student, plan)
        if rank() == 0:
            typer.echo(why, err=True)
    if preset is not None:
        asked["settings"] = _settings(PRESETS, preset, {})
    asked["settings"] |= _given(
        lr=lr, batch_size=batch_size, alpha=alpha, temperature=temperature, seed=seed, feature_weight=feature_weight,
        checkpoint_minutes=checkpoint_minutes, from_scratch=from_scratch, teacher_top_k=teacher_top_k,
        tensorboard=tensorboard,
    )  # fmt: skip
    slurm = _given(nodes=nodes, gpus_per_node=gpus, partition=partition, minutes=minutes, cpus_per_process=cpus,
                   mem_gb=mem_gb, account=account, qos=qos)  # fmt: skip
    asked |= _given(
        teacher=teacher, student=_absolute(student), data=data, data_root=root, epochs=epochs, device=device,
        priority=priority, processes=processes or gpus, executor=executor, slurm=slurm or None,
    )  # fmt: skip
    if plan:
        known = PruningPlan.load(plan)
        asked |= {"plan": json.loads(known.to_json()), "repair": known.fitted is not None and known.fitted.repair}
    if missing := [f"--{name}" for name in ("teacher", "data", "epochs") if not asked.get(name)]:
        raise RunError(f"{', '.join(missing)} missing; give them, or an --order that holds them.")
    if asked.get("executor", "local") == "local" and slurm:
        raise RunError(f"{', '.join(slurm)} are for Slurm; add --executor slurm or leave them out.")
    asked.setdefault("name", Path(student or plan or "run").stem)
    carry_out(asked, out, detach, as_json)


class Head(StrEnum):
    AUTO = "auto"
    NEW = "new"
    KEEP = "keep"


@app.command()
def finetune(
    model: Model,
    data: Data,
    epochs: Annotated[int, typer.Option(min=1)],
    out: Annotated[Path, typer.Option(help="folder of runs")] = Path("runs"),
    preset: Annotated[str, typer.Option(help="finetune or demo (minutes on a CPU)")] = "finetune",
    head: Annotated[Head, typer.Option(help="auto: a new one where the classes are others")] = Head.AUTO,
    in_chans: Annotated[int | None, typer.Option(help="1 (grey) or 3 (colour); default: as the model has it")] = None,
    img_size: Annotated[int | None, typer.Option(min=1, help="pixels; default: as the model has it")] = None,
    head_only: Annotated[bool, typer.Option("--head-only", help="train the head alone: a linear probe")] = False,
    lr: Annotated[float | None, typer.Option()] = None,
    batch_size: Annotated[int | None, typer.Option()] = None,
    layer_decay: Annotated[float | None, typer.Option(help="learning rate's factor from layer to layer")] = None,
    seed: Annotated[int, typer.Option()] = 0,
    checkpoint_minutes: Annotated[float | None, typer.Option(help="work that a kill can lose, at most")] = None,
    from_scratch: Annotated[
        bool, typer.Option("--from-scratch", help="same shape, fresh weights: the baseline")
    ] = False,
    num_heads: Heads = None,
    root: Root = None,
    device: Device = "auto",
    detach: Annotated[bool, typer.Option("--detach", help="return at once; the run goes on by itself")] = False,
    as_json: Json = False,
) -> None:
    """Take a model to other images: a new head where the classes differ, no teacher; a run like any other."""
    from upvit_core.training.settings import FINETUNE_PRESETS

    refuse_text(model, num_heads)
    given = {"lr": lr, "batch_size": batch_size, "seed": seed, "checkpoint_minutes": checkpoint_minutes,
             "from_scratch": from_scratch, "head_only": head_only, "layer_decay": layer_decay}  # fmt: skip
    student = _absolute(model) if model != "demo" else model
    order = {"kind": "finetune", "name": f"{Path(model).name} on {Path(data).name.split('.')[0]}"[:200],
             "student": f"{student}#heads={num_heads}" if num_heads else student, "data": data, "data_root": root,
             "head": head.value, "in_chans": in_chans, "img_size": img_size, "epochs": epochs,
             "settings": _settings(FINETUNE_PRESETS, preset, given), "device": device}  # fmt: skip
    carry_out(order, out, detach, as_json)


def refuse_text(model: str, num_heads: int | None) -> None:
    """Raises UnsupportedModelError before a run is made, where the model is a folder of a language model."""
    from upvit_core.models.retarget import DISTIL, FINE_TUNING
    from upvit_core.records.task import refuse_language

    if Path(model).is_dir():
        refuse_language(open_model(model, num_heads).shape, FINE_TUNING, DISTIL)


def _settings(presets: dict[str, Any], preset: str, given: dict[str, Any]) -> dict[str, Any]:
    """A preset's values, with those that were given in their place."""
    from upvit_core.errors import RunError

    if preset not in presets:
        raise RunError(f"There is no preset {preset!r}; choose one of {', '.join(presets)}.")
    return presets[preset].model_dump() | {key: value for key, value in given.items() if value is not None}


def _given(**options: Any) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def _absolute(path: str | None) -> str | None:
    return str(Path(path).resolve()) if path and os.path.exists(path) else path


WORDS = {
    "letter": "nothing says that the start was repaired",
    "repaired": "{where} records repair, which large steps and mixed images would undo",
    "language": "{where} is of a language model",
}


def recipe_for(student: str | None, plan: Path | None) -> tuple[str, str]:
    """Name of a preset, and the sentence that says which one was taken and why."""
    path = plan if plan is not None else Path(student or "") / "plan.json"
    known = PruningPlan.load(path) if path.is_file() else None
    repaired = known is not None and known.fitted is not None and known.fitted.repair
    name = usual_preset(known.shape_before.family if known else "", repaired=repaired)
    return name, f"Recipe {name}: {WORDS[name].format(where=path)}; --recipe NAME takes another."
