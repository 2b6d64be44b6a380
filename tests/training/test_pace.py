"""Images a second of training and the share of time spent waiting, against a source that is slow by a known time."""

import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest
from torch import Tensor

from tests.support.small_job import make_job
from tests.support.small_run import CFG, write_images
from upvit_core.data import open_images
from upvit_core.figures.evaluations import PACED, Points
from upvit_core.training.batches import BatchSource
from upvit_core.training.distillation import Row, distill


class Slow:
    """Batches of another source, each after a known time."""

    def __init__(self, source: BatchSource, seconds: float, workers: int | None):
        self.source, self.seconds, self.workers, self.pixels = source, seconds, workers, source.pixels

    def __len__(self) -> int:
        return len(self.source)

    def load(self, batches: Iterable[tuple[int, list[int]]]) -> Iterator[tuple[Tensor, Tensor]]:
        for batch in self.source.load(batches):
            time.sleep(self.seconds)
            yield batch


@pytest.mark.parametrize(("seconds", "workers"), [(0.0, None), (0.05, 3)])
def test_rows_tell_images_a_second_and_the_share_of_waiting(
    tmp_path: Path, seconds: float, workers: int | None
) -> None:
    images = open_images(str(write_images(tmp_path / "images")), "train", pretrained_cfg=CFG)
    job, rows = make_job(images, epochs=6), list[Row]()
    job.batches.source = Slow(job.batches.source, seconds, workers)
    spent = {"steps": 0.0, "evaluations": 0.0}

    def timed(name: str, work: Callable[..., None]) -> Callable[..., None]:
        def both(*given: object) -> None:
            began = time.perf_counter()
            work(*given)
            spent[name] += time.perf_counter() - began

        return both

    job.train_step = timed("steps", job.train_step)  # type: ignore[method-assign]
    began = time.perf_counter()
    distill(job, report=rows.append, after_step=timed("evaluations", lambda job: time.sleep(0.02)))
    took = time.perf_counter() - began - spent["evaluations"]
    each = [8 / row["images_per_s"] for row in rows]  # seconds a step
    assert len(rows) == 30
    assert 0.999 * (spent["steps"] + 30 * seconds) < sum(each) < 1.001 * took
    waited = sum(row["waiting"] * span for row, span in zip(rows, each, strict=True))
    assert 0.999 * 30 * seconds <= waited < 1.001 * (took - spent["steps"])
    assert {row.get("workers") for row in rows} == {workers}
    pace, last = Points(rows).pace, rows[-PACED + 1 :]
    assert pace is not None
    assert pace[0] == pytest.approx(8 * len(last) / (rows[-1]["seconds"] - rows[-PACED]["seconds"]), rel=0.05)
    share = sum(row["waiting"] * span for row, span in zip(last, each[-PACED + 1 :], strict=True))
    assert pace[1] == pytest.approx(share / sum(each[-PACED + 1 :]), rel=0.1, abs=5e-3)
