"""Starts runs from what-ifs: one, a sweep of three, or the same widths by channels and by directions."""

import json
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import streamlit as st

from pages.services import block_removals, folders, limits, scoring
from pages.services.open_model import OpenModel
from pages.services.recipes import Training
from pages.services.session import session
from upvit_core.planning.what_if import MAX_REMOVED_PERCENT, WhatIf
from upvit_core.records.basis import Basis
from upvit_core.records.scores import ImportanceScores
from upvit_core.runs.devices import Device, devices_for
from upvit_core.runs.executors import executor_for
from upvit_core.runs.folder import Run
from upvit_core.runs.spec import RunSpec, SlurmSettings
from upvit_core.runs.store import RunStore


@dataclass(frozen=True)
class LaunchTarget:
    """The place where a run executes: a device of this machine, from which its processes count theirs, or Slurm."""

    slurm: SlurmSettings | None = None
    processes: int = 1
    device: str = "auto"

    @property
    def changes(self) -> dict[str, Any]:
        if self.slurm is None:
            return {"device": self.device, "processes": self.processes}
        return {"executor": "slurm", "slurm": self.slurm, "processes": self.processes}


HERE = LaunchTarget()
_starting = threading.Lock()  # so that runs are counted and started by one session at a time


def ratio_sweep(what_if: WhatIf) -> list[WhatIf]:
    """Three plans around one: a lighter cut, itself, a heavier cut."""

    def moved(share: float) -> WhatIf:
        percents = {
            name: min(round(percent * share), MAX_REMOVED_PERCENT) for name, percent in what_if.percents.items()
        }
        spread = "uniform" if what_if.widths else what_if.allocation
        return what_if.with_percents(percents, allocation=spread, widths="")

    return [moved(0.6), what_if, moved(1.4)]


def both_bases(what_if: WhatIf) -> list[WhatIf]:
    """The same widths from two starts: the letter's channels, and directions with repair."""
    return [replace(what_if, basis=Basis.CHANNELS, repair=False), replace(what_if, basis=Basis.DIRECTIONS, repair=True)]


def distill_spec(model: OpenModel, scores: ImportanceScores, what_if: WhatIf, training: Training) -> RunSpec:
    """The run that distils one what-if; `scores` are those that plan it (`scoring.for_planning`)."""
    return RunSpec(
        name=f"{model.name} {what_if.words}"[:200],
        teacher=model.model,
        plan=json.loads(what_if.plan(scores, block_removals.records()).to_json()),
        repair=what_if.repair,
        data=training.images,
        epochs=training.epochs,
        settings=training.settings(model, what_if),
    )


def elastic_spec(model: OpenModel, what_if: WhatIf, training: Training) -> RunSpec:
    """The run that teaches one student all sizes, from a start by directions that needs small steps."""
    settings = training.settings(model, replace(what_if, basis=Basis.DIRECTIONS, repair=True))
    return RunSpec(
        kind="elastic",
        name=f"{model.name} every size"[:200],
        teacher=model.model,
        data=training.images,
        epochs=training.epochs,
        settings=settings.model_copy(update={"feature_weight": 0.0}),
    )


def start_elastic(model: OpenModel, what_if: WhatIf, training: Training, where: LaunchTarget = HERE) -> None:
    """Queue the run that teaches all sizes."""
    limits.confine(training.images)
    spec = elastic_spec(model, what_if, training)
    start(RunStore(folders.runs()), [spec.model_copy(update=where.changes)])


def start(store: RunStore, specs: Sequence[RunSpec]) -> list[Run]:
    """Start new runs of this session. Raises LimitError where they would be more than the host allows it."""
    mine = session().owner
    with _starting:
        limits.check_room(store, mine, len(specs))
        runs = []
        for spec in specs:
            runs.append(store.create(spec.model_copy(update={"owner": mine})))
            executor_for(store, spec).submit(runs[-1])
    return runs


def resume(store: RunStore, run_id: str) -> None:
    """Go on with a run. Raises LimitError where the session that started it has as many as the host allows."""
    with _starting:
        spec = store.get(run_id).spec
        limits.check_room(store, spec.owner)
        executor_for(store, spec).submit(store.resume(run_id))


def start_runs(
    model: OpenModel, scores: ImportanceScores, what_ifs: list[WhatIf], training: Training, where: LaunchTarget = HERE
) -> None:
    """Queue one run for each what-if."""
    limits.confine(training.images)
    group = f"{model.name} sweep {what_ifs[len(what_ifs) // 2].words}" if len(what_ifs) > 2 else ""
    if len(what_ifs) == 2:
        group = f"{model.name} both ways {what_ifs[0].words}"
    specs = []
    for what_if in what_ifs:
        planning, _ = scoring.for_planning(model, scores, what_if)
        asked = distill_spec(model, planning or scores, what_if, training)
        specs.append(asked.model_copy(update={"group": group[:200], **where.changes}))
    start(RunStore(folders.runs()), specs)


@st.cache_data(ttl=10, show_spinner=False)
def next_devices(device: str = "auto", processes: int = 1) -> list[Device]:
    """The devices that a run on this machine would get now."""
    return devices_for(device, processes)
