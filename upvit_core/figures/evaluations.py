"""Evaluations of a run that belong into one line: those on the same test images.

Along the way a run may look at a choice of the test images (`eval_images`), and at its end at all of them too. The two
are different measurements: they are drawn apart.
"""

from collections.abc import Iterable, Mapping
from typing import Any

EVALUATED = ("surgery", "start", "eval", "final")
Row = Mapping[str, Any]


def has_numbers(row: Row, *names: str) -> bool:
    return all(isinstance(row.get(name), (int, float)) for name in names)


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

    def add(self, rows: Iterable[Row]) -> None:
        for row in rows:
            phase = row.get("phase")
            if phase == "train" and has_numbers(row, "step"):
                self.train.append(row)
            elif phase == "teacher" and has_numbers(row, "top1"):
                self.teacher, self.marks = row, self.marks + 1
            elif phase in EVALUATED and has_numbers(row, "step", "top1"):
                if not self.evals or row.get("images") == self.evals[0].get("images"):
                    self.evals.append(row)
                elif phase == "final":
                    self.whole, self.marks = row, self.marks + 1


def counted(sizes: set[int], what: str) -> str:
    """` of 400 test images`, ` of 400 or 3,000 test images`; nothing where it is not known."""
    return f" of {' or '.join(f'{size:,}' for size in sorted(sizes))} test {what}" if sizes else ""
