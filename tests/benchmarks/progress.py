"""Whether scoring says truly how long it still takes, and how soon it obeys a cancel.

python -m tests.benchmarks.progress left --images 48      exact scores of the demo: time left against what it took
python -m tests.benchmarks.progress cancel --seconds 60   DeiT-B's size: the longest time without a chance to stop

Seconds are CPU seconds of one thread, so that other work does not count.
"""

from __future__ import annotations

import argparse
import time
from itertools import pairwise
from pathlib import Path

import torch

from tests.benchmarks.report import publish
from tests.support.tiny import TensorProxy
from upvit_core.data import draw_proxy, open_images
from upvit_core.errors import Cancelled
from upvit_core.importance.criterion import Clock, Criterion, Progress
from upvit_core.importance.fisher import Fisher
from upvit_core.importance.kl import KL
from upvit_core.models.build import adapt, build_model
from upvit_core.models.checkpoint import load_model
from upvit_core.records.shape import deit_shape

AFTER = (10.0, 30.0, 60.0, 90.0)


def left(images: int, out: Path | None) -> None:
    loaded = load_model("demo")
    proxy = draw_proxy(open_images("demo", "train", pretrained_cfg=loaded.pretrained_cfg), images, 0)
    seen: list[tuple[float, float]] = []
    began = time.process_time()

    def report(progress: Progress) -> None:
        if progress.seconds_left is not None:
            seen.append((time.process_time() - began, progress.seconds_left))

    KL().attribute(adapt(loaded.model, loaded.shape), proxy, report)
    took = time.process_time() - began
    rows = []
    for moment in (after for after in AFTER if after < 0.95 * took):
        at, told = next((at, told) for at, told in seen if at >= moment)
        worst = max(abs(told / (took - at) - 1) for at, told in seen if moment <= at < 0.95 * took)
        error = told / (took - at) - 1
        rows.append({"after s": at, "told s left": told, "were left": took - at, "error": f"{error:+.0%}",
                     "worst from there to 95 %": f"{worst:.0%}"})  # fmt: skip
    publish("time left of exact scores", rows, out, images=images, took=round(took, 1))


def cancel(seconds: float, out: Path | None) -> None:
    shape = deit_shape("base")
    adapter = adapt(build_model(shape, seed=0).eval(), shape)
    proxy = TensorProxy(torch.randn(32, 3, 224, 224, generator=torch.Generator().manual_seed(0)))
    rows = []
    for name, criterion in (("kl", KL()), ("fisher S=2", Fisher())):
        marks = [time.process_time()]
        end = marks[0] + seconds

        def report(progress: Progress, marks: list[float] = marks, end: float = end) -> None:
            marks.append(time.process_time())
            if marks[-1] > end:
                raise Cancelled("enough")

        _until_cancelled(criterion, adapter, proxy, report)
        gaps = [b - a for a, b in pairwise(marks[1:])]
        rows.append({"criterion": name, "reports": len(marks) - 1, "first after s": marks[1] - marks[0],
                     "longest gap s": max(gaps), "mean gap s": sum(gaps) / len(gaps)})  # fmt: skip
    publish("chances to stop at DeiT-B's size", rows, out)


def _until_cancelled(criterion: Criterion, adapter: object, proxy: object, report: object) -> None:
    try:
        criterion.attribute(adapter, proxy, report)  # type: ignore[arg-type]
    except Cancelled:
        return


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["left", "cancel"])
    parser.add_argument("--images", type=int, default=48)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    assert Clock.__init__.__kwdefaults__ is not None
    Clock.__init__.__kwdefaults__["now"] = time.process_time
    left(arguments.images, arguments.out) if arguments.what == "left" else cancel(arguments.seconds, arguments.out)


if __name__ == "__main__":
    main()
