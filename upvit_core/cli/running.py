"""distill, finetune, runs, pause, resume, cancel, prioritise: work that outlives the command."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from upvit_core.cli.common import Data, Device, Heads, Json, Model, Root, emit, open_model

if TYPE_CHECKING:
    from upvit_core.runs.folder import Run
    from upvit_core.runs.spec import RunSpec
    from upvit_core.runs.store import RunStore

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
    from upvit_core.cli.recipe import recipe_for
    from upvit_core.errors import RunError
    from upvit_core.planning.plan import PruningPlan
    from upvit_core.processes import rank
    from upvit_core.recipe import PRESETS
    from upvit_core.runs.order import read_order

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
    _carry_out(asked, out, detach, as_json)


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
    from upvit_core.recipe import FINETUNE_PRESETS

    refuse_text(model, num_heads)
    given = {"lr": lr, "batch_size": batch_size, "seed": seed, "checkpoint_minutes": checkpoint_minutes,
             "from_scratch": from_scratch, "head_only": head_only, "layer_decay": layer_decay}  # fmt: skip
    student = _absolute(model) if model != "demo" else model
    order = {"kind": "finetune", "name": f"{Path(model).name} on {Path(data).name.split('.')[0]}"[:200],
             "student": f"{student}#heads={num_heads}" if num_heads else student, "data": data, "data_root": root,
             "head": head.value, "in_chans": in_chans, "img_size": img_size, "epochs": epochs,
             "settings": _settings(FINETUNE_PRESETS, preset, given), "device": device}  # fmt: skip
    _carry_out(order, out, detach, as_json)


def refuse_text(model: str, num_heads: int | None) -> None:
    """Raises UnsupportedModelError before a run is made, where the model is a folder of a language model."""
    from upvit_core.models.judge import refuse_language
    from upvit_core.models.retarget import DISTIL, FINE_TUNING

    if Path(model).is_dir():
        refuse_language(open_model(model, num_heads).shape, FINE_TUNING, DISTIL)


def _settings(presets: dict[str, Any], preset: str, given: dict[str, Any]) -> dict[str, Any]:
    """A preset's values, with those that were given in their place."""
    from upvit_core.errors import RunError

    if preset not in presets:
        raise RunError(f"There is no preset {preset!r}; choose one of {', '.join(presets)}.")
    return presets[preset].model_dump() | {key: value for key, value in given.items() if value is not None}


def _carry_out(order: dict[str, Any], out: Path, detach: bool, as_json: bool) -> None:
    """Start the run of this order, and follow it to its end unless `detach`."""
    from upvit_core.processes import process_count
    from upvit_core.runs.executors import executor_for
    from upvit_core.runs.spec import RunSpec
    from upvit_core.runs.store import RunStore

    spec = RunSpec.from_json(json.dumps(order), "This run")
    store = RunStore(out)
    if process_count() > 1:
        _together(store, spec, lambda: store.create(spec), as_json)
        return
    run = store.create(spec)
    typer.echo(str(run.folder), err=as_json)
    _say_whether_it_fits(spec)
    executor_for(store, spec).submit(run)
    if detach:
        emit({"run": str(run.folder)}, as_json)
    else:
        _follow(store, run.id, as_json)


def _say_whether_it_fits(spec: RunSpec) -> None:
    """Before the run starts, as the app does; what Slurm's nodes have is not known here."""
    from upvit_core.runs.fit import fit

    found = fit(spec) if spec.executor == "local" else None
    if found is not None and found.sentence:
        typer.echo(found.sentence, err=True)


def _given(**options: Any) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def _together(store: RunStore, spec: RunSpec, order: Callable[[], Run], as_json: bool) -> None:
    """Under `torchrun` or `accelerate launch`: the first process orders the run, then all of them are its workers."""
    from upvit_core.errors import RunError
    from upvit_core.processes import rank
    from upvit_core.runs.meeting import meet
    from upvit_core.runs.worker import output_to, start

    if spec.executor != "local":
        raise RunError("Under torchrun or accelerate launch the run is done here; leave --executor slurm out.")
    run = order() if rank() == 0 else None
    if run is not None:
        typer.echo(str(run.folder), err=as_json)
    folder = Path(meet(str(run.folder) if run is not None else "", spec.device))
    if run is None:
        raise SystemExit(start(folder))
    with output_to(run.log) as shown:
        status = start(folder, shown)
    if not status:
        _follow(store, run.id, as_json)
    raise SystemExit(status)


