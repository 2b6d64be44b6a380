"""Read the tensors of one file, or of one model in several, without ever running code from them."""

from __future__ import annotations

import json
import pickle
import re
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from upvit_core.errors import CheckpointError
from upvit_core.models.tensors import listed
from upvit_core.models.unpickle import Modules, named_tensors, plain_values, unpickle

SAFETENSORS_HEADER_LIMIT = 100_000_000  # bytes; the format's own
SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".tar", ".npz")
MOST_INFLATED = 20  # weights hardly shrink when they are compressed
OTHER_FILES = {
    b"<": "is a web page",
    b"{": "is a JSON file",
    b"\x1f\x8b": "is a compressed archive, which is to be unpacked first",
    b"\x89HDF": "is an HDF5 file, as Keras writes",
    b"GGUF": "is a GGUF file of quantised weights",
    b"\x89PNG": "is a picture",
    b"\xff\xd8\xff": "is a picture",
}
"""Other files by their first bytes."""
INDEX = ".index.json"
NO_MODEL = re.compile(r"optim|sched|rng|random_state|training_args|scaler", re.IGNORECASE)
WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin", f"model.safetensors{INDEX}", f"pytorch_model.bin{INDEX}")


@dataclass(frozen=True)
class Contents:
    """All tensors of a file by their path in it, the settings beside them by name, and the modules that were saved."""

    tensors: dict[str, Tensor]
    settings: Mapping[str, Any] = field(default_factory=dict)
    modules: Modules = field(default_factory=dict)


def read_contents(path: str | Path) -> Contents:
    """The tensors and settings in a file, on the CPU; the content decides the format, not the suffix.

    safetensors, torch.save in both formats, NumPy's npz, and the index of a model in several files. Raises
    CheckpointError for anything but a complete file that has tensors.
    """
    path = Path(path)
    if path.name.endswith(INDEX):
        return _read_shards(path)
    if path.exists() and not path.is_file():
        raise CheckpointError(f"{path} is no regular file; give a checkpoint file.")
    try:
        with path.open("rb") as file:
            start = file.read(512)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror}); give a checkpoint file.") from error
    if not start:
        raise CheckpointError(f"{path} is empty (0 bytes); download or copy the checkpoint again.")
    if start.startswith(b"version https://git-lfs"):
        raise CheckpointError(f"{path} is a Git LFS pointer, not the weights; fetch them with `git lfs pull`.")
    # The header's length comes first in safetensors and may begin with a pickle's first byte, so this is asked first.
    if start[8:9] == b"{" and int.from_bytes(start[:8], "little") <= SAFETENSORS_HEADER_LIMIT:
        try:
            with safe_open(path, "pt") as file:
                beside = file.metadata()
            return Contents(load_file(path), plain_values(beside or {}))
        except SafetensorError as error:
            raise CheckpointError(
                f"{path} is a damaged or truncated safetensors file ({reason(error)}); download or copy it again."
            ) from error
    if start.startswith(b"PK\x03\x04") and _holds_arrays(path):
        return _read_arrays(path)
    if start.startswith((b"PK\x03\x04", b"\x80")):
        return _read_pickle(path)
    kinds = (kind for mark, kind in OTHER_FILES.items() if start.lstrip().startswith(mark))
    kind = next(kinds, "is neither a safetensors nor a PyTorch file")
    raise CheckpointError(f"{path} {kind}; give one of {', '.join(SUFFIXES)}.")


def weights_of(folder: Path) -> Path:
    """The one file of weights in a folder, or its index where they are in several. Raises CheckpointError."""
    weights = _weights_in(folder)
    if len(weights) != 1:
        raise CheckpointError(
            f"{folder} has {len(weights) or 'no'} weights files ({', '.join(path.name for path in weights[:3])}"
            f"{'' if weights else ' or '.join(WEIGHT_FILES[:2]) + ' expected'}); give a folder with one, or the file "
            "itself."
        )
    return weights[0]


def _weights_in(folder: Path) -> list[Path]:
    """The files of weights by their usual names, else indices, else all, but one of safetensors before others."""
    usual = [folder / name for name in WEIGHT_FILES if (folder / name).is_file()]
    files = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    weights = [path for path in files if path.suffix in SUFFIXES and not NO_MODEL.search(path.name)]
    safe = [path for path in weights if path.suffix == ".safetensors"]
    return usual[:1] or [p for p in files if p.name.endswith(INDEX)] or (safe if len(safe) == 1 else weights)


def model_folder(folder: Path) -> Path:
    """The folder itself, or the one inside that has weights where it has none."""
    if _weights_in(folder):
        return folder
    inside = [path for path in sorted(folder.iterdir()) if path.is_dir() and _weights_in(path)]
    return inside[0] if len(inside) == 1 else folder


