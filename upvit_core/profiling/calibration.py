"""A calibration: the measured time of each operation of a family of models on one device. Imports no torch.

Each operation has a grid of its sizes; between grid points the logarithm of time is interpolated linearly in the
logarithm of the sizes. Ladders, which hold every single width up to 256, add what a width that is no multiple of the
device's vectors costs. Weights fitted on whole blocks (`calibrate.py`) account for what operations cost each other in
company: caches, memory, the Python between them. `latency.py` puts a forward pass together from it.
"""

from __future__ import annotations

import json
import os
import platform
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from upvit_core.atomic import write_atomically
from upvit_core.errors import CalibrationError
from upvit_core.records.family import load
from upvit_core.records.shape import ModelShape
from upvit_core.records.structure import PLAIN

VERSION = 2
NEAR, FAR = 800 * 192 * 240, 1600 * 384 * 1008
"""Multiply-accumulates of a linear layer where a ladder is measured, and where its far end is."""
LADDERS = ("inputs", "outputs", "head_dim")
KINDS = ("linear", "attention", "norm", "gelu", "add")
PYRAMID_KINDS = ("linear", "attention", "norm", "add", "depthwise", "reduction")
"""Kinds of operations within a block, of plain and language models, and of a PVTv2."""


@dataclass(frozen=True)
class Grid:
    """Seconds of an operation on a grid; axes hold ascending sizes, seconds has one dimension an axis."""

    axes: tuple[tuple[float, ...], ...]
    seconds: np.ndarray

    def at(self, *sizes: ArrayLike) -> np.ndarray:
        """Seconds at sizes that broadcast; beyond the grid the last slope goes on."""
        points = np.broadcast_arrays(*(np.log(np.asarray(size, float)) for size in sizes))
        logs = np.log(self.seconds)
        total = np.zeros(points[0].shape)
        corners: list[tuple[np.ndarray, np.ndarray]] = []
        for axis, point in zip(self.axes, points, strict=True):
            known = np.log(np.asarray(axis, float))
            left = np.clip(np.searchsorted(known, point) - 1, 0, max(len(known) - 2, 0))
            span = known[np.minimum(left + 1, len(known) - 1)] - known[left]
            share = np.divide(point - known[left], span, out=np.zeros_like(point), where=span > 0)
            corners.append((left, share))
        for corner in range(2 ** len(self.axes)):
            weight, index = np.ones(points[0].shape), []
            for number, (left, share) in enumerate(corners):
                upper = corner >> number & 1
                weight = weight * (share if upper else 1 - share)
                index.append(np.minimum(left + upper, len(self.axes[number]) - 1))
            total += weight * logs[tuple(index)]
        return np.exp(total)

    def to_dict(self) -> dict[str, object]:
        return {"axes": [list(axis) for axis in self.axes], "seconds": self.seconds.tolist()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Grid:
        grid = cls(
            tuple(tuple(float(v) for v in axis) for axis in values["axes"]), np.asarray(values["seconds"], float)
        )
        if grid.seconds.shape != tuple(len(axis) for axis in grid.axes) or not (grid.seconds > 0).all():
            raise ValueError("a grid of times is not whole")
        return grid


@dataclass(frozen=True)
class Ladder:
    """Time at every width 1 … n over what the grid says there, n a multiple of 16; factors (n,).

    Beyond n a width costs what its remainder by 16 does near n, less and less of it as it grows. `far`, where given,
    holds the factors (16,) of every remainder in large layers, where odd widths may cost nearly half as much again:
    from NEAR to FAR multiply-accumulates they come in by degrees.
    """

    factors: np.ndarray
    far: np.ndarray | None = None

    def at(self, width: ArrayLike, macs: ArrayLike = NEAR) -> np.ndarray:
        """Factor at whole widths, of any shape, in layers of so many multiply-accumulates."""
        wide, n = np.asarray(width, float), len(self.factors)
        rest = np.mod(wide, 16)
        index = np.where(wide <= n, wide, np.where(rest == 0, n, n - 16 + rest))
        excess = self.factors[np.clip(index, 1, n).astype(int) - 1] - 1
        near = 1 + excess * np.minimum(1, n / wide)
        if self.far is None:
            return near
        share = np.clip(np.log(np.asarray(macs, float) / NEAR) / np.log(FAR / NEAR), 0, 1)
        return np.asarray(near ** (1 - share) * self.far[rest.astype(int)] ** share)

    def to_dict(self) -> dict[str, object]:
        return {"factors": self.factors.tolist(), "far": None if self.far is None else self.far.tolist()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Ladder:
        factors, far = np.asarray(values["factors"], float), values["far"]
        ladder = cls(factors, None if far is None else np.asarray(far, float))
        if factors.ndim != 1 or len(factors) % 16 or not len(factors) or (far is not None and len(far) != 16):
            raise ValueError("a ladder is not whole")
        return ladder


@dataclass(frozen=True)
class HeldOutError:
    """Errors of estimates on plans that were not calibrated on: speed-ups, measured in the same session.

    median_error and worst_error: |estimated / measured - 1| of the speed-up against the unpruned model; correlation:
    Spearman's, of estimated and measured time.
    """

    median_error: float
    worst_error: float
    correlation: float
    plans: int
    models: tuple[str, ...]
    batch_sizes: tuple[int, ...]
    date: str


@dataclass(frozen=True)
class Calibration:
    """The time of each operation on one device, in one number type, with one number of threads.

    scope: the models it holds for, as `scope` names them. grids: linear (rows, inputs, outputs); attention (batch times
    heads, tokens, head_dim), from qkv to the input of proj; norm, gelu, add (rows, channels). A language model's has
    head (rows, channels), a PVTv2's by stage: opening.s (batch, channels before, channels), all of a stage but its
    blocks; reduction.s (batch, channels, channels reduced to); attention.s (batch times heads, head_dim), from queries,
    keys and values on; depthwise.s (batch, channels), with its GELU. ladders: inputs and outputs of linear, head_dim of
    attention. embeddings: by `geometry(shape)`, (batch, embed_dim). weights: factor of each kind within a block, and
    `block`, seconds a block besides. clock: `wall`, or `cpu` (the thread's own time).
    """

    device: str
    dtype: str
    threads: int
    grids: Mapping[str, Grid]
    ladders: Mapping[str, Ladder]
    embeddings: Mapping[str, Grid]
    weights: Mapping[str, float]
    scope: str = ""
    clock: str = "wall"
    versions: Mapping[str, str] = field(default_factory=dict)
    date: str = ""
    seconds: float = 0.0
    error: HeldOutError | None = None

    def linear(self, rows: ArrayLike, inputs: ArrayLike, outputs: ArrayLike) -> np.ndarray:
        """Seconds of a linear layer alone."""
        macs = np.asarray(rows, float) * np.asarray(inputs) * np.asarray(outputs)
        factor = self.ladders["inputs"].at(inputs) * self.ladders["outputs"].at(outputs, macs)
        return self.grids["linear"].at(rows, inputs, outputs) * factor

    def attention(self, groups: ArrayLike, tokens: ArrayLike, head_dim: ArrayLike) -> np.ndarray:
        """Seconds of attention alone, between qkv and proj."""
        return self.grids["attention"].at(groups, tokens, head_dim) * self.ladders["head_dim"].at(head_dim)

    def with_error(self, error: HeldOutError) -> Calibration:
        """The same calibration with its held-out error."""
        return replace(self, error=error)

    @property
    def is_current(self) -> bool:
        """True unless it was measured with another version of torch than is installed."""
        own = version("torch")
        return self.versions.get("torch", own).split("+")[0] == own.split("+")[0]

    def save(self, path: str | Path) -> None:
        """Write JSON, atomically."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        record = {
            "version": VERSION, "scope": self.scope, "device": self.device, "dtype": self.dtype,
            "threads": self.threads, "clock": self.clock, "versions": dict(self.versions), "date": self.date,
            "seconds": self.seconds,
            "error": None if self.error is None else asdict(self.error), "weights": dict(self.weights),
            "grids": {name: grid.to_dict() for name, grid in self.grids.items()},
            "ladders": {name: ladder.to_dict() for name, ladder in self.ladders.items()},
            "embeddings": {name: grid.to_dict() for name, grid in self.embeddings.items()},
        }  # fmt: skip
        write_atomically(path, json.dumps(record).encode())

    @classmethod
    def load(cls, path: str | Path) -> Calibration:
        """Read a record written by `save`.

        Raises CalibrationError where there is none, or it cannot be read.
        """
        try:
            record = json.loads(Path(path).read_text())
            if record.pop("version") != VERSION:
                raise CalibrationError(f"{path} was written by another version; run `calibrate` again.")
            for name in ("grids", "embeddings"):
                record[name] = {key: Grid.from_dict(value) for key, value in record[name].items()}
            record["ladders"] = {key: Ladder.from_dict(value) for key, value in record["ladders"].items()}
            error = record.pop("error")
            if error is not None:
                error = HeldOutError(
                    **{**error, "models": tuple(error["models"]), "batch_sizes": tuple(error["batch_sizes"])}
                )
            found = cls(**record, error=error)
            kinds = PYRAMID_KINDS if "reduction" in found.weights else KINDS
            timed = {name.partition(".")[0] for name in found.grids}
            if not {*kinds, "linear"} <= timed or not set(LADDERS) <= set(found.ladders):
                raise ValueError("an operation is missing")
            if not {*kinds, "block"} <= set(found.weights):
                raise ValueError("a weight is missing")
            return found
        except FileNotFoundError as problem:
            raise CalibrationError(f"There is no calibration at {path}; run `calibrate` first.") from problem
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as problem:
            raise CalibrationError(
                f"{path} is not a readable calibration ({problem}); run `calibrate` again."
            ) from problem


def scope(shape: ModelShape) -> str:
    """The models that one calibration holds for: empty for all plain ViTs, else of what time depends on but widths."""
    models: str = load(shape.architecture.calibration)(shape)
    return models


def vit_scope(shape: ModelShape) -> str:
    """Empty: one calibration holds for all plain ViTs. Raises CalibrationError for others, which are not timed."""
    if shape.structure != PLAIN:
        raise CalibrationError(
            f"The time of {shape.name} cannot be estimated, since it is not a plain ViT; measure it with "
            "`profile MODEL --measure`."
        )
    return ""


def pvt_scope(shape: ModelShape) -> str:
    height, width = shape.img_size
    stages = "".join(f"-{stage.kernel}{stage.stride}{stage.reduction_ratio}" for stage in shape.stages)
    return f"pvt-{shape.in_chans}x{height}x{width}{stages}"


def gpt2_scope(shape: ModelShape) -> str:
    return f"gpt2-{shape.num_tokens}-{shape.num_classes}"


def default_path(device: str, dtype: str, threads: int, shape: ModelShape | None = None) -> Path:
    """Path of a device's calibration for models like `shape` (default: plain ViTs); studio and verbs share it."""
    name = "-".join("".join(c if c.isalnum() else " " for c in device).split()).lower()
    own = "" if shape is None else scope(shape)
    return default_folder() / f"{name}-{dtype}-{threads}{own and '-'}{own}.json"


def newest(device: str, dtype: str, shape: ModelShape) -> Path | None:
    """The newest calibration of a device in the default folder for models like `shape`, of whatever threads."""
    start, end = default_path(device, dtype, 0, shape).name.split(f"-{dtype}-0")
    name = re.compile(rf"{re.escape(start)}-{dtype}-\d+{re.escape(end)}")
    found = [path for path in default_folder().glob("*.json") if name.fullmatch(path.name)]
    return max(found, key=lambda path: path.stat().st_mtime, default=None)


def processor_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def default_folder() -> Path:
    """`calibrations` in $UPVIT_HOME, else in the user's cache."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "upvit-studio"
    return Path(os.environ.get("UPVIT_HOME") or cache).expanduser() / "calibrations"


def geometry(shape: ModelShape) -> str:
    """Text of all that the time of the embedding depends on besides width and batch."""
    (height, width), (a, b) = shape.img_size, shape.patch_size
    return f"{shape.in_chans}x{height}x{width}/{a}x{b}+{shape.num_prefix_tokens}"
