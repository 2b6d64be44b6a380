"""Timings over Streamlit's own protocol: from a request until the page has been drawn and sent."""

import json
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import psutil
import typer

from tests.benchmarks.app.timing import memory, percentile, processor_seconds
from tests.support import ROOT
from tests.support.made_runs import made_run
from tests.support.server import server
from tests.support.session import Session
from upvit_core.runs import Run, RunStore

app = typer.Typer()
SLIDERS = ("Residual removed", "Attention removed", "FFN removed")
STEPS = 4000
LINES = (0, 1, 10, 100)
Pause = Annotated[float, typer.Option(help="seconds between two moves, on average")]


def reruns(address: str, source: str, moves: int, pause: float) -> list[float]:
    """Seconds of a slider's rerun, one session."""
    session, rng = Session(address, "tradeoff", f"open={source}"), random.Random(0)
    session.rerun()
    time.sleep(8)  # the first job imports torch, the Pareto front is being computed
    seconds = []
    for number in range(moves + 5):
        time.sleep(pause if number >= 5 else 0)
        seconds.append(session.slide(rng.choice(SLIDERS), rng.randint(1, 90)))
    assert not session.errors, session.errors
    session.close()
    return seconds[5:]


class Visitor:
    """One session that moves sliders; keeps its seconds and every error or number of somebody else."""

    def __init__(self, address: str, number: int):
        self.session, self.random = Session(address, "tradeoff"), random.Random(number)
        self.seconds: list[float] = []
        self.wrong: list[str] = []

    def move(self) -> None:
        self.seconds.append(self.session.slide(self.random.choice(SLIDERS), self.random.randint(1, 90)))
        own = "/".join(f"{self.session.value_of(label):.0f}" for label in SLIDERS) + " %"
        strip = next((text for text in self.session.texts if 'class="strip"' in text), "no strip")
        if own not in strip:
            self.wrong.append(f"set {own}, shown {strip}")
        self.wrong += self.session.errors
        self.session.errors.clear()

    def stay(self, moves: int, pause: float) -> None:
        for _ in range(moves):
            time.sleep(self.random.uniform(0.5, 1.5) * pause)
            self.move()

    def stay_until(self, end: float, pause: float) -> None:
        while time.monotonic() < end:
            self.stay(1, pause)


