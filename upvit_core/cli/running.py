"""distill, runs, pause, resume, cancel, prioritise: work that outlives the command."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from upvit_core.cli.common import Data, Device, Json, Root, emit

app = typer.Typer()


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
    priority: Annotated[int, typer.Option(help="-2 to 2; higher goes first where runs wait for one device")] = 0,
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
             "data_root": root, "epochs": epochs, "settings": values, "device": device, "priority": priority}
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
    """Go on with a paused, interrupted, failed or cancelled run from its last checkpoint."""
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
