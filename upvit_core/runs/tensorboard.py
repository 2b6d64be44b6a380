"""Rows of metrics.jsonl as TensorBoard event files, for `tensorboard --logdir runs`; needs the package tensorboard.

Each attempt at a run adds a file of its own and first writes what a killed one before it had not: all files together
hold every row once.
"""

from collections.abc import Container, Iterable, Mapping
from contextlib import suppress
from pathlib import Path

from upvit_core.errors import RunError

FOLDER = "tensorboard"
NOT_SCALARS = ("step", "phase")


def scalars(row: Mapping[str, object]) -> dict[str, float]:
    """Tag and value of all numbers of a row but its step, `train/loss`, `eval/top1` and so on."""
    return {
        f"{row['phase']}/{name}": float(value)
        for name, value in row.items()
        if name not in NOT_SCALARS and isinstance(value, (int, float)) and not isinstance(value, bool)
    }


class EventLog:
    """Writes rows; `rows` are those that metrics.jsonl has already. Raises RunError without the package."""

    def __init__(self, folder: Path, rows: Iterable[Mapping[str, object]]):
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise RunError(
                "Event files need the package tensorboard; install it (pip install tensorboard) or leave them out."
            ) from error
        written = read(folder)
        self.writer = SummaryWriter(str(folder))
        for row in rows:
            if "phase" in row and "step" in row:
                self.write(row, written)

    def write(self, row: Mapping[str, object], written: Container[tuple[str, object]] = ()) -> None:
        """Add a row's scalars but those `written`, and see them to the disk; a full one does not end the run."""
        with suppress(OSError):
            for tag, value in scalars(row).items():
                if (tag, row["step"]) not in written:
                    self.writer.add_scalar(tag, value, row["step"])
            self.writer.flush()

    def close(self) -> None:
        with suppress(OSError):
            self.writer.close()


def read(folder: Path) -> dict[tuple[str, int], float]:
    """Every scalar of the event files in a folder, by tag and step; the torn end of a file is left out."""
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
    from tensorboard.util.tensor_util import make_ndarray

    values: dict[tuple[str, int], float] = {}
    for path in sorted(folder.glob("events.*")):
        for event in EventFileLoader(str(path)).Load():
            for value in event.summary.value:
                values[value.tag, event.step] = float(make_ndarray(value.tensor).item())
    return values
