"""Timings of what the pages ask of the library, without a server."""

import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Annotated, ParamSpec, TypeVar

import torch
import typer

from tests.benchmarks.report import publish
from tests.support import made_runs
from tests.support.tiny import TensorProxy
from upvit_core.data import draw_proxy, open_images, proxy_indices
from upvit_core.errors import Cancelled
from upvit_core.evaluation import evaluate, predict
from upvit_core.importance.criterion import Clock, Progress
from upvit_core.importance.fisher import Fisher
from upvit_core.importance.kl import KL
from upvit_core.models.build import adapt, build_model
from upvit_core.models.checkpoint import load_model
from upvit_core.paths import DEMO_FOLDER
from upvit_core.planning.ratios import Ratios, plan_uniform
from upvit_core.profiling.macs import count_macs
from upvit_core.pruning.prune import cut
from upvit_core.records.known_shapes import deit_shape
from upvit_core.records.scores import ImportanceScores
from upvit_core.runs import RunStore
from upvit_core.training.distillation import Distillation, isolated_rng, make_accelerator
from upvit_core.training.settings import PRESETS
from upvit_core.training.teacher_cache import TeacherStore

app = typer.Typer()
P = ParamSpec("P")
T = TypeVar("T")
Out = Annotated[Path | None, typer.Option(help="JSON file of the rows")]
Threads = Annotated[int | None, typer.Option(help="default: as torch chooses")]
PARTS = ("teacher", "student forward", "backward", "optimiser")
MOMENTS = (10.0, 30.0, 60.0, 90.0)  # seconds


@app.command()
def previews(
    images: int = 1000,
    plans: Annotated[int, typer.Option(help="of each ratio")] = 5,
    threads: Threads = None,
    out: Out = None,
) -> None:
    """Cut and evaluate plans of the demo that differ, with the teacher's logits at hand, as on Trade-off."""
    torch.set_num_threads(threads or torch.get_num_threads())
    scores, loaded = ImportanceScores.load(DEMO_FOLDER / "scores.safetensors"), load_model("demo")
    data = open_images("demo", "val", pretrained_cfg=loaded.pretrained_cfg)
    indices = proxy_indices(data, images, 0)
    teacher, _ = predict(loaded.model, data.batches(250, indices=indices))
    rows, slowest = [], 0.0
    for ratio in (0.0, 0.1, 0.25, 0.5, 0.75):
        wall, used = [], []
        for number in range(plans):
            plan = plan_uniform(scores, Ratios(ratio, ratio, ratio + 0.01 * number), snap=True)
            began, cpu = time.perf_counter(), time.process_time()
            evaluate(cut(loaded, plan), data.batches(250, indices=indices), teacher_logits=teacher)
            wall.append(time.perf_counter() - began)
            used.append(time.process_time() - cpu)
        share, slowest = count_macs(plan.shape_after) / count_macs(loaded.shape), max(slowest, *wall)
        seconds = {"median s": statistics.median(wall), "slowest s": max(wall), "CPU s": statistics.median(used)}
        rows.append({"removed": f"{ratio:.0%}", "MACs left": f"{share:.0%}", **seconds})
    publish("preview of a plan on the demo", rows, out, images=images, slowest_s=round(slowest, 2))


class Stopwatch:
    """Seconds spent in calls, by name."""

    def __init__(self) -> None:
        self.spent: dict[str, float] = defaultdict(float)

    def timed(self, name: str, call: Callable[P, T]) -> Callable[P, T]:
        def wrapped(*args: P.args, **kwargs: P.kwargs) -> T:
            began = time.perf_counter()
            try:
                return call(*args, **kwargs)
            finally:
                self.spent[name] += time.perf_counter() - began

        return wrapped


def demo_job(watch: Stopwatch, store: TeacherStore | None) -> Distillation:
    """Distillation of the demo at 50 % of every component and half the heads, its parts timed."""
    loaded = load_model("demo")
    scores = ImportanceScores.load(DEMO_FOLDER / "scores.safetensors")
    plan = plan_uniform(scores, Ratios.equal(0.5), heads=3)
    train = open_images("demo", "train", pretrained_cfg=loaded.pretrained_cfg, num_classes=10)
    accelerator, cfg = make_accelerator("cpu", "no"), loaded.pretrained_cfg
    about = {"epochs": 4, "num_classes": 10, "accelerator": accelerator}
    job = Distillation.on_images(cut(loaded, plan), loaded.model, train, cfg, PRESETS["demo"], **about)
    job.store = store
    assert job.teacher is not None
    job.teacher.forward = watch.timed("teacher", job.teacher.forward)  # type: ignore[method-assign]
    job.model.forward = watch.timed("student forward", job.model.forward)  # type: ignore[method-assign]
    accelerator.backward = watch.timed("backward", accelerator.backward)  # type: ignore[method-assign]
    job.optimizer.step = watch.timed("optimiser", job.optimizer.step)  # type: ignore[method-assign]
    return job


