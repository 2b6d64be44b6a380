"""What has to be computed with the weights: predictions, accuracy of a plan, throughput. All of it in background jobs.

torch is imported inside the functions, so that a page is there before it.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import streamlit as st

from pages.services import folders, jobs, limits, open_model
from pages.services.open_model import OpenModel
from upvit_core.errors import DataError
from upvit_core.records.plan import PruningPlan
from upvit_core.records.task import task_of

if TYPE_CHECKING:
    from upvit_core.data import ImageSet
    from upvit_core.evaluation import Evaluation
    from upvit_core.profiling.throughput import SpeedUp
    from upvit_core.pruning.basis import ProxyStatistics

IMAGES = "images"
MOST_IMAGES = 2000
PREVIEW_IMAGES = 1000
MOST_BLOCKS = 400
CALIBRATION_IMAGES = 500
SHOWN = 8


@dataclass(frozen=True)
class ClassGuess:
    """One image, or token of a text, with what the model makes of it; `shown` is the picture as a data URI, or the text
    before the token."""

    index: int
    shown: str
    label: str
    likeliest: str
    probability: float

    @property
    def right(self) -> bool:
        return self.label == self.likeliest


@dataclass(frozen=True)
class Baseline:
    """What the model is judged by with its 95 % interval, on `images` evaluation images or tokens, and
    what it says of a few."""

    value: float
    low: float
    high: float
    images: int
    data: str
    guesses: tuple[ClassGuess, ...]


def image_spec(model: OpenModel) -> str:
    """Which images belong to what is open: those that a person chose, the demo's own, or none."""
    chosen: dict[str, str] = st.session_state.setdefault(IMAGES, {})
    return chosen[model.source] if model.source in chosen else images_of_its_own(model)


def images_of_its_own(model: OpenModel) -> str:
    """Images that come with what is open, or none."""
    shape = model.shape
    if not task_of(shape).has_pictures:
        beside = Path(model.model).expanduser() / "text.txt"
        return str(beside) if model.has_weights and beside.is_file() else ""
    fits = (shape.img_size, shape.in_chans, shape.num_classes) == ((28, 28), 1, 10)
    return "demo" if model.is_demo or fits else ""


def choose_images(model: OpenModel, spec: str) -> None:
    st.session_state.setdefault(IMAGES, {})[model.source] = spec


def images(model: OpenModel, spec: str, split: str) -> ImageSet:
    """The image set that fits the model; opened once. Raises DataError."""
    if not spec:
        raise DataError(
            "No images were chosen; give a folder of class folders, an archive of one, or a timm data set name."
        )
    limits.confine(spec)
    key = (open_model.identity(model), spec, split)
    kept = _image_sets()
    if key not in kept:
        from upvit_core.data import open_images

        live = open_model.live(model)
        kept[key] = open_images(
            spec, split, pretrained_cfg=live.pretrained_cfg, num_classes=model.shape.num_classes  # type: ignore[arg-type]
        )  # fmt: skip
        while len(kept) > 6:
            kept.popitem(last=False)
    return kept[key]


@st.cache_resource(show_spinner=False)
def _image_sets() -> OrderedDict[Any, ImageSet]:
    return OrderedDict()


@st.cache_resource(show_spinner=False)
def _teacher_logits() -> OrderedDict[Any, Any]:
    return OrderedDict()


def evaluation_indices(data: ImageSet, count: int) -> Any:
    from upvit_core.data import proxy_indices

    if hasattr(data, "tokens"):  # every token of a block has logits of its own
        count = min(count, MOST_BLOCKS)
    return proxy_indices(data, min(count, len(data)), seed=0)


def teacher_logits(model: OpenModel, spec: str, report: Callable[[Any], None], count: int) -> tuple[Any, Any]:
    """Logits (N, classes) and labels (N,) of the open model on the evaluation images, computed once."""
    key = (open_model.identity(model), spec, count)
    kept = _teacher_logits()
    if key not in kept:
        from upvit_core.evaluation import predict

        live, data = open_model.live(model), images(model, spec, "val")
        indices = evaluation_indices(data, count)
        batches = data.batches(_batch_size(model), indices=indices)
        kept[key] = predict(live.model, batches, progress=lambda done: report(done / len(indices)))
        while len(kept) > 4:
            kept.popitem(last=False)
    return kept[key]


def stored_baseline(model: OpenModel, spec: str) -> Baseline | None:
    """What an earlier visit measured of these very weights, so that nothing has to be loaded to show it."""
    try:
        values = json.loads(_look_file(model, spec).read_text(encoding="utf-8"))
        guesses = tuple(ClassGuess(**guess) for guess in values["guesses"])
        return Baseline(**{**values, "guesses": guesses})
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _look_file(model: OpenModel, spec: str) -> Path:
    name = hashlib.sha256(f"{open_model.identity(model)} {spec}".encode()).hexdigest()[:24]
    return folders.looks() / f"{name}.json"


