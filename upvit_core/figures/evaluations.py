"""Evaluations of a run that belong into one line: those on the same test images.

Along the way a run may look at a choice of the test images (`eval_images`), and at its end at all of them too. The two
are different measurements: they are drawn apart.
"""

from collections.abc import Iterable, Mapping
from itertools import pairwise
from math import inf
from typing import Any

EVALUATED = ("surgery", "start", "eval", "final")
MEASURED = ("top1", "cosine")
PACED = 20
Row = Mapping[str, Any]


def has_numbers(row: Row, *names: str) -> bool:
    return all(isinstance(row.get(name), (int, float)) for name in names)


def sizes_of(row: Row) -> list[tuple[float, ...]]:
    """The sizes of one evaluation of an elastic run, the whole model first; empty for other runs.

    Each: percent removed, speed in multiples of the whole model's, top-1 in percent, images/s, parameters, and KL to
    the teacher in nats. All sizes were timed together, in turns.
    """
    names = ("removed", "images_per_s", "top1", "params", "kl_teacher")
    ladder = row.get("ladder")
    sizes = [size for size in ladder if isinstance(size, dict)] if isinstance(ladder, list) else []
    found = [[float(size[name]) for name in names] for size in sizes if has_numbers(size, *names)]
    timed = [size for size in found if size[1] > 0]
    return [(100 * share, speed / timed[0][1], top1, speed, *rest) for share, speed, top1, *rest in timed]


class Points:
    """Measurements of one run so far, as they are drawn; rows are added as they are written.

    evals: the student's evaluations on the images of the first one; train: losses; teacher: its latest evaluation;
    whole: the end on all test images, where `evals` are of a part of them. marks: how often one of the last two came.
    Rows without numbers where they belong are left out.
    """

    def __init__(self, rows: Iterable[Row] = ()) -> None:
        self.evals: list[Row] = []
        self.train: list[Row] = []
        self.teacher: Row | None = None
        self.whole: Row | None = None
        self.marks = 0
        self.add(rows)

    @property
    def speedup(self) -> float | None:
        """Times the original's speed: the ratio of two that were measured in turns, once, before any training."""
        return next((row["speedup"] for row in self.evals if has_numbers(row, "speedup")), None)

    @property
    def pace(self) -> tuple[float, float] | None:
        """Images (of a text, blocks) per second, and the share of time spent waiting for data, over the latest rows."""
        rows = [row for row in self.train[-PACED:] if has_numbers(row, "seconds", "images_per_s", "waiting")]
        spans = [max(now["seconds"] - before["seconds"], 0) for before, now in pairwise(rows)]
        if not 0 < sum(spans) < inf:
            return None
        rate, waiting = (
            sum(span * row[name] for span, row in zip(spans, rows[1:], strict=True)) / sum(spans)
            for name in ("images_per_s", "waiting")
        )
        return rate, waiting

    def add(self, rows: Iterable[Row]) -> None:
        for row in rows:
            phase = row.get("phase")
            if phase == "train" and has_numbers(row, "step"):
                self.train.append(row)
            elif phase == "teacher" and has_numbers(row, "step"):
                self.teacher, self.marks = row, self.marks + 1
            elif phase in EVALUATED and has_numbers(row, "step") and any(has_numbers(row, name) for name in MEASURED):
                if not self.evals or row.get("images") == self.evals[0].get("images"):
                    self.evals.append(row)
                elif phase == "final":
                    self.whole, self.marks = row, self.marks + 1


def counted(sizes: set[int], what: str) -> str:
    """` of 400 test images`, ` of 400 or 3,000 test images`; nothing where it is not known."""
    return f" of {' or '.join(f'{size:,}' for size in sorted(sizes))} test {what}" if sizes else ""