@app.command()
def visitors(
    sessions: int = 30,
    moves: Annotated[int, typer.Option(help="of each visitor")] = 25,
    pause: Pause = 4.0,
    alone: Annotated[int, typer.Option(help="reruns of one session, to see whether memory grows")] = 1000,
) -> None:
    """Thirty people at once on the demo's sliders; each must see the numbers of the sliders they moved."""
    with tempfile.TemporaryDirectory() as folder, server(Path(folder)) as (address, pid):
        first = Visitor(address, 0)
        first.session.rerun()
        deadline = time.monotonic() + 60
        while memory(pid) < 400 and time.monotonic() < deadline:  # until the first job has loaded torch
            time.sleep(1)
        for _ in range(50):
            first.move()
        before, single = memory(pid), statistics.median(first.seconds[10:])
        others = [Visitor(address, number) for number in range(1, sessions + 1)]
        opened = [visitor.session.rerun() for visitor in others]
        for visitor in others:
            visitor.move()
            visitor.seconds.clear()
        with_all, began, worked = memory(pid), time.monotonic(), processor_seconds(pid)
        threads = [threading.Thread(target=visitor.stay, args=(moves, pause)) for visitor in others]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        lasted, worked, after = time.monotonic() - began, processor_seconds(pid) - worked, memory(pid)
        for visitor in others:
            visitor.session.close()
        seconds = [value for visitor in others for value in visitor.seconds]
        print(f"{sessions} sessions, {len(seconds)} reruns in {lasted:.0f} s, a pause of {pause:g} s each")
        print(
            f"a slider's rerun: median {statistics.median(seconds):.3f} s, p95 {percentile(seconds, 0.95):.3f} s, "
            f"longest {max(seconds):.3f} s; alone: median {single:.3f} s"
        )
        print(f"processor time of the server, previews included: {1000 * worked / len(seconds):.0f} ms a rerun")
        print(f"first paint while others open: median {statistics.median(opened):.2f} s, longest {max(opened):.2f} s")
        print(f"memory: {before:.0f} MiB with one session, {(with_all - before) / sessions:.2f} MiB for each more")
        print(f"after {len(seconds)} reruns of all: {after - with_all:+.1f} MiB", flush=True)
        halves = []
        for count in (alone // 2, alone - alone // 2):
            for _ in range(count):
                first.move()
            halves.append(memory(pid))
        first.session.close()
    growth = halves[0] - after, halves[1] - halves[0]
    print(f"{alone} more of one: {growth[0]:+.1f} MiB in the first half, {growth[1]:+.1f} in the second")
    wrong = [text for visitor in (first, *others) for text in visitor.wrong]
    print("\n  ".join([f"errors or another's numbers: {len(wrong)}", *(text[:300] for text in wrong[:5])]))
    raise typer.Exit(bool(wrong))


@app.command()
def soak(minutes: float = 60.0, sessions: int = 10, pause: Pause = 4.0) -> None:
    """People move sliders, and every half minute one opens Runs, while a run trains; memory and open files."""
    with tempfile.TemporaryDirectory() as folder, server(Path(folder)) as (address, pid):
        verb("elastic", "demo", "--data", "demo", "--images", "500", "--out", f"{folder}/every")
        run = verb(
            "distill", "--teacher", "demo", "--student", f"{folder}/every", "--data", "demo", "--epochs", "500",
            "--device", "cpu", "--detach", "--out", f"{folder}/runs",
        )  # fmt: skip
        end = time.monotonic() + 60 * minutes
        visitors, guests = [Visitor(address, number) for number in range(sessions)], list[str]()
        for visitor in visitors:
            visitor.session.rerun()
        moving = [threading.Thread(target=visitor.stay_until, args=(end, pause)) for visitor in visitors]
        for thread in moving:
            thread.start()
        parts = max(int(minutes / 5), 1)
        for part in range(parts + 1):
            while time.monotonic() < end - 60 * minutes * (1 - part / parts):
                guest = Session(address, "runs")
                guest.rerun()
                guests += guest.errors
                guest.close()
                time.sleep(30)
            reruns = sum(len(visitor.seconds) for visitor in visitors)
            files = psutil.Process(pid).num_fds()
            print(f"{reruns} reruns: {memory(pid):.0f} MiB, {files} open files", flush=True)
        for thread in moving:
            thread.join()
        step = json.loads((Path(run["run"]) / "state.json").read_text())["step"]
        verb("cancel", run["run"])
        seconds = [value for visitor in visitors for value in visitor.seconds]
        wrong = [*guests, *(text for visitor in visitors for text in visitor.wrong)]
        median, p95 = statistics.median(seconds), percentile(seconds, 0.95)
        print(f"a slider's rerun: median {median:.3f} s, p95 {p95:.3f} s; the run came to step {step}")
        print("\n  ".join([f"errors or another's numbers: {len(wrong)}", *(text[:300] for text in wrong[:5])]))
    raise typer.Exit(bool(wrong))


def verb(*words: str) -> dict[str, Any]:
    """The result of a command."""
    done = subprocess.run([sys.executable, "-m", "upvit_core", *words, "--json"], cwd=ROOT, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    return json.loads(done.stdout)  # type: ignore[no-any-return]


@app.command()
def live(
    finished: Annotated[list[int], typer.Option(help="finished runs; may be given again")] = [10, 100],  # noqa: B006
    active: int = 5,
    evaluations: int = 300,
    ticks: int = 30,
) -> None:
    """The cost of an update of Runs, as the browser's timer asks for it."""
    for count in finished:
        with tempfile.TemporaryDirectory() as folder:
            print(f"{count} finished runs of {evaluations} evaluations, {active} that go on")
            store = RunStore(Path(folder) / "runs")
            for number in range(count):
                made_run(store, 0.2 + 0.006 * number, evaluations=evaluations, steps=STEPS // 10)
            going = [
                made_run(store, 0.3 + 0.1 * number, "running", evaluations=evaluations, steps=STEPS // 10, share=0.8)
                for number in range(active)
            ]
            with server(Path(folder)) as (address, pid):
                _updates(Session(address, "runs"), pid, going, ticks)


def _updates(session: Session, pid: int, going: list[Run], ticks: int) -> None:
    """A line for the first picture, the page run again, and each number of new lines."""
    written = STEPS

    def observe(what: str, act: Callable[[], float], times: int) -> None:
        sent, began = session.received, processor_seconds(pid)
        seconds = sorted(act() for _ in range(times))
        used, received = 1000 * (processor_seconds(pid) - began) / times, (session.received - sent) / times / 1024
        low, high = 1000 * seconds[times // 10], 1000 * seconds[-1 - times // 10]
        print(
            f"{what}: median {1000 * statistics.median(seconds):.0f} ms (10 to 90 %: {low:.0f} to {high:.0f}), "
            f"{used:.0f} ms of CPU, {received:.1f} KiB sent",
            flush=True,
        )

    def update(rows: int = 0, evaluated: bool = False) -> float:
        """One tick of the page's timer after new rows of each run."""
        nonlocal written
        for step in range(written, written + rows):
            where = {"step": step, "epoch": 4 * step / STEPS, "seconds": step * 0.2}
            for run in going:
                run.append_metrics({**where, "phase": "train", "loss": 1.0, "ce": 0.7, "kl": 0.3, "lr": 1e-3})
        if evaluated:
            row = {"step": written, "phase": "eval", "top1": 80.0, "images_per_s": 1000.0, "images": 2000}
            going[0].append_metrics({**row, "epoch": 1.0, "seconds": 1.0, "kl_teacher": 0.1})
        written += rows
        return session.rerun(next(name for name, interval in session.fragments.items() if interval >= 1))

    observe("first paint, server just started", session.rerun, 1)
    observe("first updates", update, 3)
    observe("page run again", session.rerun, 5)
    observe("updates after it", update, 2)
    for count in LINES:
        observe(f"update, {count} new line(s) of each", lambda count=count: update(count), ticks)  # type: ignore[misc]
    observe("update, 1 new line of each and an evaluation of one", lambda: update(1, evaluated=True), ticks)
    print(f"memory of the server: {memory(pid):.0f} MiB; errors: {len(session.errors)} {session.errors[:2]}")
