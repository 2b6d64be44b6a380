"""Listing hundreds of runs with DeiT-B's plans: from the folders alone, and through the index. Processor time.

`python -m tests.benchmarks.run_list`
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from tests.support import made_runs
from upvit_core.records.shape import deit_shape
from upvit_core.runs import RunStore


def milliseconds(work: Callable[[], object]) -> float:
    began = time.process_time()
    work()
    return 1000 * (time.process_time() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=300)
    asked = parser.parse_args()
    made_runs.SHAPE = deit_shape("base")
    with tempfile.TemporaryDirectory() as folder:
        store = RunStore(Path(folder) / "runs")
        for number in range(asked.runs):
            made_runs.made_run(store, 0.25 + 0.3 * number / asked.runs, heads=6, evaluations=10, steps=20)
        time.sleep(0.2)
        store.index.forget()
        built = milliseconds(store.list)
        again = statistics.median(milliseconds(RunStore(store.root).list) for _ in range(10))
    print(f"{asked.runs} runs: index built from the folders {built:.0f} ms, then a list {again:.0f} ms")


if __name__ == "__main__":
    main()
