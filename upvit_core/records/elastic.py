"""The record beside an elastic model: how its prefixes are cut to any size, what was kept to repair them, its origin.

Holds NumPy arrays. `norm_scales` (sites, D): by site and width what LayerNorm's weights are multiplied by. Two things
repair a size, both in float32. `moments`: for each linear layer's input the lower triangle of the second moment of
[input; 1] per token. `corrections`: for each step of the ladder and each layer what images added to the [weight, bias]
that the moments give (`pruning/elastic/corrections.py`). Training goes through both and does not change them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import Field, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from upvit_core.atomic import replaced
from upvit_core.errors import PlanError, first_fault
from upvit_core.files import digest
from upvit_core.records.record import Record
from upvit_core.records.shape import ModelShape

FILE = "elastic.safetensors"
LADDER = (0.0, 0.125, 0.25, 0.375, 0.5, 0.625, 0.75)
"""Shares removed of everything, the sizes at which an elastic model is measured."""
Share = Annotated[float, Field(ge=0, lt=1)]
Count = Annotated[int, Field(ge=0, lt=2**53, strict=True)]


class ElasticOrigin(Record):
    """Origin of an elastic model: its source, the training images whose moments ordered it, and its training.

    weights: the digest of the elastic weights that the record belongs to. steps: those of distillation since.
    """

    version: Literal[1] = 1
    model: str
    model_digest: str
    weights: str
    metric: str
    data: str
    data_digest: str
    images: Annotated[int, Field(ge=1, strict=True)]
    seed: Count
    ladder: Annotated[tuple[Share, ...], Field(min_length=2)] = LADDER
    steps: Count = 0


@dataclass(frozen=True)
class Elastic:
    """The record of an elastic model of `shape`."""

    shape: ModelShape
    origin: ElasticOrigin
    norm_scales: np.ndarray
    moments: Mapping[str, np.ndarray] = field(default_factory=dict)
    corrections: Mapping[str, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        wanted: dict[str, tuple[int, ...]] = {"norm_scales": (2 * self.shape.depth + 1, self.shape.embed_dim)}
        if self.moments:
            wanted |= {f"moments/{name}": (n * (n + 1) // 2,) for name, n in moment_widths(self.shape).items()}
        if missing := wanted.keys() - self.arrays.keys():
            raise PlanError(f"The elastic record lacks {min(missing)}; make it again with `elastic`.")
        for name, array in self.arrays.items():
            if array.shape != wanted.get(name, array.shape):
                raise PlanError(f"The elastic record holds {array.shape} for {name}, not {wanted[name]}.")
            if not np.isfinite(array).all():
                raise PlanError(f"The elastic record's {name} holds NaN or infinity; make it again with `elastic`.")

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """All arrays by their names in the file."""
        named = {f"moments/{name}": array for name, array in self.moments.items()}
        return {
            "norm_scales": self.norm_scales,
            **named,
            **{f"corrections/{n}": a for n, a in self.corrections.items()},
        }

    @cached_property
    def digest(self) -> str:
        """First 16 hex digits of the SHA-256 over origin and arrays."""
        return digest([self.origin.model_dump_json(), *(array.tobytes() for _, array in sorted(self.arrays.items()))])

    @property
    def repair_bytes(self) -> int:
        """Bytes of what repairs any size without images."""
        return sum(array.nbytes for array in (*self.moments.values(), *self.corrections.values()))

    def trained(self, weights: str, steps: int) -> Elastic:
        """The record for weights with this digest, after `steps` more steps of training."""
        origin = self.origin.model_copy(update={"weights": weights, "steps": self.origin.steps + steps})
        return replace(self, origin=origin)

    def save(self, folder: str | Path) -> None:
        """Write `elastic.safetensors` into a folder, atomically."""
        about = {"origin": self.origin.model_dump(mode="json"), "shape": self.shape.to_dict()}
        with replaced(Path(folder) / FILE) as temporary:
            save_file(self.arrays, temporary, metadata={"upvit_elastic": json.dumps(about)})

    @classmethod
    def load(cls, folder: str | Path, *, repairs: bool = True) -> Elastic:
        """Read a folder's record, where asked without what repairs. Raises PlanError where it has no valid one."""
        path = Path(folder) / FILE
        try:
            with safe_open(str(path), "numpy") as file:
                about = json.loads((file.metadata() or {})["upvit_elastic"])
                names = [name for name in file.keys() if repairs or name == "norm_scales"]  # noqa: SIM118
                arrays = {name: file.get_tensor(name) for name in names}
            origin, shape = ElasticOrigin.model_validate(about["origin"]), ModelShape.from_dict(about["shape"])
            kinds: dict[str, dict[str, np.ndarray]] = {"moments": {}, "corrections": {}}
            scales = arrays.pop("norm_scales")
            for name, array in arrays.items():
                kind, _, rest = name.partition("/")
                kinds[kind][rest] = array
            return cls(shape, origin, scales, **kinds)
        except FileNotFoundError as error:
            raise PlanError(f"{folder} holds no elastic model ({FILE}); make one with `elastic`.") from error
        except ValidationError as error:
            raise PlanError(f"{path} is not a valid elastic record: {first_fault(error)}; make it again.") from error
        except (SafetensorError, OSError, LookupError, ValueError, TypeError, AttributeError, RecursionError) as error:
            raise PlanError(f"{path} is not a readable elastic record ({error}); make it again.") from error


def is_elastic(folder: str | Path) -> bool:
    """True where a folder holds an elastic model."""
    return (Path(folder).expanduser() / FILE).is_file()


def moment_widths(shape: ModelShape) -> dict[str, int]:
    """By name the size of each second moment: of the norms' outputs in order, of proj's and fc2's inputs, and 1."""
    widths = {f"normed.{site}": shape.embed_dim + 1 for site in range(2 * shape.depth + 1)}
    for b, block in enumerate(shape.blocks):
        widths |= {f"mixed.{b}": block.attention + 1, f"hidden.{b}": block.ffn + 1}
    return widths
