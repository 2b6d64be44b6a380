"""The method in a few verbs for scripts and notebooks: load, score, plan, prune, slice, evaluate, distil.

Models go in and come out as `LoadedModel`; arguments are never changed. Data is `demo`, a folder of classes, an archive
of one, a timm name, or an `ImageSet`. `import upvit_core` offers everything here, and imports it when it is first used.
"""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeVar

from upvit_core.data import ImageSet, proxy_indices
from upvit_core.errors import PlanError, RunError, ScoresError
from upvit_core.evaluation import Evaluation, readout_of
from upvit_core.evaluation import evaluate as evaluate_batches
from upvit_core.importance.criterion import Report, frozen, silent
from upvit_core.importance.score import DEFAULT_IMAGES
from upvit_core.importance.score import score as score_channels
from upvit_core.models.checkpoint import LoadedModel, build_model, load_model
from upvit_core.models.checkpoint import save_model as write_folder
from upvit_core.models.images import Split, images_for
from upvit_core.models.tensors import digest_of
from upvit_core.planning.budget import Budget, Family, LatencyParts, best_plan
from upvit_core.planning.budget_stages import best_shares
from upvit_core.planning.ratios import plan_uniform
from upvit_core.pruning import elastic as elastic_models
from upvit_core.pruning.basis.scores import score_directions
from upvit_core.pruning.elastic import ElasticModel, cut_size, prefix_plan, save_elastic
from upvit_core.pruning.elastic.choose import choose_size
from upvit_core.pruning.elastic.training import ElasticSizes
from upvit_core.pruning.prune import cut_and_record
from upvit_core.records.basis import Basis
from upvit_core.records.criteria import BY_LABEL
from upvit_core.records.plan import PruningPlan
from upvit_core.records.ratios import Ratios
from upvit_core.records.scores import ImportanceScores
from upvit_core.records.task import check_teacher
from upvit_core.training.distillation import Distillation, make_accelerator
from upvit_core.training.distillation import distill as train
from upvit_core.training.settings import PRESETS, DistillSettings, usual_preset

__all__ = [
    "ElasticModel",
    "PrunedModel",
    "distill",
    "evaluate",
    "load_model",
    "make_elastic",
    "plan",
    "prune",
    "save_model",
    "score",
    "slice_model",
]

Data = str | Path | ImageSet
Model = TypeVar("Model", bound=LoadedModel)


@dataclass(frozen=True)
class PrunedModel(LoadedModel):
    """A thinner model with the plan that makes it again from its source."""

    plan: PruningPlan


def score(
    model: LoadedModel,
    data: Data | None = None,
    criterion: str = "fisher",
    *,
    basis: Basis = Basis.CHANNELS,
    images: int | None = None,
    seed: int = 0,
    root: str | None = None,
    report: Report = silent,
) -> ImportanceScores:
    """One score a channel (Eq. 1): KL(original || without it) in nats, summed over `images` training images.

    `criterion`: `kl` is exact; `refine` comes near it with a quarter of the passes; `fisher` is the second-order
    estimate, hundreds of times faster; `taylor`, `variance`, `l1`, `l2` and `random` are peers, of which the last three
    need no data. Without `images`, `fisher` of channels takes as many as a stable choice needs, the others 2,000.
    `basis="directions"` scores directions of a rotated residual and of rotated heads, by `fisher` or `kl`.
    Raises ScoresError where the criterion is unknown or lacks data, DataError where the data cannot be opened.
    """
    train_images = None if data is None else _images(model, data, "train", root=root, labelled=criterion in BY_LABEL)
    if Basis(basis) is Basis.CHANNELS:
        return score_channels(model, train_images, criterion, n=images, seed=seed, report=report)
    if train_images is None:
        raise ScoresError("Directions are scored on data; give data.")
    count = min(DEFAULT_IMAGES, len(train_images)) if images is None else images
    return score_directions(model, train_images, criterion, n=count, seed=seed, report=report)


def plan(
    scores: ImportanceScores,
    *,
    residual: float = 0.0,
    attention: float = 0.0,
    ffn: float = 0.0,
    heads: int | None = None,
    budget: str | None = None,
) -> PruningPlan:
    """The channels, or directions, that stay: those with the highest scores.

    `residual`, `attention` and `ffn` are shares removed, in [0, 1), the same in every block; widths become the nearest
    that the heads divide. `heads` merges each block's heads into that many (None: as they are). `budget` replaces the
    shares: `macs=1.2G`, `params=6M`, or both with a comma; the plan then loses the least score within it.
    `WhatIf` spreads shares over blocks in other ways. Raises PlanError for an illegal share, head count or budget.
    """
    if budget is None:
        return plan_uniform(scores, Ratios(residual, attention, ffn), heads=heads, snap=True, basis=scores.basis)
    if residual or attention or ffn:
        raise PlanError("A budget chooses the shares itself; give a budget or shares, not both.")
    limit = Budget.parse(budget.split(","))
    if not scores.shape.one_share:
        return best_plan(scores, limit, heads=heads, basis=scores.basis).plan
    if heads is not None:
        raise PlanError(f"A budget for {scores.shape.name}, a model of stages, keeps its heads; leave `heads` out.")
    return best_shares(scores, limit.limits()).plan


