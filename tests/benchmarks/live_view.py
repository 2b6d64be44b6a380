"""The Runs page with 10 and 100 finished runs of 300 evaluations and 5 that go on: what an update costs.

`python -m tests.benchmarks.live_view`: a real server on loopback; updates are those that the browser's timer asks for.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path

from tests.benchmarks.load import memory, processor_seconds
from tests.benchmarks.session import Session, server
from tests.support.made_runs import made_run
from upvit_core.runs import Run, RunStore

STEPS = 4000
LINES = (0, 1, 10, 100)


def update(session: Session) -> float:
    """One tick of the page's timer."""
    fragment = next(name for name, interval in session.fragments.items() if interval >= 1)
    return session.rerun(fragment)


def add_rows(runs: list[Run], count: int, first: int) -> None:
    for run in runs:
        for step in range(first, first + count):
            where = {"step": step, "epoch": 4 * step / STEPS, "seconds": step * 0.2}
            run.append_metrics({**where, "phase": "train", "loss": 1.0, "ce": 0.7, "kl": 0.3, "lr": 1e-3})


def words(seconds: list[float]) -> str:
    low, high = sorted(seconds)[len(seconds) // 10], sorted(seconds)[-1 - len(seconds) // 10]
    return f"median {1000 * statistics.median(seconds):.0f} ms (10 to 90 %: {1000 * low:.0f} to {1000 * high:.0f})"


def measure(finished: int, active: int, evaluations: int, ticks: int) -> list[str]:
    """One server with so many runs: a line for the first picture, the page run again, and every number of lines."""
    with tempfile.TemporaryDirectory() as folder:
        store = RunStore(Path(folder) / "runs")
        for number in range(finished):
            made_run(store, 0.2 + 0.006 * number, evaluations=evaluations, steps=STEPS // 10)
        going = [
            made_run(store, 0.3 + 0.1 * number, "running", evaluations=evaluations, steps=STEPS // 10, share=0.8)
            for number in range(active)
        ]
        with server(Path(folder)) as (address, pid):
            session = Session(address, "runs")
            told = [f"{finished} finished runs of {evaluations} evaluations, {active} going on"]

            def observe(what: str, act: Callable[[], float], times: int) -> None:
                found, sent, began = [], session.received, processor_seconds(pid)
                for _ in range(times):
                    found.append(act())
                used = 1000 * (processor_seconds(pid) - began) / times
                told.append(f"{what}: {words(found)}, {used:.0f} ms of CPU, "
                            f"{(session.received - sent) / times / 1024:.1f} KiB sent")  # fmt: skip

            observe("first paint, server just started", session.rerun, 1)
            for _ in range(3):
                update(session)
            observe("page run again", session.rerun, 5)
            for _ in range(2):
                update(session)
            first = STEPS
            for count in LINES:

                def tick(count: int = count) -> float:
                    nonlocal first
                    add_rows(going, count, first)
                    first += count
                    return update(session)

                observe(f"update, {count} new line(s) of each", tick, ticks)

            def evaluated() -> float:
                nonlocal first
                add_rows(going, 1, first)
                evaluation = {"step": first, "phase": "eval", "top1": 80.0, "images_per_s": 1000.0, "images": 2000}
                going[0].append_metrics({**evaluation, "epoch": 1.0, "seconds": 1.0, "kl_teacher": 0.1})
                first += 1
                return update(session)

            observe("update, 1 new line of each and an evaluation of one", evaluated, ticks)
            told.append(
                f"memory of the server: {memory(pid):.0f} MiB; errors: {len(session.errors)} {session.errors[:2]}"
            )
            return told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--finished", type=int, nargs="+", default=[10, 100])
    parser.add_argument("--active", type=int, default=5)
    parser.add_argument("--evaluations", type=int, default=300)
    parser.add_argument("--ticks", type=int, default=30)
    asked = parser.parse_args()
    for finished in asked.finished:
        print("\n".join(measure(finished, asked.active, asked.evaluations, asked.ticks)), flush=True)


if __name__ == "__main__":
    main()
