"""The map of the open model: cuts that are measured in the background, and what they tell of every other plan.

A map grows in a thread of its own. Between two cuts it waits while sliders move and while a run trains on this machine;
after every few cuts its estimates are made anew. It lies as a file in the app's folder, and is gone on with. The demo
comes with one.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

from pages.services import compute, evaluation, folders, imports, jobs, limits
from pages.services.open_model import OpenModel
from upvit_core.cache import Cache
from upvit_core.errors import MapError, UPViTError
from upvit_core.files import digest
from upvit_core.paths import DEMO_FOLDER
from upvit_core.planning.what_if import WhatIf
from upvit_core.records.basis import Basis
from upvit_core.records.map import CutPoint, Map, MeasuredCut
from upvit_core.records.plan import PruningPlan
from upvit_core.records.scores import ImportanceScores
from upvit_core.runs.store import RunStore

if TYPE_CHECKING:
    from upvit_core.mapping.points import Worth
    from upvit_core.mapping.surrogate import Estimates, Surrogate

STEPS = (8, 12, 18, 24, 36, 48)
"""Measured cuts after which the estimates are made anew; the last is the most."""
REST_SECONDS = 0.7  # how long sliders have to rest before the next cut
RUN_SECONDS = 2.0  # how often it is looked whether a run still trains here


@dataclass(frozen=True)
class Estimate:
    """The map's account of one plan: KL and the task's value with 80 % bands, from so many measured `cuts`."""

    kl: float
    kl_low: float
    kl_high: float
    value: float
    value_low: float
    value_high: float
    cuts: int


@dataclass(frozen=True)
class Known:
    """A map with its estimates; reading either takes milliseconds."""

    record: Map
    surrogate: Surrogate
    worth: Worth
    estimates: Cache[Estimate | None] = field(default_factory=lambda: Cache(1000))

    def of(self, plan: PruningPlan) -> Estimate | None:
        """The estimate of a plan; None where more of its blocks are gone than in any measured cut."""
        return self.estimates.get(plan.digest, lambda: self._estimate(plan))

    def _estimate(self, plan: PruningPlan) -> Estimate | None:
        found = self.surrogate.estimate([self.worth.of(plan)])
        if not found.known[0]:
            return None
        names = ("kl", "kl_low", "kl_high", "value", "value_low", "value_high")
        kl, kl_low, kl_high, value, low, high = (float(getattr(found, name)[0]) for name in names)
        return Estimate(kl, kl_low, kl_high, value, low, high, len(self.record.cuts))

    def at(self, points: Sequence[CutPoint]) -> Estimates:
        return self.surrogate.estimate(points)


# In the module, since any browser may clear Streamlit's caches.
_known = Cache[Known](8)
_touched: dict[str, tuple[float, WhatIf]] = {}
"""The time at which sliders of a map were last moved, and their position, by the map's key."""
_given: dict[str, dict[str, MeasuredCut]] = {}
"""Cuts that sessions measured by themselves, by the map's key and the plan's digest."""


def key_of(model: OpenModel, scores: ImportanceScores, now: WhatIf) -> str:
    return f"map {model.data_key} {scores.digest} {now.basis} {now.repair}"


def find(model: OpenModel, scores: ImportanceScores | None, now: WhatIf) -> Known | None:
    """The map's estimates as far as they are made."""
    if scores is None:
        return None
    key = key_of(model, scores, now)
    if (known := _known.find(key)) is None and (record := _shipped(model, scores, now)) is not None:
        name = f"read {key}"
        work = partial(_publish, key, record, scores)
        known = (jobs.find(name) or jobs.start(name, work, "Reading the map", apart=True)).result
    return known


def reading(model: OpenModel, scores: ImportanceScores | None, now: WhatIf) -> jobs.AnyJob | None:
    """The job that makes the estimates of a map that came with the model, while it runs."""
    job = None if scores is None else jobs.find(f"read {key_of(model, scores, now)}")
    return job if job is not None and job.active else None


def _shipped(model: OpenModel, scores: ImportanceScores, now: WhatIf) -> Map | None:
    """The map that came with the demo, where it is of these scores and settings."""
    if not model.is_demo or model.dataset != "demo" or now.basis == Basis.CHANNELS:
        return None
    path = DEMO_FOLDER / "map.json"
    record = _load(str(path)) if path.is_file() else None
    settings = scores.model_digest, scores.digest, now.basis, now.repair
    fits = record is not None and (record.model_digest, record.scores_digest, record.basis, record.repair) == settings
    return record if fits else None


@lru_cache(1)
def _load(path: str) -> Map:
    return Map.load(path)


def grows_by_itself(model: OpenModel) -> bool:
    return limits.limits().maps and evaluation.measures_at_once(model)


