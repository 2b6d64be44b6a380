"""Importance scores of the open model: those that came with it, and those made here, records in one folder a model."""

from dataclasses import dataclass, replace
from pathlib import Path

import streamlit as st

from pages.services import evaluation, folders, jobs, open_model
from pages.services.open_model import OpenModel
from pages.services.session import session
from upvit_core import units
from upvit_core.files import digest
from upvit_core.planning.what_if import WhatIf
from upvit_core.records.criteria import BY_LABEL, CriterionName
from upvit_core.records.scores import ImportanceScores
from upvit_core.records.task import data_name, scores_words

BUNDLED = "bundled"
LABELS = {name: f"{name.value} · {name.entry.menu}" for name in CriterionName}


def folder(model: OpenModel) -> Path:
    return folders.scores() / digest(model.identity)


def records(model: OpenModel) -> dict[str, ImportanceScores]:
    """Scores by name: those that came with the model first, then those made here, newest first."""
    available: dict[str, ImportanceScores] = {}
    if model.bundled is not None:
        available[BUNDLED] = model.bundled
    if model.has_weights and folder(model).is_dir():
        made = sorted(folder(model).glob("*.safetensors"), key=lambda path: -path.stat().st_mtime)
        for path in made:
            record = _read(str(path), path.stat().st_mtime_ns)
            if record.shape.blocks == model.shape.blocks and record.shape.embed_dim == model.shape.embed_dim:
                available[path.stem] = record
    return available


@st.cache_resource(max_entries=32, show_spinner=False)
def _read(path: str, stamp: int) -> ImportanceScores:
    return ImportanceScores.load(path)


def current(model: OpenModel) -> ImportanceScores | None:
    """The scores that were chosen, else the first, of channels where there are such; None where there are none."""
    if model.is_elastic:  # only its own scores have the order of its weights
        return model.bundled
    available = records(model)
    usual = sorted(available.values(), key=lambda record: record.basis == "directions")
    return available.get(session().scores.get(model.source, "")) or next(iter(usual), None)


def choose(model: OpenModel, name: str) -> None:
    session().scores[model.source] = name


def label(name: str, record: ImportanceScores) -> str:
    where = f" of {data_name(record.data)}" if record.data else ""
    origin = " · came with it" if name == BUNDLED else f" · seed {record.seed}"
    basis = "directions, " if record.basis == "directions" else ""
    if (exact := record.notes.get("exact_share")) is not None:
        origin = f" · {units.percent(exact)} of channels exact{origin}"
    return f"{basis}{scores_words(record)}{where}{origin}"


@dataclass(frozen=True)
class Request:
    """Scores that were asked for: `images` None takes as many as a stable kept set needs."""

    criterion: CriterionName
    images: int | None
    seed: int = 0

    def name(self, dataset: str, cut: WhatIf | None = None) -> str:
        """Name of the record; that of `refine` depends on the cut near which it is exact."""
        data = digest(dataset, 6)
        near = f"-{'-'.join(map(str, cut.slider_values))}" if cut and self.criterion is CriterionName.REFINE else ""
        return f"{self.criterion.value}-{self.images or 'stable'}-{self.seed}-{data}{near}"


def start_scoring(model: OpenModel, request: Request, what_if: WhatIf | None = None) -> jobs.Job[str]:
    """Score in the background, through the same function as the command line; the result is the record's name.

    `refine` is exact near the cut of `what_if`, and near 50 and 75 %; its record is there at once and fills in.
    Raises DataError where no images were chosen.
    """
    open_model.check_chosen(model.dataset)
    name, seed, criterion = request.name(model.dataset, what_if), request.seed, request.criterion
    path = folder(model) / f"{name}.safetensors"
    estimate_name = replace(request, criterion=CriterionName.FISHER).name(model.dataset)

    def work(report: jobs.Report) -> str:
        report.step("reading the weights")
        from upvit_core.importance import criterion as criteria
        from upvit_core.importance.refine import Refine, cut_of, default_cuts
        from upvit_core.importance.score import make_criterion, score

        live, data = model.weights(), model.images("train", labelled=criterion in BY_LABEL)
        journal = path.with_suffix(".partial.jsonl")

        def fill_in(record: ImportanceScores) -> None:
            whole = replace(record, shape=live.shape, model=live.name, model_digest=live.digest, seed=seed)
            whole.save(path)
            if not record.notes["exact_share"]:
                notes = {key: value for key, value in record.notes.items() if not key.startswith("exact")}
                estimate = replace(whole, criterion="fisher", notes=notes)
                estimate.save(folder(model) / f"{estimate_name}.safetensors")
            report.changed()

        way = make_criterion(criterion.value, criteria.Request(live.shape, seed=seed, journal=journal))
        if isinstance(way, Refine):
            cuts = default_cuts(live.shape)
            if what_if is not None:
                cuts = (cut_of(what_if.plan(open_model.no_scores(live.shape))), *cuts)
            way = replace(way, cuts=cuts, on_update=fill_in)
        stable = request.images is None and not isinstance(way, Refine)
        n = None if request.images is None else min(request.images, len(data))
        record = score(live, data, criterion.value if stable else way, n=n, seed=seed, journal=journal, report=report)
        record.save(path)
        for leftover in path.parent.glob(f"{name}.partial*.jsonl"):
            leftover.unlink()
        return name

    title = f"Scoring with {criterion.value}"
    job = jobs.start(job_key(model, name), work, title, long=True, again=not path.exists())
    followed = session().scoring
    for key in [key for key in followed if (other := jobs.find(key)) is None or not other.active]:
        del followed[key]
    followed[job.key] = name
    return job


def job_key(model: OpenModel, name: str) -> str:
    return f"score {model.identity} {name}"


def directions(model: OpenModel) -> jobs.Job[ImportanceScores]:
    """The job that finds and scores the directions of the open model; its record is kept."""
    name = f"directions-{evaluation.CALIBRATION_IMAGES}"
    path = folder(model) / f"{name}.safetensors"

    def work(report: jobs.Report) -> ImportanceScores:
        report.step("finding the directions")
        from upvit_core.models.build import adapt
        from upvit_core.pruning.basis import directions_scores

        live, stats = model.weights(), evaluation.statistics(model, report)
        proxy = evaluation.calibration_set(model)
        scores = directions_scores(adapt(live.model, live.shape), proxy, stats, report=report)
        record = replace(scores, shape=live.shape, model=live.name, model_digest=live.digest)
        record.save(path)
        return record

    key, title = job_key(model, name), "Finding directions"
    if model.directions is not None:
        return jobs.submit_done(key, title, model.directions)
    if jobs.find(key) is None and path.exists():
        return jobs.submit_done(key, title, _read(str(path), path.stat().st_mtime_ns))
    return jobs.ensure(key, work, title)


def can_find_directions(model: OpenModel) -> bool:
    """True if directions can be computed: that takes a plain ViT with weights, and images."""
    return model.shape.has_directions and model.can_measure


def for_planning(
    model: OpenModel, scores: ImportanceScores | None, what_if: WhatIf
) -> tuple[ImportanceScores | None, jobs.Job[ImportanceScores] | None]:
    """The scores by which this what-if keeps channels, or the job that computes them.

    A cut by directions keeps the FFN channels that the others cannot replace, which only the record of directions
    says. The given scores are returned where directions cannot be computed.
    """
    known = scores is not None and scores.basis == "directions"
    if what_if.basis == "channels" or known or not can_find_directions(model):
        return scores, None
    job = directions(model)
    return job.result, None if job.state == "done" else job
