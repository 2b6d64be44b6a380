"""Runs as the page needs them: rows read once and then only what is new, shapes and costs from the plan."""

import json
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import streamlit as st

from upvit_core import units
from upvit_core.errors import UPViTError
from upvit_core.figures.evaluations import Points, Row
from upvit_core.figures.runs import RunCurve, colour_of
from upvit_core.paths import DEMO_FOLDER
from upvit_core.planning.what_if import WhatIf
from upvit_core.records.basis import Basis
from upvit_core.records.plan import PruningPlan
from upvit_core.records.shape import ModelShape
from upvit_core.records.source import Source
from upvit_core.runs.folder import RunSummary
from upvit_core.runs.forecast import Forecast, forecast, outcome_of, recipe_of
from upvit_core.runs.spec import RunSpec, RunState
from upvit_core.runs.store import RunStore

MOST_REMEMBERED = 400
ORDINALS = {1: "st", 2: "nd", 3: "rd"}


@dataclass
class _Read:
    """The rows of one metrics.jsonl read so far; `rows` only grows."""

    rows: list[Row] = field(default_factory=list)
    points: Points = field(default_factory=Points)
    offset: int = 0


class _Rows:
    """Rows of runs, shared by all sessions; each asking reads only the bytes that are new."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.read: dict[str, _Read] = {}

    def __call__(self, store: RunStore, run_id: str) -> list[Row]:
        return self._read(store, run_id).rows

    def points(self, store: RunStore, run_id: str) -> Points:
        """The same rows as they are drawn."""
        return self._read(store, run_id).points

    def known(self, store: RunStore, run_id: str) -> Points:
        """The points read so far, without reading the file."""
        read = self.read.get(str(store.root / run_id))
        return read.points if read is not None else self.points(store, run_id)

    def _read(self, store: RunStore, run_id: str) -> _Read:
        with self.lock:
            key = str(store.root / run_id)
            known = self.read.setdefault(key, _Read())
            rows, offset = store.read_metrics(run_id, known.offset)
            if offset < known.offset:  # another file has taken its place
                known = self.read[key] = _Read()
            known.rows.extend(rows)
            known.points.add(rows)
            known.offset = offset
            while len(self.read) > MOST_REMEMBERED:
                self.read.pop(next(iter(self.read)))
            return known


@st.cache_resource(show_spinner=False)
def rows() -> _Rows:
    return _Rows()


def names(summaries: Sequence[RunSummary]) -> dict[str, str]:
    """A unique name for every run: equal ones are numbered from the second on, oldest first."""
    seen: dict[str, int] = {}
    unique = {}
    for summary in reversed(summaries):
        name = summary.name
        if summary.spec is not None and summary.spec.settings.from_scratch and "scratch" not in name:
            name += " from scratch"
        seen[name] = seen.get(name, 0) + 1
        unique[summary.id] = name if seen[name] == 1 else f"{name} #{seen[name]}"
    return unique


def colours(summaries: Sequence[RunSummary]) -> dict[str, str]:
    """A colour for every run by its place in the order of creation, so that it stays when newer ones come."""
    return {summary.id: colour_of(place) for place, summary in enumerate(reversed(summaries))}


def curves(store: RunStore, chosen: Sequence[RunSummary], every: Sequence[RunSummary]) -> list[RunCurve]:
    """The chosen runs with what they have measured so far."""
    label, colour = names(every), colours(every)
    return [
        RunCurve(
            id=s.id, label=label[s.id], colour=colour[s.id], points=rows().points(store, s.id), plan=plan_words(s.spec),
            group=s.spec.group, teacher=teacher_name(s.spec), data=s.spec.data,
            epochs=s.spec.epochs,
        )
        for s in chosen if s.spec is not None
    ]  # fmt: skip


def expected(store: RunStore, run: RunSummary, every: Sequence[RunSummary]) -> Forecast | None:
    """Top-1 at the end of a run that goes on, forecast from finished ones of its kind; None where they do not reach."""
    spec = run.spec
    surgery = next((row for row in rows()(store, run.id) if row.get("phase") == "surgery"), {})
    if spec is None or not run.state.is_active or not surgery.get("kl_teacher") or spec.settings.from_scratch:
        return None
    kind = (spec.teacher, spec.data, spec.epochs, recipe_of(spec.settings))
    known = (
        outcome_of(s.id, rows()(store, s.id))
        for s in every
        if s.spec is not None and s.state.state == "done" and s.spec.kind == "distill"
        if (s.spec.teacher, s.spec.data, s.spec.epochs, recipe_of(s.spec.settings)) == kind
    )
    return forecast([outcome for outcome in known if outcome is not None], surgery["kl_teacher"], spec.epochs)


def teacher_name(spec: RunSpec) -> str:
    return model_name(spec.teacher)


def model_name(source: str) -> str:
    """The last part of where a model lies; of the model of a run, the run's name."""
    path = Path(Source.parse(source).path)
    return (path.parent.name if path.name == "model" else path.name) or source