@app.command()
def step(steps: int = 60, threads: Threads = None, out: Out = None) -> None:
    """A training step that asks the teacher, one that stores its logits, and one that reads them, in turns.

    "rest" is loading, augmentation, mixing, loss, averaging and logging.
    """
    torch.set_num_threads(threads or torch.get_num_threads())
    with tempfile.TemporaryDirectory() as folder, isolated_rng():
        path = Path(folder) / "answers.bin"
        stores = [None, *(TeacherStore(path, images=64, classes=10, k=10) for _ in range(2))]
        names = ("asks the teacher", "stores its logits", "reads them")
        watches = {name: Stopwatch() for name in names}
        jobs = {name: demo_job(watches[name], store) for name, store in zip(names, stores, strict=True)}
        batches = {name: job.batches.epoch(0) for name, job in jobs.items()}
        seconds: dict[str, list[float]] = defaultdict(list)
        for number in range(steps + 3):
            for name, job in jobs.items():
                if number == 3:
                    watches[name].spent.clear()
                    seconds[name].clear()
                began = time.perf_counter()
                job.train_step(*next(batches[name]))
                if job.step % job.log_every == 0:
                    job.take_row()
                seconds[name].append(time.perf_counter() - began)
    rows, plain = [], statistics.median(seconds[names[0]])
    for name in names:
        total, typical = sum(seconds[name]), statistics.median(seconds[name])
        shares = {f"{part} %": 100 * watches[name].spent[part] / total for part in PARTS}
        paces = {"ms a step": 1000 * typical, "times as fast": plain / typical}
        rows.append({"run": name, **paces, **shares, "rest %": 100 - sum(shares.values())})
    weights = [list(job.student.parameters()) for job in jobs.values()]
    same = all(torch.equal(a, b) for other in weights[1:] for a, b in zip(weights[0], other, strict=True))
    publish("a training step", rows, out, steps=steps, batch_size=64, same_weights=same)


@app.command()
def run_list(runs: int = 300) -> None:
    """Processor time of listing runs with DeiT-B's plans: from the folders alone, and through the index."""

    def milliseconds(work: Callable[[], object]) -> float:
        began = time.process_time()
        work()
        return 1000 * (time.process_time() - began)

    made_runs.SHAPE = deit_shape("base")
    with tempfile.TemporaryDirectory() as folder:
        store = RunStore(Path(folder) / "runs")
        for number in range(runs):
            made_runs.made_run(store, 0.25 + 0.3 * number / runs, heads=6, evaluations=10, steps=20)
        time.sleep(0.2)
        store.index.forget()
        built = milliseconds(store.list)
        again = statistics.median(milliseconds(RunStore(store.root).list) for _ in range(10))
    print(f"{runs} runs: index built from the folders {built:.0f} ms, then a list {again:.0f} ms")


def use_processor_time() -> None:
    """One thread, and the criteria's clock counts its processor time, so that other work does not count."""
    torch.set_num_threads(1)
    assert Clock.__init__.__kwdefaults__ is not None
    Clock.__init__.__kwdefaults__["now"] = time.process_time


@app.command()
def time_left(images: int = 48, out: Out = None) -> None:
    """The time left that exact scoring of the demo reports, against what it took."""
    use_processor_time()
    loaded = load_model("demo")
    proxy = draw_proxy(open_images("demo", "train", pretrained_cfg=loaded.pretrained_cfg), images, 0)
    reports: list[tuple[float, float]] = []
    began = time.process_time()

    def report(progress: Progress) -> None:
        if progress.seconds_left is not None:
            reports.append((time.process_time() - began, progress.seconds_left))

    KL().attribute(adapt(loaded.model, loaded.shape), proxy, report)
    took = time.process_time() - began
    rows = []
    for moment in (moment for moment in MOMENTS if moment < 0.95 * took):
        later = [(at, left, left / (took - at) - 1) for at, left in reports if moment <= at < 0.95 * took]
        at, left, error = later[0]
        worst = f"{max(abs(error) for _, _, error in later):.0%}"
        rows.append(
            {
                "after s": at,
                "reported s left": left,
                "were left": took - at,
                "error": f"{error:+.0%}",
                "worst from there to 95 %": worst,
            }
        )
    if not rows:
        raise typer.BadParameter(f"scoring took {took:.1f} s, less than {MOMENTS[0]:g} s; give more --images")
    publish("time left of exact scores", rows, out, images=images, took=round(took, 1))


@app.command()
def cancel(seconds: float = 60.0, out: Out = None) -> None:
    """The longest time in which scoring at DeiT-B's size does not look whether it is cancelled."""
    use_processor_time()
    shape = deit_shape("base")
    adapter = adapt(build_model(shape, seed=0).eval(), shape)
    proxy = TensorProxy(torch.randn(32, 3, 224, 224, generator=torch.Generator().manual_seed(0)))
    rows = []
    for name, criterion in (("kl", KL()), ("fisher S=2", Fisher())):
        marks = [time.process_time()]

        def report(progress: Progress, marks: list[float] = marks) -> None:
            marks.append(time.process_time())
            if marks[-1] > marks[0] + seconds:
                raise Cancelled("enough")

        with suppress(Cancelled):
            criterion.attribute(adapter, proxy, report)
        gaps = [b - a for a, b in pairwise(marks[1:])]
        rows.append(
            {
                "criterion": name,
                "reports": len(marks) - 1,
                "first after s": marks[1] - marks[0],
                "longest gap s": max(gaps, default=0.0),
                "mean gap s": sum(gaps) / max(len(gaps), 1),
            }
        )
    publish("chances to stop at DeiT-B's size", rows, out)
