"""The journal of an exact score: finished pieces on disk, so that a killed run goes on where it stopped."""

from __future__ import annotations

import json
from pathlib import Path
from typing import BinaryIO

import numpy as np

from upvit_core.errors import ScoresError
from upvit_core.files import digest

PIECE = ("piece", "sum", "squares")


class Journal:
    """Finished pieces, one JSON line each with its digest, appended and flushed; a torn last line is ignored.

    `finished` maps a piece's name to its sums over images and sums of squares. The first line is the `fingerprint` of
    what is scored; a file with another one, or with a row that was changed or is of another kind, is refused with
    ScoresError. Without a path nothing is written.
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
                self._take(row, number + 1)
        else:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self.path.open("ab")
        self._file.truncate(whole)
        if whole == 0:
            self._write(self.fingerprint)
        return self

    def _take(self, row: object, number: int) -> None:
        piece = {key: row.get(key) for key in PIECE} if isinstance(row, dict) else {}
        if not piece or not isinstance(row, dict) or row.get("digest") != self._digest(piece):
            raise ScoresError(
                f"Line {number} of {self.path} is not as it was written; delete it or choose another output file."
            )
        self.finished[str(row["piece"])] = (np.asarray(row["sum"]), np.asarray(row["squares"]))

    def _digest(self, piece: dict[str, object]) -> str:
        """Of a piece, and of what is scored, so that no row of another journal passes."""
        return digest([json.dumps(self.fingerprint, sort_keys=True), json.dumps(piece)])

    def append(self, piece: str, total: np.ndarray, squares: np.ndarray) -> None:
        if self._file is not None:
            row = dict(zip(PIECE, (piece, total.tolist(), squares.tolist()), strict=True))
            self._write(row | {"digest": self._digest(row)})

    def _write(self, row: dict[str, object]) -> None:
        assert self._file is not None
        self._file.write(json.dumps(row).encode() + b"\n")
        self._file.flush()

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()
