"""The order of runs that wait for a device: by priority, then owners in turns, then first come. Imports no torch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from upvit_core.ranks import local_process_count, process_count
from upvit_core.runs.devices import candidates
from upvit_core.runs.folder import RunSummary
from upvit_core.runs.spec import RunSpec


@dataclass(frozen=True)
class QueuedRun:
    """A run that waits for a device; `created` orders the runs of one owner."""

    id: str
    owner: str
    priority: int
    created: int


def fair_order(waiting: Sequence[QueuedRun], last_turn: Mapping[str, int]) -> list[str]:
    """Ids in the order in which they get the device.

    Within a priority, the owner whose last turn is the longest ago goes first, so that a sweep of thirty runs holds up
    nobody else. `last_turn` counts turns on the device; an owner that is missing there never had one.
    """
    had = dict(last_turn)
    now = max(had.values(), default=0)
    order: list[str] = []
    for priority in sorted({run.priority for run in waiting}, reverse=True):
        lines: dict[str, list[QueuedRun]] = {}
        for run in sorted((r for r in waiting if r.priority == priority), key=lambda r: (r.created, r.id)):
            lines.setdefault(run.owner, []).append(run)
        while lines:
            owner = min(lines, key=lambda o: (had.get(o, 0), lines[o][0].created, lines[o][0].id))
            order.append(lines[owner].pop(0).id)
            now += 1
            had[owner] = now
            if not lines[owner]:
                del lines[owner]
    return order


def candidates_of(spec: RunSpec) -> tuple[tuple[str, ...], int]:
    """The devices of which a run takes some, and how many; under Slurm, the one by which turns are counted.

    Of several processes that were started together, those on this machine.
    """
    together = local_process_count() if process_count() > 1 else spec.processes
    return candidates(spec.device, together if spec.executor == "local" else 1)


def devices_of(summary: RunSummary) -> tuple[str, ...]:
    """The devices that a run has, had last, or waits for."""
    if summary.state.devices or summary.spec is None:
        return summary.state.devices
    return candidates(summary.spec.device, summary.spec.processes if summary.spec.executor == "local" else 1)[0]


def last_turn_by_owner(summaries: Sequence[RunSummary]) -> dict[str, dict[str, int]]:
    """The last turn of every owner, by device."""
    turns: dict[str, dict[str, int]] = {}
    for s in summaries:
        if s.spec is not None and s.state.turn:
            for device in devices_of(s):
                of_device = turns.setdefault(device, {})
                of_device[s.spec.owner] = max(of_device.get(s.spec.owner, 0), s.state.turn)
    return turns


def queues(summaries: Sequence[RunSummary]) -> dict[str, list[str]]:
    """Ids of waiting runs by device, in the order of their turns.

    Devices that some run wants together share one order. So the first of it is the first on all its devices, and runs
    that each want several never wait for each other in a circle.
    """
    waiting: dict[str, tuple[QueuedRun, tuple[str, ...]]] = {}
    together: dict[str, frozenset[str]] = {}
    for s in summaries:
        if s.spec is not None and s.state.state == "queued" and s.spec.executor == "local":
            names = candidates(s.spec.device, s.spec.processes)[0]
            waiting[s.id] = QueuedRun(s.id, s.spec.owner, s.priority, s.spec.created), names
            joined = frozenset[str]().union(names, *(together.get(name, ()) for name in names))
            together |= dict.fromkeys(joined, joined)
    turns = last_turn_by_owner(summaries)
    order: dict[str, list[str]] = {}
    for group in set(together.values()):
        had: dict[str, int] = {}
        for device in group:
            for owner, turn in turns.get(device, {}).items():
                had[owner] = max(had.get(owner, 0), turn)
        line = fair_order([run for run, names in waiting.values() if names[0] in group], had)
        for device in group:
            order[device] = [run_id for run_id in line if device in waiting[run_id][1]]
    return order