def prune(
    model: LoadedModel,
    plan: PruningPlan,
    *,
    data: Data | None = None,
    repair: bool | None = None,
    images: int | None = None,
    seed: int | None = None,
    root: str | None = None,
    report: Report = silent,
) -> PrunedModel:
    """A physically thinner model of the same structure, on the same device.

    `repair` fits its layers to the original's activations by least squares on `images` training images of `data`, in
    seconds and without training; plans of directions need data too. None takes what the plan records, else no repair
    and 2,000 images by seed 0. Raises PlanError where the plan belongs to another shape, or data is missing.
    """
    opened = None if data is None else _images(model, data, "train", root=root, labelled=False, apart=True)
    if opened is not None and images is not None:
        images = min(images, len(opened))
    module, made = cut_and_record(model, plan, repair=repair, data=opened, images=images, seed=seed, report=report)
    shape = replace(plan.at_size(model.shape.img_size).shape_after, name=f"{model.name} pruned")
    known: dict[str, Any] = {field.name: getattr(model, field.name) for field in fields(LoadedModel)}
    known |= {"model": module, "shape": shape, "name": shape.name, "digest": digest_of(module.state_dict(), shape)}
    return PrunedModel(**known, plan=made)


def make_elastic(
    model: LoadedModel,
    data: Data,
    *,
    images: int = 2000,
    seed: int = 0,
    root: str | None = None,
    report: Report = silent,
) -> ElasticModel:
    """A full-width model with the outputs of `model`, whose first channels are a thinner model, at any size.

    `images` training images of `data`, drawn by `seed`, decide the order of channels; labels are not used. Stock timm
    opens the folder that `save_model` writes. Raises UnsupportedModelError for models other than plain ViTs.
    """
    opened = _images(model, data, "train", root=root, labelled=False, apart=True)
    return elastic_models.make_elastic(model, opened, n=images, seed=seed, report=report)


def slice_model(
    model: ElasticModel | str | Path,
    *,
    residual: float = 0.0,
    attention: float = 0.0,
    ffn: float = 0.0,
    reduction: float | None = None,
    widths: str | None = None,
    budget: str | None = None,
    allocation: Family = "stock",
    latency: LatencyParts | None = None,
    repair: bool | None = None,
) -> PrunedModel:
    """A thinner model from an elastic one or its folder, without images.

    Give its size by the shares removed (0 to 1), by `widths` such as `48:6x48x192*6`, or by a `budget` such as
    `macs=20M` (with equal blocks, unless `allocation` is `best`). `repair` refits the cut layers from the
    second moments in the folder (None: if it has them). Raises PlanError if there is no such size.
    """
    opened = model if isinstance(model, ElasticModel) else elastic_models.open_elastic(model)
    limit = None if budget is None else Budget.parse(budget.split(","))
    ratios = Ratios(residual, attention, ffn, reduction)
    after = choose_size(opened, ratios, widths=widths, budget=limit, family=allocation, latency=latency)
    module = cut_size(opened.model, opened.elastic, after, repair=repair)
    solved = bool(opened.elastic.moments) and repair is not False
    made = prefix_plan(opened.shape, after, model=opened.name, model_digest=opened.digest)
    made = made.model_copy(update={"requested": {"repair": solved}})
    known: dict[str, Any] = {field.name: getattr(opened, field.name) for field in fields(LoadedModel)}
    shape = replace(after, name=f"{opened.name} slice")
    known |= {"model": module, "shape": shape, "name": shape.name, "digest": digest_of(module.state_dict(), shape)}
    return PrunedModel(**known | {"source": ""}, plan=made)


