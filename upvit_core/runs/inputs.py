"""The inputs of a run: its student, its teacher where it has one, and the images of both splits."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from upvit_core.data import ImageSet, open_images
from upvit_core.errors import RunError
from upvit_core.importance.criterion import Report, silent
from upvit_core.models.checkpoint import LoadedModel, build_model, load_model
from upvit_core.models.images import Split, images_for
from upvit_core.models.retarget import DISTIL, FINE_TUNING, fit_head, retarget
from upvit_core.pruning.elastic import ElasticModel, make_elastic, open_elastic
from upvit_core.pruning.prune import cut_and_record
from upvit_core.records.elastic import Elastic
from upvit_core.records.plan import PruningPlan
from upvit_core.records.scores import ImportanceScores
from upvit_core.records.shape import ModelShape
from upvit_core.records.task import check_teacher, refuse_language
from upvit_core.runs.reporter import Reporter
from upvit_core.runs.spec import RunSpec

SPLITS: tuple[Split, ...] = ("train", "val")


@dataclass(frozen=True)
class Student:
    """The model to be trained, with everything that is saved beside it."""

    model: nn.Module
    shape: ModelShape
    plan_json: str | None
    pretrained_cfg: dict[str, Any]
    class_names: tuple[str, ...] | None
    elastic: Elastic | None = None
    scores: ImportanceScores | None = None


@dataclass(frozen=True)
class RunInputs:
    """The student that a run trains, its teacher (None where it has none), and its images."""

    student: Student
    teacher: nn.Module | None
    train: ImageSet
    test: ImageSet


def load_inputs(spec: RunSpec, saved: Mapping[str, Any] | None, reporter: Reporter, device: torch.device) -> RunInputs:
    """Open everything that the spec names; the student of a run that goes on from a checkpoint has only its shape."""
    return (_finetuning if spec.kind == "finetune" else _distilling)(spec, saved, reporter, device)


def build_student(spec: RunSpec, teacher: LoadedModel, report: Report = silent) -> Student:
    """Open the student's folder, or cut the teacher by the plan.

    A plan that records a fit is fitted again, to as many images drawn by the same seed.
    """
    about = teacher.pretrained_cfg, teacher.class_names
    if spec.kind == "elastic":
        made = _elastic_student(spec, teacher, report)
        return Student(made.model, made.shape, None, *about, made.elastic, made.scores)
    if spec.student is not None:
        opened = load_model(spec.student, img_size=spec.img_size)
        check_teacher(opened.shape, teacher.shape)
        return Student(opened.model, opened.shape, _plan_beside(spec.student), *about)
    plan = PruningPlan.from_json(json.dumps(spec.plan), "The plan of the run").at_size(teacher.shape.img_size)
    fitted = plan.fitted
    images, seed = (fitted.images, fitted.seed) if fitted else (spec.calibration_images, spec.settings.seed)
    model, recorded = cut_and_record(
        teacher, plan, repair=spec.repair, data=spec.data, root=spec.data_root, images=images, seed=seed, report=report
    )
    return Student(model, plan.shape_after, recorded.to_json(), *about)


def _elastic_student(spec: RunSpec, teacher: LoadedModel, report: Report) -> ElasticModel:
    """The student's elastic folder, or one made of the teacher."""
    if spec.student is None:
        images = images_for(teacher, spec.data, "train", labelled=False, apart=True, root=spec.data_root)
        return make_elastic(teacher, images, n=spec.calibration_images, seed=spec.settings.seed, report=report)
    opened = open_elastic(spec.student)
    check_teacher(opened.shape, teacher.shape)
    return opened


def _opened(
    name: str, device: torch.device | str, img_size: int | tuple[int, int] | None = None, *, needs_weights: bool = True
) -> LoadedModel:
    """The model that a spec names, resized to see images of `img_size` where that is given."""
    opened = load_model(name, device=device, img_size=img_size, pretrained=needs_weights)
    if needs_weights and not opened.has_weights:
        raise RunError(f"{name} has no trained weights to learn from; choose a trained model.")
    return opened


def _distilling(spec: RunSpec, saved: Mapping[str, Any] | None, reporter: Reporter, device: torch.device) -> RunInputs:
    reporter.stage("loading the teacher")
    teacher = _opened(spec.teacher, device, spec.img_size)
    if spec.img_size is None and spec.student is not None:
        own, wanted = teacher.shape.img_size, load_model(spec.student).shape.img_size
        if own != wanted:
            sides = [f"{height} by {width}" for height, width in (own, wanted)]
            reporter.note(f"The teacher was made for images of {sides[0]} and reads the student's, of {sides[1]}.")
            teacher = _opened(spec.teacher, device, wanted)
    reporter.stage("opening the data")
    train, test = _both_splits(spec, teacher, reporter)
    if saved is None:
        reporter.stage("cutting the student")
        student = build_student(spec, teacher, lambda progress: reporter.check())
    else:
        shape = ModelShape.from_dict(saved["shape"])
        elastic = Elastic.load(reporter.run.folder) if spec.kind == "elastic" else None
        about = saved["plan_json"], teacher.pretrained_cfg, teacher.class_names
        student = Student(build_model(shape), shape, *about, elastic)
    return RunInputs(student, teacher.model, train, test)


def _finetuning(spec: RunSpec, saved: Mapping[str, Any] | None, reporter: Reporter, device: torch.device) -> RunInputs:
    """The student with a head for the images' classes; on going on, its weights are replaced by the checkpoint's."""
    assert spec.student is not None
    reporter.stage("loading the model")
    model = _opened(spec.student, device, needs_weights=not spec.settings.from_scratch)
    refuse_language(model.shape, FINE_TUNING, DISTIL)
    reporter.stage("opening the data")
    classes = _classes_of(spec, saved)
    fit = fit_head(model, classes, spec.head)
    if fit.rows is not None and sorted(fit.rows) == list(range(model.shape.num_classes)) and saved is None:
        classes = model.class_names or classes  # the same ones: their order in the model stays
    if saved is None and not spec.settings.from_scratch:
        reporter.note(fit.told)
    fitted = retarget(
        model, classes, head=spec.head, in_chans=spec.in_chans, img_size=spec.img_size, seed=spec.settings.seed
    )
    train, test = _both_splits(spec, fitted, reporter)
    student = Student(fitted.model, fitted.shape, _plan_beside(spec.student), fitted.pretrained_cfg, classes)
    return RunInputs(student, None, train, test)


def _classes_of(spec: RunSpec, saved: Mapping[str, Any] | None) -> tuple[str, ...]:
    """The classes of a fine-tuning run in the order of its outputs: those of its images, or those that it began with.

    Runs of earlier versions did not save them; their order was that of the sorted names.
    """
    if saved is not None and "class_names" in saved:
        return tuple(saved["class_names"])
    plain: dict[str, Any] = {"input_size": (3, 32, 32)}
    classes = open_images(spec.data, "train", pretrained_cfg=plain, apart=True, root=spec.data_root).class_names
    return classes if saved is None else tuple(sorted(classes))


def _both_splits(spec: RunSpec, model: LoadedModel, reporter: Reporter) -> tuple[ImageSet, ImageSet]:
    """Training and test images, none of them both, with the model's labels; the run's note says how they were got."""
    train, test = (images_for(model, spec.data, split, apart=True, root=spec.data_root) for split in SPLITS)
    for told in dict.fromkeys(filter(None, (train.told, test.told))):
        reporter.note(told)
    return train, test


def _plan_beside(folder: str) -> str | None:
    plan = Path(folder) / "plan.json"
    return PruningPlan.load(plan).to_json() if plan.is_file() else None
