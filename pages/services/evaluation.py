"""Everything computed with the weights, in background jobs: predictions, accuracy of a plan, throughput.

torch is imported inside the functions, so that a page is there before it.
"""

from __future__ import annotations

import base64
import io
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import streamlit as st

from pages.services import compute, folders, jobs
from pages.services.open_model import OpenModel
from pages.services.session import session
from upvit_core.cache import Cache
from upvit_core.files import digest
from upvit_core.profiling.macs import count_macs
from upvit_core.records.by_class import ByClass, by_class, class_name
from upvit_core.records.plan import PruningPlan

if TYPE_CHECKING:
    from PIL import Image
    from torch import nn

    from upvit_core.data import ImageSet, ProxySet
    from upvit_core.evaluation import Evaluation, Outcomes, Readout, TeacherPass
    from upvit_core.profiling.throughput import SpeedUp
    from upvit_core.pruning.basis import ProxyStatistics

AUTOMATIC_MACS = 2e8  # models up to this size are measured without being asked
EVALUATION_IMAGES = 1000
SPEED_SECONDS = 2.0  # of timing a small model and a plan of it
MOST_BLOCKS = 400
CALIBRATION_IMAGES = 500
SHOWN = 8
CHANGED = 12
Listener = Callable[[jobs.Progress | float], None]


@dataclass(frozen=True)
class ClassGuess:
    """One image, or token of a text, with what the model makes of it, right or not; `shown` is the picture as a data
    URI, or the text before the token."""

    index: int
    shown: str
    label: str
    likeliest: str
    probability: float
    right: bool


@dataclass(frozen=True)
class ChangedAnswer:
    """An image that the plan answers otherwise than the original: both answers, and which of the two is right."""

    shown: str
    label: str
    before: str
    after: str
    now_right: bool


@dataclass(frozen=True)
class Changes:
    """The answers that a plan changes, class by class, with class names and a few of the images."""

    by_class: ByClass
    names: tuple[str, ...]
    examples: tuple[ChangedAnswer, ...]


@dataclass(frozen=True)
class Baseline:
    """The model's accuracy (or perplexity) with its 95 % interval, on `images` evaluation images or tokens, and
    what it says of a few; `notes` say how labels and images were found, `doubt` that the value is hardly true."""

    value: float
    low: float
    high: float
    images: int
    data: str
    guesses: tuple[ClassGuess, ...]
    notes: str = ""
    doubt: str = ""


def measures_at_once(model: OpenModel) -> bool:
    """True if the model is so small that it is measured without being asked."""
    return count_macs(model.shape) <= AUTOMATIC_MACS


@st.cache_resource(show_spinner=False)
def _teacher_passes() -> Cache[TeacherPass]:
    return Cache(4)


@st.cache_resource(show_spinner=False)
def _changes() -> Cache[Changes]:
    return Cache(100)


@st.cache_resource(show_spinner=False)
def _thin_models() -> Cache[nn.Module]:
    return Cache(2)  # a plan, and the same plan with or without repair


@st.cache_resource(show_spinner=False)
def _statistics() -> Cache[ProxyStatistics]:
    return Cache(1)


def evaluation_indices(data: ImageSet, count: int = 0) -> np.ndarray:
    """The images, or blocks of a text, on which everything is evaluated, the same ones each time; or fewer of them."""
    from upvit_core.data import proxy_indices
    from upvit_core.data.text import TokenSet

    count = count or EVALUATION_IMAGES
    if isinstance(data, TokenSet):  # every token of a block has logits of its own
        count = min(count, MOST_BLOCKS)
    return proxy_indices(data, min(count, len(data)), seed=0)


def readout(model: OpenModel) -> Readout:
    """The way in which the open model's outputs are judged."""
    from upvit_core.evaluation import readout_of

    train = model.images("train", labelled=True, apart=True) if model.shape.features else None
    return readout_of(model.shape, train, model.images("val"))


def teacher_pass(model: OpenModel, report: Listener) -> TeacherPass:
    """The open model's outcomes on the evaluation images, computed once; its logits with them where they are few."""
    data = model.images("val")
    indices = evaluation_indices(data)

    def run() -> TeacherPass:
        from upvit_core.evaluation import run_teacher

        batches = data.batches(_batch_size(model), indices=indices)
        return run_teacher(
            model.weights().model, batches, progress=lambda done: report(done / len(indices)), readout=readout(model)
        )

    return _teacher_passes().get((model.data_key, len(indices)), run)