def _read_shards(index: Path) -> Contents:
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise CheckpointError(f"{index} is no index of weights ({reason(error)}); restore it.") from error
    missing = [name for name in names if Path(name).name != name or not (index.parent / name).is_file()]
    if missing:
        raise CheckpointError(f"{index.parent} misses {listed(missing)}, which {index.name} names; copy all files.")
    tensors: dict[str, Tensor] = {}
    for name in names:
        tensors |= read_contents(index.parent / name).tensors
    return Contents(tensors)


def _holds_arrays(path: Path) -> bool:
    names = _entries(path)
    return bool(names) and all(name.endswith(".npy") for name in names)


def _entries(path: Path) -> list[str]:
    """Names in a zip, none where it is no zip. Raises CheckpointError for one that would unpack to far more."""
    if not path.is_file():  # a pipe would be waited for
        return []
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return []
    size = sum(entry.file_size for entry in entries)
    if size > MOST_INFLATED * sum(entry.compress_size for entry in entries) + 2**20:
        raise CheckpointError(
            f"{path} would unpack to {size / 2**20:,.0f} MiB, over {MOST_INFLATED} times its size; save the weights "
            "without compression."
        )
    return [entry.filename for entry in entries]


def _read_arrays(path: Path) -> Contents:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            numbers = {name: arrays[name] for name in arrays.files}
        return Contents({name: torch.from_numpy(array) for name, array in numbers.items() if array.dtype.kind in "fiu"})
    except Exception as error:  # damaged bytes can raise anything
        raise CheckpointError(
            f"{path} is a damaged or truncated NumPy archive ({reason(error)}); download or copy it again."
        ) from error


def _read_pickle(path: Path) -> Contents:
    try:
        content = unpickle(path)
    except Exception as error:  # damaged bytes can raise anything
        if "TorchScript" in str(error):
            raise CheckpointError(
                f"{path} is a TorchScript program, not weights; save the state dict alone."
            ) from error
        if isinstance(error, (pickle.UnpicklingError, RuntimeError)) and (what := _unreadable(str(error))):
            raise CheckpointError(
                f"{path} holds more than tensors ({what}), and nothing in a file is ever run; save its state dict "
                "alone, best as .safetensors."
            ) from error
        raise CheckpointError(
            f"{path} is a damaged or truncated PyTorch file ({reason(error)}); download or copy it again."
        ) from error
    tensors, modules = named_tensors(content)
    if not tensors:
        found = f"a {type(content).__name__}"
        if isinstance(content, Mapping):
            found = f"entries: {', '.join(map(str, list(content)[:4])) or 'none'}"
        raise CheckpointError(f"{path} holds no state dict ({found}); give a file of tensors by name.")
    return Contents(tensors, plain_values(content), modules)


def reason(error: Exception) -> str:
    """The first sentence of another library's message, to stand in one of ours."""
    text = re.split(r"[.!?]\s", str(error).strip() + " ")[0].split("\n")[0][:120].rstrip(". ")
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _unreadable(message: str) -> str:
    """The part of a pickle that torch's reader refuses to build or replace; empty where the file is just damaged."""
    if "Unsupported operand" in message or "magic number" in message:
        return "a pickle that torch.save did not write, or not with its own protocol"
    if "persistent_load" in message or "persistent id" in message:
        return "a whole module in torch.save's old format"
    return ", ".join(sorted(set(re.findall(r"GLOBAL ([\w.]+)", message))))


def is_zipped_folder(path: Path) -> bool:
    """True for a zip of a model's folder, which is neither a file of torch.save nor NumPy's.

    Raises CheckpointError for a program of torch.export.
    """
    names = [Path(name).name for name in _entries(path)]
    if "archive_format" in names:
        raise CheckpointError(f"{path} is a program of torch.export, not weights; save the state dict alone.")
    return "data.pkl" not in names and any(name in WEIGHT_FILES or Path(name).suffix in SUFFIXES for name in names)


@contextmanager
def unzipped(path: Path) -> Iterator[Path]:
    """The model's folder in a zip, unpacked for as long as it is read. Raises CheckpointError for a damaged zip."""
    with tempfile.TemporaryDirectory() as temporary:
        try:
            with zipfile.ZipFile(path) as archive:
                archive.extractall(temporary)
        except (zipfile.BadZipFile, OSError, RuntimeError, NotImplementedError, EOFError, ValueError) as error:
            raise CheckpointError(f"{path} cannot be unpacked ({reason(error)}); download or copy it again.") from error
        root = Path(temporary)
        folders = sorted(
            {found.parent for name in WEIGHT_FILES for found in root.rglob(name)}, key=lambda f: len(f.parts)
        )
        yield (
            folders[0]
            if folders
            else next((f.parent for f in root.rglob("*") if f.suffix in SUFFIXES and not f.name.startswith(".")), root)
        )