def _absolute(path: str | None) -> str | None:
    return str(Path(path).resolve()) if path and os.path.exists(path) else path


def _follow(store: Any, run_id: str, as_json: bool) -> None:
    """Print new rows until the run ends; the run does not need this process."""
    offset, last = 0, {}
    while True:
        state = store.state(run_id)
        rows, offset = store.read_metrics(run_id, offset)
        for row in rows:
            if "top1" in row:
                last = row
                text = row.get("perplexity")
                reached = f"top-1 {row['top1']:.2f} %" if text is None else f"perplexity {text:.3f}"
                typer.echo(f"step {row['step']:>7}  {row['phase']:<9} {reached}", err=True)
        if not state.is_active:
            break
        time.sleep(0.5)
    if state.state != "done":
        from upvit_core.errors import RunError

        raise RunError(f"The run {run_id} ended as {state.state}: {state.error or 'see its log.txt'}")
    key = "perplexity" if "perplexity" in last else "top1"
    found = {key: last.get(key)}
    emit({"run": str(store.folder(run_id)), **found, "state": state.state}, as_json)


Runs = Annotated[Path, typer.Option("--out", help="folder of runs")]


@app.command()
def runs(out: Runs = Path("runs"), as_json: Json = False) -> None:
    """List runs, newest first."""
    from upvit_core.runs.store import RunStore

    listed = [
        {
            "run": s.id,
            "name": s.name,
            "state": s.state.state,
            "progress": s.state.progress,
            "top1": s.state.top1,
            "perplexity": s.state.perplexity,
            "job": s.state.job,
            "place": s.state.place,
        }
        for s in RunStore(out).list()
    ]
    if as_json:
        typer.echo(json.dumps({"runs": listed}))
    for row in [] if as_json else listed:
        top1 = "" if row["top1"] is None else f"  top-1 {row['top1']:.2f} %"
        if row["perplexity"] is not None:
            top1 = f"  perplexity {row['perplexity']:.3f}"
        job = f"  {row['place']}" if row["place"] else ""
        typer.echo(f"{row['run']:<60} {row['state']:<12} {row['progress']:4.0%}{top1}{job}")


@app.command()
def resume(run: str, out: Runs = Path("runs"), as_json: Json = False) -> None:
    """Go on with a paused, interrupted, failed or cancelled run from its last checkpoint."""
    from upvit_core.processes import process_count
    from upvit_core.runs.executors import executor_for
    from upvit_core.runs.store import RunStore

    store = RunStore(out)
    if process_count() > 1:
        _together(store, store.get(run).spec, lambda: store.resume(run), as_json)
        return
    again = store.resume(run)
    _say_whether_it_fits(again.spec)
    executor_for(store, again.spec).submit(again)
    emit({"run": str(again.folder), "state": store.state(run).state}, as_json)


@app.command()
def cancel(run: str, out: Runs = Path("runs"), as_json: Json = False) -> None:
    """Stop a run; its last checkpoint stays."""
    from upvit_core.runs.store import RunStore

    emit({"run": run, "state": RunStore(out).cancel(run).state}, as_json)


@app.command()
def pause(run: str, out: Runs = Path("runs"), as_json: Json = False) -> None:
    """Stop a run for now: it saves and gives its device back; `resume` goes on."""
    from upvit_core.runs.store import RunStore

    emit({"run": run, "state": RunStore(out).pause(run).state}, as_json)


@app.command()
def prioritise(run: str, priority: int, out: Runs = Path("runs"), as_json: Json = False) -> None:
    """Change a waiting run's priority, -2 to 2 (write -- before a negative one)."""
    from upvit_core.runs.store import RunStore

    store = RunStore(out)
    store.prioritise(run, priority)
    emit({"run": run, "priority": priority, "position": store.state(run).position}, as_json)
