"""Score a loaded model by name of the criterion: what pages and the command line call."""

from dataclasses import replace
from pathlib import Path
from typing import cast

from upvit_core.data import ImageSet, draw_proxy
from upvit_core.errors import ScoresError
from upvit_core.importance import sharding
from upvit_core.importance.criterion import Criterion, Report, Request, WeightCriterion, silent
from upvit_core.importance.fisher import Fisher
from upvit_core.importance.stopping import StableFisher
from upvit_core.models.build import adapt
from upvit_core.models.checkpoint import LoadedModel
from upvit_core.models.output import with_output
from upvit_core.records.criteria import CRITERIA, WITHOUT_IMAGES
from upvit_core.records.family import load
from upvit_core.records.scores import ImportanceScores

DEFAULT_IMAGES = 2000


def make_criterion(name: str, request: Request) -> Criterion:
    """The criterion of that name with its default settings."""
    if name not in CRITERIA:
        raise ScoresError(f"There is no criterion {name!r}; choose one of {', '.join(CRITERIA)}.")
    criterion: Criterion = load(f"importance.{CRITERIA[name].make}")(request)
    return criterion


def score(
    loaded: LoadedModel,
    images: ImageSet | None,
    criterion: str | Criterion = "fisher",
    *,
    n: int | None = None,
    seed: int = 0,
    balanced: bool = False,
    precision: str = "float32",
    journal: Path | None = None,
    report: Report = silent,
) -> ImportanceScores:
    """Score every channel of a model on `n` images drawn by `seed`; criteria of weights alone need none (None).

    Without `n`, `fisher` takes as many as a stable kept set needs (`StableFisher`), up to 2,000; the others take 2,000.
    `journal`: a file that keeps the finished part of an exact score, so that a killed one goes on. Under a launcher
    (`torchrun`, `accelerate launch`) each process scores its part of the images, and all get the whole record.
    """
    if isinstance(criterion, str):
        request = Request(loaded.shape, seed=seed, precision=precision, journal=journal)
        criterion = make_criterion(criterion, request)
        if n is None and isinstance(criterion, Fisher):
            criterion = StableFisher(fisher=criterion)
    if images is None:
        if criterion.name not in WITHOUT_IMAGES:
            raise ScoresError(f"The criterion {criterion.name} needs images; give some.")
        weights_only = cast(WeightCriterion, criterion)
        record = weights_only.attribute(adapt(loaded.model, loaded.shape), report=report)
        return replace(record, shape=loaded.shape, model=loaded.name, model_digest=loaded.digest, seed=seed)
    count = min(DEFAULT_IMAGES, len(images)) if n is None else n
    whole = draw_proxy(images, count, seed, balanced=balanced)
    adapter, proxy = adapt(loaded.model, loaded.shape), sharding.own_shard(whole)
    if proxy is not whole:
        adapter = with_output(adapter, whole)
    record = criterion.attribute(adapter, proxy, report)
    record = sharding.all_reduce_scores(record, whole, next(loaded.model.parameters()).device)
    return replace(record, shape=loaded.shape, model=loaded.name, model_digest=loaded.digest, seed=seed)