def stored_baseline(model: OpenModel) -> Baseline | None:
    """The baseline that an earlier visit measured of the same weights, so that nothing has to be loaded to show it."""
    try:
        values = json.loads(_baseline_file(model).read_text(encoding="utf-8"))
        guesses = tuple(ClassGuess(**guess) for guess in values["guesses"])
        return Baseline(**{**values, "guesses": guesses})
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _baseline_file(model: OpenModel) -> Path:
    name = digest(model.data_key, 24)
    return folders.looks() / f"{name}.json"


def measure_baseline(model: OpenModel) -> jobs.Job[Baseline]:
    """The job that evaluates the open model, with its guesses on a few images; it runs once for each set of weights."""

    def work(report: jobs.Report) -> Baseline:
        from upvit_core.evaluation import doubt

        report.step("reading the weights")
        data, task = model.images("val"), model.task
        report.step(f"{len(evaluation_indices(data)):,} {task.batch_items} of {data.name}")
        result = teacher_pass(model, report).outcomes.summary()
        guesses = tuple(_guesses(model, data))
        notes = " ".join(filter(None, (data.notes, readout(model).told)))
        found = task.value(result), *task.interval(result), result.images, data.name, guesses, notes
        baseline = Baseline(*found, doubt(model.weights(), result))
        temporary = _baseline_file(model).with_suffix(f".{threading.get_ident()}.part")
        temporary.write_text(json.dumps(asdict(baseline)), encoding="utf-8")
        temporary.replace(_baseline_file(model))
        return baseline

    key, title = baseline_key(model), "Looking at test images"
    if jobs.find(key) is None and (known := stored_baseline(model)) is not None:
        return jobs.submit_done(key, title, known)
    return jobs.ensure(key, work, title)


def _guesses(model: OpenModel, data: ImageSet) -> Iterator[ClassGuess]:
    """The model's guesses on the first images of different classes, or at the ends of the first blocks of a text."""
    from upvit_core.data.text import TokenSet
    from upvit_core.models.predict import predict

    live, last = model.weights(), model.shape.answers - 1
    names = live.class_names or data.answer_names
    judged = readout(model)
    if len(names) < 2:
        return
    probabilities = judged.voter(live.model)
    seen: set[int] = set()
    shown = 0
    for index in data.readable(evaluation_indices(data)).tolist():
        label = int(data.answers([index])[last])
        if label in seen and len(seen) < min(SHOWN, len(names)):
            continue
        seen.add(label)
        outputs, _ = predict(live.model, data.batches(1, indices=[index]))
        probability, likeliest = probabilities(outputs[last:])[0].max(-1)
        picture = data.passage(index, last) if isinstance(data, TokenSet) else data_uri(data.image(index))
        truth, right = data.answer_names[label], int(likeliest) == label
        yield ClassGuess(index, picture, truth, names[int(likeliest)], float(probability), right)
        shown += 1
        if shown == SHOWN:
            return


def baseline_key(model: OpenModel) -> str:
    return f"baseline {model.data_key}"


def statistics(model: OpenModel, report: Listener) -> ProxyStatistics:
    """Second moments of the open model on its calibration images, computed once."""

    def collect() -> ProxyStatistics:
        from upvit_core.models.build import adapt
        from upvit_core.pruning.basis import collect_statistics

        live = model.weights()
        return collect_statistics(adapt(live.model, live.shape), calibration_set(model), report=report)

    device = compute.device(model.device)
    return _statistics().get((model.data_key, CALIBRATION_IMAGES, device), collect)


def calibration_set(model: OpenModel) -> ProxySet:
    """The training images from which statistics are computed."""
    from upvit_core.data import draw_proxy

    data = model.images("train", apart=True)
    return draw_proxy(data, min(CALIBRATION_IMAGES, len(data)), 0)


def preview(model: OpenModel, plan: PruningPlan, *, repair: bool = False) -> jobs.Job[Evaluation]:
    """The job that prunes, repairs if asked, and measures the result against the open model, without training."""

    def work(report: jobs.Report) -> Evaluation:
        report.step("pruning" + (" and repairing" if repair else ""))
        return evaluate_plan(model, plan, report, repair=repair)

    return jobs.ensure(preview_key(model, plan, repair=repair), work, "Measuring this plan")


