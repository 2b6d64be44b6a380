"""Evaluations of a run that belong into one line: those on the same test images.

Along the way a run may look at a choice of the test images (`eval_images`), and at its end at all of them too. The two
are different measurements: they are drawn apart.
"""

from collections.abc import Mapping, Sequence
from typing import Any

EVALUATED = ("surgery", "start", "eval", "final")
Row = Mapping[str, Any]


def has_numbers(row: Row, *names: str) -> bool:
    return all(isinstance(row.get(name), (int, float)) for name in names)


def evaluated_rows(rows: Sequence[Row], *names: str) -> list[Row]:
    """Evaluations of the student that have a `step`, a `top1` and `names`, on the images of the first one, by step."""
    evaluated = [row for row in rows if row.get("phase") in EVALUATED and has_numbers(row, "step", "top1", *names)]
    return [row for row in evaluated if row.get("images") == evaluated[0].get("images")]


def final_full_evaluation(rows: Sequence[Row]) -> Row | None:
    """The evaluation at the end on all test images, where those along the way were on fewer; else None."""
    line = evaluated_rows(rows)
    last = next((row for row in reversed(rows) if row.get("phase") == "final" and has_numbers(row, "top1")), None)
    return None if last is None or not line or last.get("images") == line[0].get("images") else last


def counted(sizes: set[int], what: str) -> str:
    """` of 400 test images`, ` of 400 or 3,000 test images`; nothing where it is not known."""
    return f" of {' or '.join(f'{size:,}' for size in sorted(sizes))} test {what}" if sizes else ""
