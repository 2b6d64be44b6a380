"""runs, resume, cancel, pause, prioritise: runs that outlive the command; and how a verb starts one."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from upvit_core.cli.common import emit
from upvit_core.cli.options import Detach, Json
from upvit_core.errors import RunError
from upvit_core.paths import place_of

if TYPE_CHECKING:
    from upvit_core.runs.folder import Run
    from upvit_core.runs.spec import RunSpec
    from upvit_core.runs.store import RunStore

app = typer.Typer()
REACHED = {
    "perplexity": "perplexity {:.3f}", "top1": "top-1 {:.2f} %", "cosine": "mean cosine to the original {:.4f}"
}  # fmt: skip
"""An evaluation in words, by the first of these that it has."""

Runs = Annotated[Path, typer.Option("--out", help="folder of runs")]
RunName = Annotated[str, typer.Argument(metavar="RUN", help="id of a run in --out, or the run's folder")]


def launch_new(asked: Mapping[str, object], out: Path, detach: bool, as_json: bool) -> None:
    """Start the run of these fields of a `RunSpec`, and follow it to its end unless `detach`."""
    from upvit_core.runs.spec import RunSpec
    from upvit_core.runs.store import RunStore

    spec, store = RunSpec.from_json(json.dumps(asked), "This run"), RunStore(out)
    if spec.student and spec.kind != "finetune" and not place_of(spec.student).exists():
        raise RunError(f"There is no student {spec.student}; give a folder that `prune`, `slice` or `elastic` wrote.")
    launch(store, spec, lambda: store.create(spec), detach, as_json)


def launch(store: RunStore, spec: RunSpec, queue: Callable[[], Run], detach: bool, as_json: bool) -> None:
    """Queue a run (once, however many processes there are), start it, and follow it to its end unless `detach`."""
    from upvit_core.ranks import process_count
    from upvit_core.runs.executors import executor_for

    if process_count() > 1:
        _work_together(store, spec, queue, as_json)
        return
    run = queue()
    typer.echo(str(run.folder), err=as_json)
    _warn_of_memory(spec)
    executor_for(store, spec).submit(run)
    if detach:
        emit({"run": str(run.folder), "state": store.state(run.id).state}, as_json)
    else:
        follow(store, run.id, as_json)


def _warn_of_memory(spec: RunSpec) -> None:
    """Say before the run starts where it will not fit, as the app does; the memory of Slurm's nodes is unknown here."""
    from upvit_core.runs.memory_check import check_memory

    check = check_memory(spec) if spec.executor == "local" else None
    if check is not None and check.sentence:
        typer.echo(check.sentence, err=True)


def _work_together(store: RunStore, spec: RunSpec, queue: Callable[[], Run], as_json: bool) -> None:
    """Under `torchrun` or `accelerate launch`: the first process queues the run, then all of them are its workers."""
    from upvit_core.ranks import rank
    from upvit_core.runs.distributed import meet
    from upvit_core.runs.worker import output_to, start

    if spec.executor != "local":
        raise RunError("Under torchrun or accelerate launch the run is done here; leave --executor slurm out.")
    run = queue() if rank() == 0 else None
    if run is not None:
        typer.echo(str(run.folder), err=as_json)
    folder = Path(meet(str(run.folder) if run is not None else "", spec.device))
    if run is None:
        raise SystemExit(start(folder))
    with output_to(run.log) as terminal:
        status = start(folder, terminal)
    if not status:
        follow(store, run.id, as_json)
    raise SystemExit(status)


def follow(store: RunStore, run_id: str, as_json: bool) -> None:
    """Print new rows until the run ends; the run does not need this process."""
    from upvit_core.runs.reason import reason_of

    offset = 0
    last: dict[str, object] = {}
    noted = ""
    while True:
        state = store.state(run_id)
        if state.note != noted:
            typer.echo(state.note.removeprefix(noted).strip(), err=True)
            noted = state.note
        rows, offset = store.read_metrics(run_id, offset)
        for row in rows:
            if key := next((name for name in REACHED if name in row), None):
                last = {key: row[key]}
                reached = REACHED[key].format(row[key])
                typer.echo(f"step {row['step']:>7}  {row['phase']:<9} {reached}", err=True)
        if not state.is_active:
            break
        time.sleep(0.5)
    if state.state != "done":
        raise RunError(f"The run {run_id} is {state.state}. {reason_of(state)}")
    emit({"run": str(store.folder(run_id)), **last, "state": state.state}, as_json)


def find_run(run: str, out: Path) -> tuple[RunStore, str]:
    """The store and the id of a run named by its id in `out`, or by its folder."""
    from upvit_core.runs.index import RUN_ID
    from upvit_core.runs.store import RunStore

    folder = Path(run).resolve()
    if run and folder.is_dir() and not (RUN_ID.fullmatch(run) and (out / run).is_dir()):
        return RunStore(folder.parent), folder.name
    return RunStore(out), run


@app.command()
def runs(out: Runs = Path("runs"), as_json: Json = False) -> None:
    """List runs, newest first."""
    from upvit_core.runs.store import RunStore

    listed = [
        {
            "run": s.id,
            "name": s.name,
            "state": s.state.state,
            "reason": s.reason,
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
def resume(run: RunName, out: Runs = Path("runs"), detach: Detach = False, as_json: Json = False) -> None:
    """Go on with a paused, interrupted, failed or cancelled run from its last checkpoint; follows it to its end."""
    store, run_id = find_run(run, out)
    launch(store, store.get(run_id).spec, lambda: store.resume(run_id), detach, as_json)


@app.command()
def cancel(run: RunName, out: Runs = Path("runs"), as_json: Json = False) -> None:
    """Stop a run; its last checkpoint stays."""
    store, run_id = find_run(run, out)
    emit({"run": run_id, "state": store.cancel(run_id, by="the command cancel").state}, as_json)


@app.command()
def pause(run: RunName, out: Runs = Path("runs"), as_json: Json = False) -> None:
    """Stop a run for now: it saves and gives its device back; `resume` goes on."""
    store, run_id = find_run(run, out)
    emit({"run": run_id, "state": store.pause(run_id, by="the command pause").state}, as_json)


@app.command()
def prioritise(run: RunName, priority: int, out: Runs = Path("runs"), as_json: Json = False) -> None:
    """Change a waiting run's priority, -2 to 2 (write -- before a negative one)."""
    store, run_id = find_run(run, out)
    store.prioritise(run_id, priority)
    emit({"run": run_id, "priority": priority, "position": store.state(run_id).position}, as_json)
