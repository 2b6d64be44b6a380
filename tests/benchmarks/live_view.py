"""The Runs page with 100 finished runs of 300 evaluations and 5 that go on: how long an update takes.

`python -m tests.benchmarks.live_view`: a real server on loopback; updates are those that the browser's timer asks for.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from pathlib import Path

from tests.benchmarks.load import memory, processor_seconds
from tests.benchmarks.session import Session, server
from upvit_core.runs import Run, RunStore

sys.path[:0] = [str(Path(__file__).parents[1])]
from made_runs import made_run  # noqa: E402

STEPS = 4000


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--finished", type=int, default=100)
    parser.add_argument("--active", type=int, default=5)
    parser.add_argument("--evaluations", type=int, default=300)
    parser.add_argument("--ticks", type=int, default=30)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        store = RunStore(Path(folder) / "runs")
        for number in range(asked.finished):
            made_run(store, 0.2 + 0.006 * number, evaluations=asked.evaluations, steps=STEPS // 10)
        active = [
            made_run(store, 0.3 + 0.1 * number, "running", evaluations=asked.evaluations, steps=STEPS // 10, share=0.8)
            for number in range(asked.active)
        ]
        with server(Path(folder)) as (address, pid):
            session = Session(address, "runs")
            print(f"{asked.finished} finished runs of {asked.evaluations} evaluations, {asked.active} going on")
            print(f"first paint, server just started: {session.rerun():.2f} s")
            print(f"again: {words([session.rerun() for _ in range(5)])}")
            for _ in range(3):
                update(session)
            began = processor_seconds(pid)
            quiet = [update(session) for _ in range(asked.ticks)]
            used = 1000 * (processor_seconds(pid) - began) / asked.ticks
            print(f"update, nothing new: {words(quiet)}, {used:.0f} ms of CPU")
            first = STEPS
            for count in (1, 10, 100):
                found, began = [], processor_seconds(pid)
                for _ in range(asked.ticks):
                    add_rows(active, count, first)
                    first += count
                    before = session.received
                    found.append(update(session))
                    sent = session.received - before
                used = 1000 * (processor_seconds(pid) - began) / asked.ticks
                told = f"{words(found)}, {used:.0f} ms of CPU, {sent / 1024:.0f} KiB sent"
                print(f"update, {count} new line(s) of each: {told}")
            print(f"memory of the server: {memory(pid):.0f} MiB; errors: {len(session.errors)} {session.errors[:2]}")


if __name__ == "__main__":
    main()
