"""Numbers that several timings print."""

import statistics
from collections.abc import Sequence

import psutil


def percentile(values: Sequence[float], share: float) -> float:
    return sorted(values)[min(int(share * len(values)), len(values) - 1)]


def report(name: str, seconds: Sequence[float], target_ms: int) -> bool:
    """Print one line; whether the 95th percentile meets its target."""
    p95 = 1000 * percentile(seconds, 0.95)
    print(
        f"{name}: p95 {p95:.0f} ms (target {target_ms}: {'met' if p95 <= target_ms else 'MISSED'}), median "
        f"{1000 * statistics.median(seconds):.0f} ms, longest {1000 * max(seconds):.0f} ms, {len(seconds)} times",
        flush=True,
    )
    return p95 <= target_ms


def memory(pid: int) -> float:
    """Resident MiB of a process."""
    return psutil.Process(pid).memory_info().rss / 2**20


def processor_seconds(pid: int) -> float:
    """Of all threads of a process together, since it began."""
    times = psutil.Process(pid).cpu_times()
    return times.user + times.system
