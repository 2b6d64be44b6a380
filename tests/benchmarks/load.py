"""Thirty visitors at once on the demo's sliders: a real server on loopback, a websocket session each.

`python -m tests.benchmarks.load` (some three minutes). Each visitor waits a while between two moves, as people do, and
moves sliders to places of its own; after every move the page must show that visitor's numbers and no error.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil

from tests.benchmarks.session import Session, server

SLIDERS = ("Residual removed", "Attention removed", "FFN removed")
PAGE = "tradeoff"


def memory(pid: int) -> float:
    """Resident MiB of the server."""
    return psutil.Process(pid).memory_info().rss / 2**20


def processor_seconds(pid: int) -> float:
    """Of all threads of the server together, since it began."""
    times = psutil.Process(pid).cpu_times()
    return times.user + times.system


class Visitor:
    """Moves one slider after another; gathers seconds and whatever was wrong."""

    def __init__(self, address: str, number: int):
        self.session, self.random = Session(address, PAGE), random.Random(number)
        self.seconds: list[float] = []
        self.wrong: list[str] = []

    def open(self) -> float:
        return self.session.rerun()

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


def percentile(values: list[float], share: float) -> float:
    return sorted(values)[min(int(share * len(values)), len(values) - 1)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sessions", type=int, default=30)
    parser.add_argument("--moves", type=int, default=25, help="of each visitor")
    parser.add_argument("--pause", type=float, default=4.0, help="seconds between two moves of a visitor, on average")
    parser.add_argument("--alone", type=int, default=1000, help="reruns of one session, to see whether memory grows")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, server(Path(folder)) as (address, pid):
        first = Visitor(address, 0)
        first.open()
        deadline = time.monotonic() + 60
        while memory(pid) < 400 and time.monotonic() < deadline:  # until the first job has loaded torch
            time.sleep(1)
        for _ in range(50):
            first.move()
        before = memory(pid)
        visitors = [Visitor(address, number) for number in range(1, asked.sessions + 1)]
        opened = [visitor.open() for visitor in visitors]
        for visitor in visitors:
            visitor.move()
        with_all = memory(pid)
        alone = first.seconds[10:]
        for visitor in visitors:
            visitor.seconds.clear()
        threads = [threading.Thread(target=v.stay, args=(asked.moves, asked.pause)) for v in visitors]
        began, worked = time.monotonic(), processor_seconds(pid)
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        lasted, after = time.monotonic() - began, memory(pid)
        worked = processor_seconds(pid) - worked
        for visitor in visitors:
            visitor.session.close()
        seconds = [value for visitor in visitors for value in visitor.seconds]
        print(f"{asked.sessions} sessions, {len(seconds)} reruns in {lasted:.0f} s, a pause of {asked.pause:g} s each")
        print(
            f"a slider's rerun: median {statistics.median(seconds):.3f} s, p95 {percentile(seconds, 0.95):.3f} s, "
            f"longest {max(seconds):.3f} s; alone: median {statistics.median(alone):.3f} s"
        )
        print(f"processor time of the server, previews included: {1000 * worked / len(seconds):.0f} ms a rerun")
        print(
            f"first paint while others open: median {statistics.median(opened):.2f} s, longest {max(opened):.2f} s",
            flush=True,
        )
        print(
            f"memory: {before:.0f} MiB with one session, {(with_all - before) / asked.sessions:.2f} MiB for each more"
        )
        print(f"after {len(seconds)} reruns of all: {after - with_all:+.1f} MiB", flush=True)
        half = asked.alone // 2
        for _ in range(half):
            first.move()
        middle = memory(pid)
        for _ in range(asked.alone - half):
            first.move()
        end = memory(pid)
        first.session.close()
    print(f"{asked.alone} more of one: {middle - after:+.1f} MiB in the first half, {end - middle:+.1f} in the second")
    wrong = [text for visitor in (first, *visitors) for text in visitor.wrong]
    print(f"errors or another's numbers: {len(wrong)}")
    for text in wrong[:5]:
        print("  ", text[:300])
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