def measure_baseline(model: OpenModel, spec: str) -> jobs.Job:
    """The job that evaluates the open model and shows what it makes of a few images."""

    def work(report: jobs.Report) -> Baseline:
        from upvit_core.evaluation import score_logits

        report.say("reading the weights")
        live, data = open_model.live(model), images(model, spec, "val")
        task = task_of(model.shape)
        report.say(f"{len(evaluation_indices(data, MOST_IMAGES)):,} {task.batch_items} of {data.name}")
        logits, labels = teacher_logits(model, spec, report, MOST_IMAGES)
        indices = evaluation_indices(data, MOST_IMAGES)
        probabilities = logits.softmax(-1)
        names, answers = live.class_names or data.answer_names, model.shape.answers
        guesses, seen = [], set()
        for number, index in enumerate(indices, start=1):
            position = number * answers - 1
            label = int(labels[position])
            if label in seen and len(seen) < min(SHOWN, len(names)):
                continue
            seen.add(label)
            best = int(probabilities[position].argmax())
            place = int(index), answers - 1
            shown = data_uri(data.image(place[0])) if task.has_pictures else data.passage(*place)
            told = names[label], names[best], float(probabilities[position, best])
            guesses.append(ClassGuess(int(index), shown, *told))
            if len(guesses) == SHOWN:
                break
        result = score_logits(logits, labels)
        look = Baseline(task.value(result), *task.interval(result), result.images, data.name, tuple(guesses))
        temporary = _look_file(model, spec).with_suffix(f".{threading.get_ident()}.part")
        temporary.write_text(json.dumps(asdict(look)), encoding="utf-8")
        temporary.replace(_look_file(model, spec))
        return look

    key = baseline_key(model, spec)
    if jobs.find(key) is None and (known := stored_baseline(model, spec)) is not None:
        return jobs.submit_done(key, "Looking at test images", known)
    return jobs.start(key, work, "Looking at test images")


def baseline_key(model: OpenModel, spec: str) -> str:
    return f"look {open_model.identity(model)} {spec}"


def statistics(model: OpenModel, spec: str, report: Callable[[Any], None]) -> ProxyStatistics:
    """Second moments of the open model on its calibration images, gathered once."""
    key, kept = (open_model.identity(model), spec, CALIBRATION_IMAGES), _statistics()
    if key not in kept:
        from upvit_core.data import draw_proxy
        from upvit_core.models.build import adapt
        from upvit_core.pruning.basis import collect_statistics

        live, data = open_model.live(model), images(model, spec, "train")
        proxy = draw_proxy(data, min(CALIBRATION_IMAGES, len(data)), 0)
        kept.clear()
        kept[key] = collect_statistics(adapt(live.model, live.shape), proxy, report=report)
    return kept[key]


@st.cache_resource(show_spinner=False)
def _statistics() -> dict[Any, ProxyStatistics]:
    return {}


def preview(model: OpenModel, plan: PruningPlan, spec: str, *, repair: bool = False) -> jobs.Job:
    """The job that cuts, mends where asked, and measures top-1 and KL to the open model, without any training."""

    def work(report: jobs.Report) -> Evaluation:
        report.say("pruning" + (" and repairing" if repair else ""))
        return evaluate_plan(model, plan, spec, report, repair=repair)

    return jobs.start(preview_key(model, plan, spec, repair=repair), work, "Measuring this plan")


def evaluate_plan(
    model: OpenModel, plan: PruningPlan, spec: str, report: Callable[[Any], None], *, repair: bool
) -> Evaluation:
    """What `preview` measures, in this thread; `report` is told shares of 1 and the library's own progress."""
    from upvit_core.evaluation import evaluate
    from upvit_core.pruning.prune import cut

    live, data = open_model.live(model), images(model, spec, "val")
    count = min(PREVIEW_IMAGES, len(data))
    logits, _ = teacher_logits(model, spec, report, PREVIEW_IMAGES)
    proxy = images(model, spec, "train") if repair or plan.basis == "directions" else None
    stats = statistics(model, spec, report) if plan.basis == "directions" else None
    thin = cut(live, plan, repair=repair, data=proxy, images=CALIBRATION_IMAGES, stats=stats, report=report)
    batches = data.batches(_batch_size(model), indices=evaluation_indices(data, count))
    return evaluate(thin, batches, teacher_logits=logits, progress=lambda done: report(done / count))


def preview_key(model: OpenModel, plan: PruningPlan, spec: str, *, repair: bool = False) -> str:
    return f"preview {open_model.identity(model)} {spec} {plan.digest}{' repaired' if repair else ''}"


def throughput(model: OpenModel, plan: PruningPlan, *, again: bool = False) -> jobs.Job:
    """The job that measures images per second of the open model's shape and of the plan's, in turns.

    Weights do not matter for speed, so shapes alone are enough.
    """

    def work(report: jobs.Report) -> SpeedUp:
        import torch

        from upvit_core.models.checkpoint import build_model
        from upvit_core.models.gpt2 import random_inputs
        from upvit_core.profiling.throughput import compare

        report.say("building both models")
        device = "cuda" if torch.cuda.is_available() else "cpu"
        first, second = (build_model(shape).to(device) for shape in (plan.shape_before, plan.shape_after))
        shape = plan.shape_before
        batch = throughput_batch(plan)
        pixels = random_inputs(shape, batch).to(device)
        report.say(f"batches of {batch}, the models take turns")
        return compare(first, second, pixels, seconds=20, progress=lambda done, total: report(done / total))

    return jobs.start(throughput_key(plan), work, "Measuring throughput", again=again)


def throughput_key(plan: PruningPlan) -> str:
    return f"throughput {plan.shape_before} {plan.shape_after}"


def throughput_batch(plan: PruningPlan) -> int:
    return 32 if plan.shape_before.img_size[0] < 100 else 8


def data_uri(image: Any) -> str:
    """A PIL image as PNG, to be shown inline."""
    if max(image.size) > 224:
        image = image.copy()
        image.thumbnail((224, 224))
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()


def _batch_size(model: OpenModel) -> int:
    return 250 if model.shape.img_size[0] < 100 else 16


AUTOMATIC_MACS = 2e8  # previews of models up to this size run by themselves
