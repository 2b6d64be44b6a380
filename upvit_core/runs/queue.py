"""Whose turn it is on a device: higher priority first, then owners in turns, then first come. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from upvit_core.runs.devices import lease_name
from upvit_core.runs.folder import RunSummary


@dataclass(frozen=True)
class Waiting:
    """A run that waits for a device; `created` orders the runs of one owner."""

    id: str
    owner: str
    priority: int
    created: int


def fair_order(waiting: Sequence[Waiting], last_turn: Mapping[str, int]) -> list[str]:
    """Ids in the order in which they get the device.

    Within a priority the owner goes first whose last turn is the longest ago (`last_turn` counts turns on the device;
    an owner that is missing never had one), so that who queues a sweep of thirty holds up nobody else.
    """
    had = dict(last_turn)
    now = max(had.values(), default=0)
    order: list[str] = []
    for priority in sorted({run.priority for run in waiting}, reverse=True):
        lines: dict[str, list[Waiting]] = {}
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


def last_turns(summaries: Sequence[RunSummary]) -> dict[str, dict[str, int]]:
    """The last turn of every owner, by device."""
    turns: dict[str, dict[str, int]] = {}
    for s in summaries:
        if s.spec is not None and s.state.turn:
            of_device = turns.setdefault(lease_name(s.spec.device), {})
            of_device[s.spec.owner] = max(of_device.get(s.spec.owner, 0), s.state.turn)
    return turns


def queues(summaries: Sequence[RunSummary]) -> dict[str, list[str]]:
    """Ids of waiting runs by device, in the order of their turns."""
    waiting: dict[str, list[Waiting]] = {}
    for s in summaries:
        if s.spec is not None and s.state.state == "queued" and s.spec.executor == "local":
            run = Waiting(s.id, s.spec.owner, s.priority, s.spec.created)
            waiting.setdefault(lease_name(s.spec.device), []).append(run)
    turns = last_turns(summaries)
    return {device: fair_order(queue, turns.get(device, {})) for device, queue in waiting.items()}
