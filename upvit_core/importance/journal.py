"""The journal of an exact score: finished pieces on disk, so that a killed run goes on where it stopped."""

from __future__ import annotations

import json
from pathlib import Path
from typing import BinaryIO

import numpy as np

from upvit_core.errors import ScoresError


class Journal:
    """Finished pieces, one JSON line each, appended and flushed; a torn last line is ignored.

    `finished` maps a piece's name to its sums over images and sums of squares. The first line is the `fingerprint` of
    what is scored; a file with another one is refused with ScoresError. Without a path nothing is written.
    """

    def __init__(self, path: Path | None, fingerprint: dict[str, object]):
        self.path, self.fingerprint = path, json.loads(json.dumps(fingerprint))
        self.finished: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        self._file: BinaryIO | None = None

    def __enter__(self) -> Journal:
        if self.path is None:
            return self
        whole = 0
        if self.path.exists():
            for number, line in enumerate(self.path.read_bytes().splitlines(keepends=True)):
                try:
                    row = json.loads(line)
                except ValueError:
                    break
                if not line.endswith(b"\n"):
                    break
                whole += len(line)
                if number == 0:
                    if row != self.fingerprint:
                        raise ScoresError(
                            f"{self.path} holds scores of another model, image set or setting; "
                            "delete it or choose another output file."
                        )
                    continue
                self.finished[row["piece"]] = (np.asarray(row["sum"]), np.asarray(row["squares"]))
        else:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self.path.open("ab")
        self._file.truncate(whole)
        if whole == 0:
            self._write(self.fingerprint)
        return self

    def append(self, piece: str, total: np.ndarray, squares: np.ndarray) -> None:
        if self._file is not None:
            self._write({"piece": piece, "sum": total.tolist(), "squares": squares.tolist()})

    def _write(self, row: dict[str, object]) -> None:
        assert self._file is not None
        self._file.write(json.dumps(row).encode() + b"\n")
        self._file.flush()

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()
