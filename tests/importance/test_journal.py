"""A journal believes only rows that it wrote itself, for what is scored now."""

import json
from pathlib import Path

import numpy as np
import pytest

from upvit_core.errors import ScoresError
from upvit_core.importance.journal import Journal

WHAT = {"model": "m", "images": 3}


def written(path: Path, what: dict[str, object] = WHAT) -> list[str]:
    with Journal(path, what) as journal:
        for piece in ("a", "b"):
            journal.append(piece, np.array([0.1, 0.2]), np.array([0.01, 0.04]))
    return path.read_text().splitlines()


@pytest.mark.parametrize("row", [{"sum": [9.0, 0.2]}, {"squares": [0.01]}, {"piece": "c"}, {"digest": ""}, None, 3, []])
def test_a_row_that_was_changed_or_is_of_another_kind_is_refused(tmp_path: Path, row: object) -> None:
    path = tmp_path / "journal.jsonl"
    lines = written(path)
    changed = {**json.loads(lines[1]), **row} if isinstance(row, dict) else row
    path.write_text("\n".join([lines[0], json.dumps(changed), lines[2]]) + "\n")
    with pytest.raises(ScoresError, match=r"Line 2 of .* is not as it was written"), Journal(path, WHAT):
        pass


def test_a_row_of_another_journal_is_refused_and_a_torn_last_line_is_not(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    lines = written(path)
    other = written(tmp_path / "other.jsonl", {**WHAT, "images": 4})
    path.write_text("\n".join([*lines[:2], other[2]]) + "\n")
    with pytest.raises(ScoresError, match="Line 3"), Journal(path, WHAT):
        pass
    path.write_text("\n".join([*lines[:2], lines[2][:20]]))
    with Journal(path, WHAT) as journal:
        assert list(journal.finished) == ["a"]
        np.testing.assert_array_equal(journal.finished["a"][0], [0.1, 0.2])
