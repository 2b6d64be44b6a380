"""The scores record: one number per channel of every component, with its standard error and where it came from.

Holds NumPy arrays, so that reading and drawing scores needs no torch. Keys: `residual` (D,), `attention.{b}` (A_b,),
`ffn.{b}` (H_b,); with stages `residual.{stage}` and `reduction.{b}` (`ModelShape.groups`). Standard errors are stored
beside them as `stderr/<key>`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field, StrictInt, StrictStr
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from upvit_core.atomic import replaced
from upvit_core.errors import ScoresError
from upvit_core.files import Values, digest
from upvit_core.records.basis import Basis
from upvit_core.records.record import Record
from upvit_core.records.shape import ModelShape

VERSION = 1
Array = np.ndarray


@dataclass(frozen=True)
class ImportanceScores:
    """Scores by key (channels,), in `unit`, sums over `images` images; a higher score is a more important channel.

    `basis` says whether residual and attention scores belong to channels or to directions. Raises ScoresError where a
    key of the shape is missing, has another number of channels, or holds NaN or infinity.
    """

    values: Mapping[str, Array]
    criterion: str
    unit: str
    shape: ModelShape
    stderr: Mapping[str, Array] = field(default_factory=dict)
    model: str = ""
    model_digest: str = ""
    data: str = ""
    data_digest: str = ""
    images: int = 0
    seed: int = 0
    seconds: float = 0.0
    basis: Basis = Basis.CHANNELS
    notes: Values = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "basis", Basis(self.basis))
        for key, width in expected_widths(self.shape).items():
            if key not in self.values:
                raise ScoresError(f"The scores lack {key!r}; a record for {self.shape.name} needs {width} there.")
            if self.values[key].shape != (width,):
                raise ScoresError(f"The scores hold {self.values[key].shape} values for {key!r}, not {width}.")
            if not np.isfinite(self.values[key]).all():
                raise ScoresError(f"The scores of {key!r} contain NaN or infinity; score the model again.")
        for key, errors in self.stderr.items():
            if key not in self.values or errors.shape != self.values[key].shape:
                raise ScoresError(f"The standard errors of {key!r} do not fit its scores; score the model again.")

    @property
    def is_sum(self) -> bool:
        """True where scores are sums over images, so that those of disjoint images add up."""
        return "summed over images" in self.unit

    @property
    def samples(self) -> int:
        """Divisor from sums to means: images, or tokens of a text; at least 1."""
        return max(self.images, 1) * self.shape.answers

    @cached_property
    def per_sample(self) -> ImportanceScores:
        """The same scores as means, in nats an image or token; this record where they are no sums."""
        if not self.is_sum or not self.images:
            return self
        values, stderr = (
            {key: array / self.samples for key, array in part.items()} for part in (self.values, self.stderr)
        )
        return replace(
            self, values=values, stderr=stderr, unit="nats an image" if self.shape.answers == 1 else "nats a token"
        )

    @property
    def residual(self) -> Array:
        return self.values["residual"]

    def attention(self, block: int) -> Array:
        return self.values[f"attention.{block}"]

    def ffn(self, block: int) -> Array:
        return self.values[f"ffn.{block}"]

    @cached_property
    def digest(self) -> str:
        """First 16 hex digits of the SHA-256 over keys and values."""
        values = (key.encode() + np.asarray(self.values[key], np.float64).tobytes() for key in sorted(self.values))
        return digest([self.criterion, *values])

    def with_values(self, values: Mapping[str, Array], **changes: Any) -> ImportanceScores:
        """The same record with some scores replaced."""
        return replace(self, values={**self.values, **values}, **changes)

    def save(self, path: str | Path) -> None:
        """Write one safetensors file, atomically."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        tensors = {key: np.ascontiguousarray(value, np.float64) for key, value in self.values.items()}
        tensors |= {f"stderr/{key}": np.ascontiguousarray(value, np.float64) for key, value in self.stderr.items()}
        record = {each.name: getattr(self, each.name) for each in fields(self) if each.name not in ("values", "stderr")}
        record |= {"version": VERSION, "shape": self.shape.to_dict(), "notes": dict(self.notes)}
        with replaced(path) as temporary:
            save_file(tensors, temporary, metadata={"upvit_scores": json.dumps(record)})

    @classmethod
    def load(cls, path: str | Path) -> ImportanceScores:
        """Read a record written by `save`.

        Raises ScoresError where the file is missing, torn, of a newer version, or not a scores record.
        """
        try:
            with safe_open(str(path), "numpy") as file:
                record = json.loads((file.metadata() or {})["upvit_scores"])
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            if record.pop("version") > VERSION:
                raise ScoresError(f"{path} was written by a newer version; update this program to read it.")
            shape = ModelShape.from_dict(record.pop("shape"))
            record = _About.model_validate(record).model_dump(exclude_unset=True)
        except FileNotFoundError as error:
            raise ScoresError(f"There is no scores file at {path}; run `score` first.") from error
        except (SafetensorError, OSError, LookupError, ValueError, TypeError, AttributeError, RecursionError) as error:
            raise ScoresError(f"{path} is not a readable scores record ({error}); score the model again.") from error
        values = {key: value for key, value in tensors.items() if not key.startswith("stderr/")}
        stderr = {key.removeprefix("stderr/"): value for key, value in tensors.items() if key.startswith("stderr/")}
        return cls(values=values, stderr=stderr, shape=shape, **record)


class _About(Record):
    """Metadata of a file beside the arrays."""

    criterion: StrictStr
    unit: StrictStr
    model: StrictStr = ""
    model_digest: StrictStr = ""
    data: StrictStr = ""
    data_digest: StrictStr = ""
    images: Annotated[StrictInt, Field(ge=0, lt=2**53)] = 0
    seed: StrictInt = 0
    seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    basis: Basis = Basis.CHANNELS
    notes: dict[str, Any] = {}  # noqa: RUF012


def expected_widths(shape: ModelShape) -> dict[str, int]:
    """Score keys of a model and how many channels each has."""
    return {group.key: group.width for group in shape.groups}
