"""Score a loaded model by name of the criterion: what pages and the command line call."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from upvit_core.data import ImageSet, draw_proxy
from upvit_core.errors import ScoresError
from upvit_core.importance import sharding
from upvit_core.importance.activation import Activation
from upvit_core.importance.criterion import Criterion, Report, silent
from upvit_core.importance.criterion_names import CriterionName
from upvit_core.importance.fisher import Fisher
from upvit_core.importance.kl import KL
from upvit_core.importance.magnitude import Magnitude, Random
from upvit_core.importance.refine import Cut, Refine
from upvit_core.importance.stopping import StableFisher
from upvit_core.models.build import adapt
from upvit_core.models.checkpoint import LoadedModel
from upvit_core.ranks import process_count
from upvit_core.records.plan import PruningPlan
from upvit_core.records.scores import ImportanceScores
from upvit_core.records.shape import ModelShape

DEFAULT_IMAGES = 2000
WITHOUT_IMAGES = ("l1", "l2", "random")
CRITERIA = tuple(name.value for name in CriterionName)


def default_cuts(shape: ModelShape) -> tuple[Cut, ...]:
    """Cuts at 50 % and 75 % of every component, heads as they are."""
    cuts = []
    for share in (0.5, 0.25):
        groups = {g.key: (g.heads, max(1, round(g.width // g.heads * share))) for g in shape.groups}
        cuts.append(Cut(groups))
    return tuple(cuts)


def cut_of(plan: PruningPlan) -> Cut:
    """The cut that a plan makes in every group of its source model."""
    groups = {}
    for group in plan.shape_before.groups:
        heads = (plan.heads_of(group.place) or group.heads) if group.component == "attention" else group.heads
        groups[group.key] = (heads, len(plan.kept(group.key)) // heads)
    return Cut(groups)


def make_criterion(
    name: str, shape: ModelShape, *, seed: int = 0, precision: str = "float32", journal: Path | None = None
) -> Criterion:
    """The criterion of that name with its default settings; `precision` is that of the forward passes."""
    exact, fast = KL(journal=journal, precision=precision), Fisher(seed=seed, precision=precision)
    if name == "kl":
        return exact
    if name == "fisher":
        return fast
    if name == "refine":
        return Refine(default_cuts(shape), kl=exact, fisher=fast)
    if name in ("l1", "l2"):
        return Magnitude(1 if name == "l1" else 2)
    if name == "taylor":
        return Activation("taylor")
    if name == "variance":
        return Activation("variance")
    if name == "random":
        return Random(seed)
    raise ScoresError(f"There is no criterion {name!r}; choose one of {', '.join(CRITERIA)}.")


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
        criterion = make_criterion(criterion, loaded.shape, seed=seed, precision=precision, journal=journal)
        if n is None and isinstance(criterion, Fisher):
            criterion = StableFisher(fisher=criterion)
    if images is None:
        if not isinstance(criterion, Magnitude | Random):
            raise ScoresError(f"The criterion {criterion.name} looks at images; give some.")
        record = criterion.attribute(adapt(loaded.model, loaded.shape), report=report)
        return replace(record, shape=loaded.shape, model=loaded.name, model_digest=loaded.digest, seed=seed)
    count = min(DEFAULT_IMAGES, len(images)) if n is None else n
    whole = proxy = draw_proxy(images, count, seed, balanced=balanced)
    if process_count() > 1:
        proxy = sharding.own_shard(whole)
    record = criterion.attribute(adapt(loaded.model, loaded.shape), proxy, report)
    if process_count() > 1:
        record = sharding.all_reduce_scores(record, whole, next(loaded.model.parameters()).device.type)
    return replace(record, shape=loaded.shape, model=loaded.name, model_digest=loaded.digest, seed=seed)
