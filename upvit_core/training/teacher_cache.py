"""The teacher's logits for augmented images, kept in a file and read again by the other runs of a sweep.

What a step shows the teacher depends on seeds alone, so runs that share teacher, images, seed, batches and augmentation
need the same logits. Of each image the k largest are kept, and the others as one number, their
log-sum-exp: the k probabilities at temperature 1 come back as they were, and what is left is shared equally by the
other classes. With all classes kept, the logits come back bit for bit.

A file holds one record a step, at its own offset, with a checksum: a record that is missing, torn or of another run
reads as absent, and the teacher is run again. Two runs that write at once write the same.
"""

import math
import os
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

HEADER = 4  # bytes of the checksum before each record


class TeacherStore:
    """Logits of `images` images a step, the `k` largest of `classes` kept."""

    def __init__(self, path: Path, *, images: int, classes: int, k: int):
        self.path, self.images, self.classes, self.k = path, images, classes, min(k, classes)
        fields: list[tuple[str, str, tuple[int, ...]]] = [("top", "<f4", (self.k,))]
        if self.k < classes:
            fields += [("classes", "<u2" if classes <= 1 << 16 else "<u4", (self.k,)), ("rest", "<f4", ())]
        self.row = np.dtype(fields)
        path.parent.mkdir(parents=True, exist_ok=True)
        self.file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)

    @property
    def step_bytes(self) -> int:
        return HEADER + self.images * self.row.itemsize

    def encode(self, logits: Tensor) -> np.ndarray:
        """Rows (b,) of logits (b, classes)."""
        logits = logits.detach().float().cpu()
        rows = np.zeros(len(logits), self.row)
        if self.k == self.classes:
            rows["top"] = logits.numpy()
            return rows
        top, classes = logits.topk(self.k, dim=-1)
        others = logits.scatter(-1, classes, -math.inf)
        rows["top"], rows["classes"], rows["rest"] = top.numpy(), classes.numpy(), others.logsumexp(-1).numpy()
        return rows

    def decode(self, rows: np.ndarray, device: torch.device | str = "cpu") -> Tensor:
        """Logits (b, classes) in float32 of rows (b,)."""
        top = torch.from_numpy(np.ascontiguousarray(rows["top"]))
        if self.k == self.classes:
            return top.to(device)
        share = torch.from_numpy(rows["rest"] - np.float32(math.log(self.classes - self.k)))
        logits = share[:, None].expand(-1, self.classes).clone()  # (b, classes)
        return logits.scatter(-1, torch.from_numpy(rows["classes"].astype(np.int64)), top).to(device)

    def read(self, step: int) -> np.ndarray | None:
        """Rows of a step; None where they are not there whole."""
        content = os.pread(self.file, self.step_bytes, step * self.step_bytes)
        if len(content) < self.step_bytes or _checksum(step, content[HEADER:]) != content[:HEADER]:
            return None
        return np.frombuffer(content, self.row, offset=HEADER).copy()

    def write(self, step: int, rows: np.ndarray) -> None:
        """Raises OSError where the disk is full."""
        content = rows.tobytes()
        os.pwrite(self.file, _checksum(step, content) + content, step * self.step_bytes)

    def close(self) -> None:
        os.close(self.file)


class TeacherLogits:
    """The teacher's logits for one step's images, part by part, from the store or else from the teacher."""

    def __init__(self, store: TeacherStore | None, step: int, images: int):
        self.store, self.step = store, step
        self.rows = None if store is None else store.read(step)
        self.is_stored = self.rows is not None
        if store is not None and self.rows is None:
            self.rows = np.zeros(images, store.row)

    def to(self, x: Tensor, first: int, teacher: Callable[[Tensor], Tensor]) -> Tensor:
        """Logits (b, classes) in float32 of images x (b, C, H, W), the first of which is the step's `first`."""
        if self.store is None or self.rows is None:
            return teacher(x).float()
        own = slice(first, first + len(x))
        if not self.is_stored:
            self.rows[own] = self.store.encode(teacher(x))
        return self.store.decode(self.rows[own], x.device)

    def keep(self) -> None:
        """Write the logits once all parts are there. Raises OSError where the disk is full."""
        if self.store is not None and self.rows is not None and not self.is_stored:
            self.store.write(self.step, self.rows)


def _checksum(step: int, content: bytes) -> bytes:
    """Four bytes that are never zero, since a hole in the file reads as zeros."""
    return (zlib.crc32(content, step + 1) | 1).to_bytes(HEADER, "little")