def state_words(state: RunState, *, stopping: str = "") -> str:
    """`queued 2nd`, `running 43 %, 12 min left`, `paused at 43 %`, `done 90.1 %`, `interrupted`."""
    if stopping and state.is_active:
        return stopping
    if state.state == "queued":
        place = state.position or 0
        ending = ORDINALS.get(place % 10, "th") if place % 100 not in (11, 12, 13) else "th"
        return f"queued {place}{ending}" if place else f"queued: {state.place}" if state.place else "queued"
    top1 = "" if state.top1 is None else f" {state.top1:.1f} %"
    if state.perplexity is not None:
        top1 = f", perplexity {state.perplexity:.2f}"
    if state.state == "running":
        if not state.total_steps or state.stage not in ("training", ""):
            return f"running: {state.stage or 'starting'}"
        left = units.duration(state.seconds_left)
        return f"running {100 * state.progress:.0f} %" + (f", {left} left" if left else "")
    if state.state == "done":
        return f"done{top1}"
    return state.state if not state.step else f"{state.state} at {100 * state.progress:.0f} %"


def shape_of(store: RunStore, run_id: str, spec: RunSpec) -> ModelShape | None:
    """Shape of a run's student, from its plan or its folder; None where neither has it."""
    return _shape(str(store.root), run_id, _Unhashed(spec, store))


@dataclass(frozen=True)
class _Unhashed:
    spec: RunSpec
    store: RunStore | None = None


@st.cache_resource(max_entries=MOST_REMEMBERED, show_spinner=False)
def _shape(root: str, run_id: str, _unhashed: _Unhashed) -> ModelShape | None:
    spec = _unhashed.spec
    try:
        if spec.plan is not None:
            assert _unhashed.store is not None
            plan = _unhashed.store.get(run_id).spec.plan  # a summary's spec has no channels
            return PruningPlan.from_json(json.dumps(plan), f"the plan of {run_id}").shape_after
        source = spec.student or Source.parse(spec.teacher).path  # an elastic student is as wide as its teacher
        folder = DEMO_FOLDER if source == "demo" else Path(source)
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        return ModelShape.from_dict(config["upvit_shape"])
    except (UPViTError, OSError, ValueError, KeyError, TypeError):
        return None


@st.cache_resource(max_entries=MOST_REMEMBERED, show_spinner=False)
def _plan_words(run_id: str, _unhashed: _Unhashed) -> str:
    spec = _unhashed.spec
    if spec.kind == "finetune":
        part = ", head only" if spec.settings.head_only else ""
        return f"{model_name(spec.student or '')} to {Path(spec.data).name}{part}"
    if spec.kind == "elastic":
        return "every size"
    if spec.plan is None:
        return f"folder {Path(str(spec.student)).name}"
    asked = spec.plan.get("requested", {})
    if "preset" in asked:
        return str(asked["preset"])
    basis = Basis(spec.plan.get("basis", Basis.CHANNELS))
    what_if = WhatIf.from_request(asked, basis=basis, repair=spec.repair)
    return what_if.words if what_if else "a plan of its own"


def plan_words(spec: RunSpec) -> str:
    """`50/50/50 %, 3 heads` where the plan says what was asked for."""
    return _plan_words(f"{spec.created} {spec.name}", _Unhashed(spec))


def baseline_of(run: RunSummary, every: Sequence[RunSummary], store: RunStore) -> RunSummary | None:
    """The newest run of the same shape, data and length that began with fresh weights."""
    if run.spec is None or run.spec.settings.from_scratch:
        return None
    wanted = _compared(store, run.id, run.spec)
    fresh = (s for s in every if s.spec is not None and s.spec.settings.from_scratch and s.state.top1 is not None)
    return next((s for s in fresh if s.spec is not None and _compared(store, s.id, s.spec) == wanted), None)


def _compared(store: RunStore, run_id: str, spec: RunSpec) -> object:
    """The settings that two runs must share to be compared."""
    shape = shape_of(store, run_id, spec)
    widths = run_id if shape is None else (shape.embed_dim, shape.blocks)
    return spec.kind, widths, spec.data, spec.epochs, spec.settings.batch_size
