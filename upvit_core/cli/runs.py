"""runs, resume, cancel, pause, prioritise: runs that outlive the command; and how a verb starts one."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from upvit_core.cli.common import Json, emit

if TYPE_CHECKING:
    from upvit_core.runs.folder import Run
    from upvit_core.runs.spec import RunSpec
    from upvit_core.runs.store import RunStore

app = typer.Typer()


def carry_out(order: dict[str, Any], out: Path, detach: bool, as_json: bool) -> None:
    """Start the run of this order, and follow it to its end unless `detach`."""
    from upvit_core.ranks import process_count
    from upvit_core.runs.executors import executor_for
    from upvit_core.runs.spec import RunSpec
    from upvit_core.runs.store import RunStore

    spec = RunSpec.from_json(json.dumps(order), "This run")
    store = RunStore(out)
    if process_count() > 1:
        together(store, spec, lambda: store.create(spec), as_json)
        return
    run = store.create(spec)
    typer.echo(str(run.folder), err=as_json)
    _say_whether_it_fits(spec)
    executor_for(store, spec).submit(run)
    if detach:
        emit({"run": str(run.folder)}, as_json)
    else:
        follow(store, run.id, as_json)


def _say_whether_it_fits(spec: RunSpec) -> None:
    """Before the run starts, as the app does; what Slurm's nodes have is not known here."""
    from upvit_core.runs.memory_check import check_memory

    found = check_memory(spec) if spec.executor == "local" else None
    if found is not None and found.sentence:
        typer.echo(found.sentence, err=True)


def together(store: RunStore, spec: RunSpec, order: Callable[[], Run], as_json: bool) -> None:
    """Under `torchrun` or `accelerate launch`: the first process orders the run, then all of them are its workers."""
    from upvit_core.errors import RunError
    from upvit_core.ranks import rank
    from upvit_core.runs.distributed import meet
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
        follow(store, run.id, as_json)
    raise SystemExit(status)


def follow(store: Any, run_id: str, as_json: bool) -> None:
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
    from upvit_core.ranks import process_count
    from upvit_core.runs.executors import executor_for
    from upvit_core.runs.store import RunStore

    store = RunStore(out)
    if process_count() > 1:
        together(store, store.get(run).spec, lambda: store.resume(run), as_json)
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