def job_of(model: OpenModel, scores: ImportanceScores, now: WhatIf, *, start: bool = False) -> jobs.Job[Map] | None:
    """The job that grows the map of these settings; begun by itself where the model is small, else with `start`."""
    key = key_of(model, scores, now)
    _touched[key] = (time.monotonic(), now)
    job: jobs.Job[Map] | None = jobs.find(key)
    fits = scores.criterion != "none" and (scores.basis == now.basis or now.basis == Basis.DIRECTIONS)
    if not fits or not model.can_measure or (job is None and not start and not grows_by_itself(model)):
        return job
    if job is not None and not (start and not job.active):
        return job
    if job is None and not start and _shipped(model, scores, now) is not None:
        return None
    return jobs.start(
        key, lambda report: _grow(key, model, scores, now, report), "Measuring around", apart=True, again=start
    )


def give(model: OpenModel, scores: ImportanceScores, now: WhatIf, plan: PruningPlan, result: object) -> None:
    """Hand a plan that a session measured on the same inputs to the map."""
    from upvit_core.evaluation import Evaluation

    known = find(model, scores, now)
    if known is None or known.record.fitted is not None or not isinstance(result, Evaluation):
        return
    if result.images != known.record.samples or known.record.measured(plan.digest) is not None:
        return
    cut = MeasuredCut(
        **known.worth.of(plan).model_dump(), kl=max(result.kl or 0.0, 0.0), kl_stderr=result.kl_stderr or 0.0,
        top1=result.top1, loss=result.loss, loss_stderr=result.loss_stderr or 0.0, plan=plan.digest, origin="given",
    )  # fmt: skip
    _given.setdefault(key_of(model, scores, now), {})[plan.digest] = cut


def _grow(key: str, model: OpenModel, scores: ImportanceScores, now: WhatIf, report: jobs.Report) -> Map:
    imports.import_heavy(report.step)
    from upvit_core.mapping.grow import FIRST, Goal, grow, with_errors
    from upvit_core.mapping.measure import CutMeter

    report.step("reading the weights")
    needs_train = now.repair or now.basis == Basis.DIRECTIONS or model.shape.features
    train = model.images("train", labelled=model.shape.features, apart=True) if needs_train else None
    meter = CutMeter(
        model.weights(), scores, model.images("val"), train, now.basis, now.repair, report=report.cancel_only
    )
    path = _file(key)
    record = _read(path, meter.empty(), _shipped(model, scores, now))
    _publish(key, record, scores, report)

    def rest(record: Map) -> None:
        record.save(path)
        report.step(f"{len(record.cuts)} of at most {STEPS[-1]} cuts", len(record.cuts) / STEPS[-1])
        _wait(key, report)

    for most in STEPS:
        for cut in list(_given.pop(key, {}).values()):
            record = record.with_cut(cut)
        if len(record.cuts) < most:
            record = with_errors(
                grow(meter, record, most=most, near=_touched[key][1], report=_Quiet(report), on_cut=rest)
            )
            record.save(path)
            _publish(key, record, scores, report)
        errors = record.errors[-1] if record.errors else None
        if errors and len(record.cuts) >= FIRST and Goal().is_met(errors, meter.task.in_percent):
            break
    return record


@dataclass(frozen=True)
class _Quiet:
    """Listens for a stop; how far the map is, `rest` says."""

    report: jobs.Report

    def __call__(self, progress: object) -> None:
        self.report.cancel_only()


def _wait(key: str, report: jobs.Report) -> None:
    """Wait while sliders move, another map was looked at later, or a run trains on this machine. Raises Cancelled."""
    while time.monotonic() - _touched[key][0] < REST_SECONDS or _comes_later(key):
        report.debounce(0.1)
    while _run_wants_to_train():
        with compute.paused():
            report.step("waiting for a run on this machine")
            report.debounce(RUN_SECONDS)


def _comes_later(key: str) -> bool:
    """True while a map grows that somebody looked at since this one was looked at: one grows at a time."""
    mine = _touched[key][0]
    later = [other for other, (when, _) in list(_touched.items()) if when > mine]
    return any(job.active for job in map(jobs.find, later) if job is not None)


def _run_wants_to_train() -> bool:
    try:
        states = [run.state for run in RunStore(folders.runs()).list()]
        return any(state.state == "running" or (state.state == "queued" and not state.job) for state in states)
    except (UPViTError, OSError):
        return False


def _publish(key: str, record: Map, scores: ImportanceScores, report: jobs.Report) -> Known | None:
    from upvit_core.mapping.points import Worth
    from upvit_core.mapping.surrogate import Surrogate

    try:
        known = Known(record, Surrogate(record), Worth(scores, record.basis))
    except MapError:  # too few cuts yet
        return None
    _known.put(key, known)
    report.changed()
    return known


def _file(key: str) -> Path:
    folder = folders.home() / "maps"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{digest(key, 24)}.json"


def _read(path: Path, empty: Map, shipped: Map | None) -> Map:
    """The map on disk, or the one that came with the model, where it is of the same thing; else the empty one."""
    try:
        record = Map.load(path)
    except MapError:
        record = shipped or empty
    return record if record.belongs_to == empty.belongs_to else empty
