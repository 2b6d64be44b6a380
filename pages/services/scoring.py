"""Which scores are used: those that came with the model, and those made here, kept as records in a folder per model."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import streamlit as st

from pages.services import evaluation, folders, jobs, open_model
from pages.services.open_model import OpenModel
from upvit_core import units
from upvit_core.importance.criterion_names import CriterionName
from upvit_core.planning.what_if import WhatIf
from upvit_core.records.scores import ImportanceScores
from upvit_core.records.task import data_name, scores_words

CHOSEN = "scores"
BUNDLED = "bundled"
LABELS = {
    CriterionName.FISHER: "fisher · fast, all channels from a few passes",
    CriterionName.KL: "kl · exact, channel by channel",
    CriterionName.REFINE: "refine · fast, then exact near the cut",
    CriterionName.L1: "l1 · size of the weights",
    CriterionName.L2: "l2 · size of the weights, squared",
    CriterionName.TAYLOR: "taylor · first order",
    CriterionName.VARIANCE: "variance · of the activations",
    CriterionName.RANDOM: "random · for comparison",
}


def folder(model: OpenModel) -> Path:
    return folders.scores() / hashlib.sha256(open_model.identity(model).encode()).hexdigest()[:16]


def records(model: OpenModel) -> dict[str, ImportanceScores]:
    """Scores by name: those that came with the model first, then those made here, newest first."""
    found: dict[str, ImportanceScores] = {}
    if model.bundled is not None:
        found[BUNDLED] = model.bundled
    if model.has_weights and folder(model).is_dir():
        made = sorted(folder(model).glob("*.safetensors"), key=lambda path: -path.stat().st_mtime)
        for path in made:
            record = _read(str(path), path.stat().st_mtime_ns)
            if record.shape.blocks == model.shape.blocks and record.shape.embed_dim == model.shape.embed_dim:
                found[path.stem] = record
    return found


@st.cache_resource(max_entries=32, show_spinner=False)
def _read(path: str, stamp: int) -> ImportanceScores:
    return ImportanceScores.load(path)


def current(model: OpenModel) -> ImportanceScores | None:
    """The scores that were chosen, else the first, of channels where there are such; None where there are none."""
    available = records(model)
    name = st.session_state.setdefault(CHOSEN, {}).get(model.source)
    usual = sorted(available.values(), key=lambda record: record.basis == "directions")
    return available.get(name) or next(iter(usual), None)


def choose(model: OpenModel, name: str) -> None:
    st.session_state.setdefault(CHOSEN, {})[model.source] = name


def name_of(criterion: str, images: int | None, seed: int, spec: str, what_if: WhatIf | None = None) -> str:
    """Name of a record; that of `refine` depends on the cut that it is exact near."""
    data = hashlib.sha256(spec.encode()).hexdigest()[:6]
    cut = f"-{'-'.join(map(str, what_if.percents))}" if criterion == "refine" and what_if else ""
    return f"{criterion}-{images or 'stable'}-{seed}-{data}{cut}"


def label(name: str, record: ImportanceScores) -> str:
    where = f" of {data_name(record.data)}" if record.data else ""
    came = " · came with it" if name == BUNDLED else f" · seed {record.seed}"
    what = "directions, " if record.basis == "directions" else ""
    if (exact := record.notes.get("exact_share")) is not None:
        came = f" · {units.percent(exact)} of channels exact{came}"
    return f"{what}{scores_words(record)}{where}{came}"


def job_key(model: OpenModel, name: str) -> str:
    return f"score {open_model.identity(model)} {name}"


def start(
    model: OpenModel, criterion: str, images: int | None, seed: int, spec: str, what_if: WhatIf | None = None
) -> jobs.Job:
    """Score in the background, through the same function as the command line; the record is kept.

    images: None takes as many as a stable kept set needs. `refine` is exact near the cut of `what_if`, and near 50 and
    75 %; its record is there at once and fills in.
    """
    name = name_of(criterion, images, seed, spec, what_if)
    path = folder(model) / f"{name}.safetensors"

    def work(report: jobs.Report) -> str:
        report.say("reading the weights")
        from upvit_core.importance.score import cut_of, default_cuts, make_criterion, score

        live, data = open_model.live(model), evaluation.images(model, spec, "train")
        journal = path.with_suffix(".partial.jsonl")

        def fill_in(record: ImportanceScores) -> None:
            whole = replace(record, shape=live.shape, model=live.name, model_digest=live.digest, seed=seed)
            whole.save(path)
            if not record.notes["exact_share"]:
                notes = {key: value for key, value in record.notes.items() if not key.startswith("exact")}
                estimate = replace(whole, criterion="fisher", notes=notes)
                estimate.save(folder(model) / f"{name_of('fisher', images, seed, spec)}.safetensors")
            report.changed()

        way = make_criterion(criterion, live.shape, seed=seed, journal=journal)
        if criterion == "refine":
            cuts = default_cuts(live.shape)
            if what_if is not None:
                cuts = (cut_of(what_if.plan(open_model.no_scores(live.shape))), *cuts)
            way = replace(way, cuts=cuts, on_update=fill_in)
        elif images is None:
            way = criterion
        n = None if images is None else min(images, len(data))
        record = score(live, data, way, n=n, seed=seed, journal=journal, report=report)
        record.save(path)
        for leftover in path.parent.glob(f"{name}.partial*.jsonl"):
            leftover.unlink()
        return name

    job = jobs.start(job_key(model, name), work, f"Scoring with {criterion}", long=True, again=not path.exists())
    st.session_state.setdefault("scoring", {})[job.key] = name
    return job


def directions(model: OpenModel, spec: str) -> jobs.Job:
    """The job that finds and scores the directions of the open model; its result is a scores record, kept."""
    name = f"directions-{evaluation.CALIBRATION_IMAGES}"
    path = folder(model) / f"{name}.safetensors"

    def work(report: jobs.Report) -> ImportanceScores:
        report.say("finding the directions")
        from upvit_core.data import draw_proxy
        from upvit_core.models.build import adapt
        from upvit_core.pruning.basis import directions_scores

        live, data = open_model.live(model), evaluation.images(model, spec, "train")
        adapter, proxy = (
            adapt(live.model, live.shape),
            draw_proxy(data, min(evaluation.CALIBRATION_IMAGES, len(data)), 0),
        )
        stats = evaluation.statistics(model, spec, report)
        found = directions_scores(adapter, proxy, stats, report=report)
        record = replace(found, shape=live.shape, model=live.name, model_digest=live.digest)
        record.save(path)
        return record

    key = job_key(model, name)
    if jobs.find(key) is None and path.exists():
        return jobs.submit_done(key, "Finding directions", _read(str(path), path.stat().st_mtime_ns))
    return jobs.start(key, work, "Finding directions")


def can_find(model: OpenModel) -> bool:
    """Whether directions can be found: that takes a plain ViT with weights, and images."""
    return model.shape.has_directions and model.has_weights and bool(evaluation.image_spec(model))


def planning(
    model: OpenModel, scores: ImportanceScores | None, what_if: WhatIf, spec: str
) -> tuple[ImportanceScores | None, jobs.Job | None]:
    """The scores that say what this what-if keeps, or the job that finds them.

    A cut by directions keeps the FFN channels that the others cannot make up for, which the record of directions
    tells. The scores themselves where directions cannot be found; neither where finding them failed.
    """
    known = scores is not None and scores.basis == "directions"
    if what_if.basis == "channels" or known or not can_find(model):
        return scores, None
    job = directions(model, spec)
    return (job.result, None) if job.state == "done" else (None, job)
