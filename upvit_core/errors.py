"""One root error; every message says what was wrong, with which value, and what to do."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import ValidationError

LONGEST = 1200


class UPViTError(Exception):
    """Root of every error that this project raises on purpose; `str(error)` is one clear sentence.

    A value of thousands of characters, quoted in it, is cut out of its middle.
    """

    def __str__(self) -> str:
        text = super().__str__()
        return text if len(text) <= LONGEST else f"{text[: LONGEST * 2 // 3]} … {text[-LONGEST // 3 :]}"


class CheckpointError(UPViTError):
    """A checkpoint could not be read, or does not describe a model that is understood."""


class UnsupportedModelError(UPViTError):
    """A model's architecture has a part that no adapter understands; the part is named."""


class DataError(UPViTError):
    """An image set is missing, empty, unreadable, or does not fit the model."""


class ScoresError(UPViTError):
    """A scores record is malformed or belongs to another model."""


class PlanError(UPViTError):
    """A pruning plan is illegal for the model, or cannot be read."""


class MapError(UPViTError):
    """A map of measured cuts cannot be read or made, or belongs to another model."""


class CalibrationError(UPViTError):
    """A calibration is missing, torn, or was made for another device, number type or number of threads."""


class RunError(UPViTError):
    """A run cannot be started, found, resumed, or cancelled."""


class LimitError(UPViTError):
    """The host does not allow this, or its limits cannot be understood."""


class MemoryLimitError(UPViTError):
    """Even a single input does not fit into memory."""


class ExportError(UPViTError):
    """A model could not be exported, or the export does not reproduce the model."""


class Cancelled(UPViTError):
    """The caller's progress callback asked to stop; work done so far is kept where a file was given."""


def first_fault(error: ValidationError) -> str:
    """The first fault of a record, its place and reason, as part of a sentence."""
    fault = error.errors()[0]
    where = ".".join(str(part) for part in fault["loc"]) or "content"
    said = fault["msg"].removeprefix("Value error, ")
    return f"{where} {said.removeprefix('Input ')}" if said.startswith("Input should") else f"{where}: {said}"