def thin_model(model: OpenModel, plan: PruningPlan, report: Listener, *, repair: bool) -> nn.Module:
    """The model cut by a plan; the latest ones stay in memory."""

    def make() -> nn.Module:
        from upvit_core.pruning.prune import cut

        proxy = model.images("train", apart=True) if repair or plan.basis == "directions" else None
        stats = statistics(model, report) if plan.basis == "directions" else None
        return cut(
            model.weights(), plan, repair=repair, data=proxy, images=CALIBRATION_IMAGES, stats=stats, report=report
        )

    return _thin_models().get((model.data_key, plan.digest, repair, compute.device(model.device)), make)


def evaluate_plan(model: OpenModel, plan: PruningPlan, report: Listener, *, repair: bool) -> Evaluation:
    """Prune, repair if asked, and evaluate, in this thread; `report` receives shares and the library's progress."""
    from upvit_core.evaluation import sample_outcomes

    live, data = model.weights(), model.images("val")
    teacher = teacher_pass(model, report)
    thin = thin_model(model, plan, report, repair=repair)
    indices = evaluation_indices(data)
    batches = data.batches(_batch_size(model), indices=indices)
    outcomes = sample_outcomes(
        thin,
        batches,
        teacher=live.model,
        teacher_logits=teacher.logits,
        progress=lambda done: report(done / len(indices)),
        readout=readout(model),
    )
    if model.task.has_pictures and not outcomes.top1.isnan().any():
        _changes().put((model.data_key, plan.digest, repair), _changed(model, data, teacher.outcomes, outcomes))
    return outcomes.summary()


def changes(model: OpenModel, plan: PruningPlan, *, repair: bool) -> Changes | None:
    """The answers that a measured plan changes; None where it is not measured."""
    return _changes().find((model.data_key, plan.digest, repair))


def _changed(model: OpenModel, data: ImageSet, was: Outcomes, now: Outcomes) -> Changes:
    """The change of every class, and up to CHANGED images: those that it loses first, by how far the answer moved."""
    labels, before, after = (column.numpy() for column in (now.labels, was.answers, now.answers))
    found, kl = by_class(labels, before, after), now.kl
    order = np.zeros(len(labels)) if kl is None else kl.numpy()
    lost = sorted(found.lost, key=lambda i: -order[i])
    chosen = [*lost[:3], *found.won[:1], *lost[3:], *found.won[1:]][:CHANGED]
    names, indices = model.weights().class_names or data.answer_names, data.readable(evaluation_indices(data))

    def answer(i: int) -> ChangedAnswer:
        label, first, second = (class_name(names, int(column[i])) for column in (labels, before, after))
        return ChangedAnswer(data_uri(data.image(int(indices[i]))), label, first, second, bool(after[i] == labels[i]))

    return Changes(found, tuple(names), tuple(map(answer, chosen)))


def preview_key(model: OpenModel, plan: PruningPlan, *, repair: bool = False) -> str:
    return f"preview {model.data_key} {plan.digest}{' repaired' if repair else ''}"


def throughput(plan: PruningPlan, *, again: bool = False) -> jobs.Job[SpeedUp]:
    """The job that measures the throughput of the plan's shape against the original's, in turns.

    Weights do not matter for speed, so shapes alone are enough.
    """
    chosen = session().device

    def work(report: jobs.Report) -> SpeedUp:
        from upvit_core.models.checkpoint import build_model
        from upvit_core.models.gpt2 import random_inputs
        from upvit_core.profiling.throughput import compare, usual_dtype

        report.step("building both models")
        device = compute.device(chosen)
        first, second = (build_model(shape).to(device) for shape in (plan.shape_before, plan.shape_after))
        on_gpu = device != "cpu"
        batch = plan.shape_before.batch_size(128 if on_gpu else 32, large=128 if on_gpu else 8)
        pixels = random_inputs(plan.shape_before, batch).to(device)
        report.step(f"batches of {batch}, the models take turns")
        seconds = SPEED_SECONDS if plan.shape_before.is_small else 20
        told = lambda done, total: report(done / total)  # noqa: E731
        return compare(first, second, pixels, dtype=usual_dtype(device), repeats=60, seconds=seconds, progress=told)

    key, title = throughput_key(plan), "Timing both models"
    return jobs.start(key, work, title, again=True) if again else jobs.ensure(key, work, title)


def throughput_key(plan: PruningPlan) -> str:
    return f"throughput {plan.shape_before} {plan.shape_after}"


def data_uri(image: Image.Image) -> str:
    """A PIL image as PNG, to be shown inline."""
    if max(image.size) > 224:
        image = image.copy()
        image.thumbnail((224, 224))
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()


def _batch_size(model: OpenModel) -> int:
    return model.shape.batch_size(250, large=16)