def evaluate(
    model: LoadedModel,
    data: Data,
    *,
    teacher: LoadedModel | None = None,
    bank: Data | None = None,
    images: int | None = None,
    seed: int = 0,
    batch_size: int = 100,
    root: str | None = None,
) -> Evaluation:
    """Top-1 and top-5 in percent and the mean cross-entropy in nats, on the evaluation images of `data`.

    With a `teacher` also the mean KL(teacher || model) in nats an image; of a language model everything is by token.
    Of a model without a classifier, top-1 is that of k-NN among the training images of `bank` (None: of `data`), NaN
    where these are not known or have no labels; the mean cosine to the teacher's features comes with the KL.
    `images` of them are drawn by `seed`; None takes all. Raises DataError where the data cannot be opened.
    """
    if teacher is not None:
        check_teacher(model.shape, teacher.shape)
    apart = model.shape.features
    test = _images(model, data, "val", root=root, apart=apart)
    among = bank if bank is not None or isinstance(data, ImageSet) else data
    known = None if among is None or not apart else _images(model, among, "train", root=root, apart=True)
    readout = readout_of(model.shape, known, test)
    chosen = None if images is None else proxy_indices(test, images, seed)
    device = next(model.model.parameters()).device
    batches = test.batches(batch_size, indices=chosen, device=device)
    original = None if teacher is None else teacher.model
    return evaluate_batches(model.model, batches, teacher=original, readout=readout)


def distill(
    student: Model,
    teacher: LoadedModel,
    data: Data,
    *,
    epochs: int,
    settings: DistillSettings | str | None = None,
    root: str | None = None,
    report: Callable[[dict[str, Any]], None] = lambda row: None,
) -> Model:
    """The student, trained on the training images of `data` with CE + alpha · KL(teacher || student) (Eq. 2).

    All sizes of an elastic student are trained at once, `settings.sizes` of them in each step.

    `settings` are a preset's name or values; None takes `repaired` for a repaired or elastic student, `language` for a
    GPT-2, else `letter`. Trains in this process on the student's device, without evaluations or checkpoints along the
    way; `python -m upvit_core distill` makes a run that has both and survives a kill. `report` receives rows of means:
    a dict with `step`, `epoch`, `loss`, `ce`, `kl`, `lr`, at most 400 of them.
    Raises RunError where the settings are unknown or the two models differ in classes or image size.
    """
    ours, theirs = student.shape, teacher.shape
    check_teacher(ours, theirs)
    if settings is None:
        made = _plan_of(student)
        repaired = isinstance(student, ElasticModel) or (made is not None and made.is_repaired)
        settings = usual_preset(ours.family, repaired=repaired)
    if isinstance(settings, str):
        if settings not in PRESETS:
            raise RunError(f"There is no preset {settings!r}; choose one of {', '.join(PRESETS)}.")
        settings = PRESETS[settings]
    images, cfg = _images(student, data, "train", root=root, apart=True), student.pretrained_cfg
    module, device = deepcopy(student.model), next(student.model.parameters()).device.type
    sizes = ElasticSizes(student.elastic, settings) if isinstance(student, ElasticModel) else None
    if settings.from_scratch:
        module = build_model(ours, seed=settings.seed, weight_init="jax")
    with frozen(teacher.model):
        run = Distillation.on_images(
            module,
            teacher.model,
            images,
            cfg,
            settings,
            epochs=epochs,
            num_classes=ours.classes or 0,
            accelerator=make_accelerator(device, settings.amp),
            sizes=sizes,
        )
        trained = train(run, report=report, after_step=lambda run: None)
    digest = digest_of(trained.state_dict(), ours)
    changes: dict[str, Any] = {"model": trained, "digest": digest}
    if isinstance(student, ElasticModel):
        changes["elastic"] = student.elastic.trained(digest, run.step)
        changes["scores"] = replace(student.scores, model_digest=digest)
    return replace(student, **changes)


def save_model(model: LoadedModel, folder: str | Path) -> None:
    """Write a folder that `load_model` opens, and stock timm too where all blocks are of one width.

    It holds `config.json`, `model.safetensors` and, of a pruned model, `plan.json`; an elastic model's record stands
    beside them. Each file is replaced as a whole.
    """
    if isinstance(model, ElasticModel):
        return save_elastic(model, folder)
    made = _plan_of(model)
    write_folder(
        model.model,
        folder,
        shape=model.shape,
        pretrained_cfg=model.pretrained_cfg,
        plan_json=None if made is None else made.to_json(),
        name=model.name,
        class_names=model.class_names,
    )


def _images(model: LoadedModel, data: Data, split: Split, **how: Any) -> ImageSet:
    return data if isinstance(data, ImageSet) else images_for(model, data, split, **how)


def _plan_of(model: LoadedModel) -> PruningPlan | None:
    """The plan that a model was cut by: its own, or the one in the folder that it was opened from."""
    if isinstance(model, PrunedModel):
        return model.plan
    beside = Path(model.source).expanduser() / "plan.json"
    return PruningPlan.load(beside) if beside.is_file() else None
