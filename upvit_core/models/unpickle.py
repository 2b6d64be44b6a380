"""Read files of torch.save: tensors and plain values are built, every other object is replaced by an inert stand-in.

torch's own weights-only reader does the reading and runs no code from the file; it refuses classes that it does not
know. Here each of them is answered for by an empty class, so that tensors beside them can be read.
"""

from __future__ import annotations

import json
import pickle
import re
import threading
import warnings
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

MOST_TRIES = 500
MODULE = "stand_in"
MOST_ITEMS, MOST_COLOURS, DEEPEST = 4096, 4, 8
NOT_THE_MODELS = re.compile(r"optim|sched|scaler|callback|loops|decoder|text|teacher|predictor|criterion|loss|rng")
"""Parts of a file that speak of something else than the model."""
Modules = Mapping[str, tuple[str, Mapping[str, object]]]
"""The class and the attributes of each saved module, by its path."""
_lock = threading.Lock()  # torch keeps the allowed classes in one set for the whole process


class Inert:
    """Stands for an object of a foreign class: the arguments that made it, and what was saved of its attributes."""

    state: object = None
    arguments: tuple[object, ...] = ()

    def __new__(cls, *_: object) -> Inert:
        return super().__new__(cls)

    def __init__(self, *arguments: object) -> None:
        self.arguments = arguments

    def __setstate__(self, state: object) -> None:
        self.state = state


class InertList(list[object]):
    """Stands for a list of a foreign class."""

    def __new__(cls, *_: object) -> InertList:
        return super().__new__(cls)

    def __init__(self, *_: object) -> None:
        super().__init__()


class InertDict:
    """Stands for a dictionary of a foreign class, such as `defaultdict`; makes a plain one."""

    def __new__(cls, *_: object) -> OrderedDict[object, object]:  # type: ignore[misc]
        return OrderedDict()


def unpickle(path: Path) -> object:
    """Content of a file of torch.save, on the CPU. Raises whatever torch raises for one that is damaged or hostile."""
    kinds: dict[str, type] = dict.fromkeys(_foreign_names(path), Inert)
    for _ in range(MOST_TRIES):
        made: list[Callable[..., object] | tuple[Callable[..., object], str]] = [
            (type(name, (kind,), {"__module__": MODULE}), name) for name, kind in kinds.items()
        ]
        try:
            with _lock, torch.serialization.safe_globals(made), path.open("rb") as file, warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about the pickle protocol, which the reader then refuses
                return torch.load(file, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            if not _answer(str(error), kinds):
                raise
    raise pickle.UnpicklingError(f"more than {MOST_TRIES} foreign classes")


def _foreign_names(path: Path) -> set[str]:
    try:
        return set(torch.serialization.get_unsafe_globals_in_checkpoint(str(path)))
    except Exception:  # only torch.save's newer format can be searched; elsewhere each failure tells one name
        return set()


def _answer(message: str, kinds: dict[str, type]) -> bool:
    """Add or change the stand-in that a failure asks for; False where none would help."""
    if match := re.search(r"Unsupported global: GLOBAL (\S+) was not", message):
        name = match[1] if "." in match[1] else f"builtins.{match[1]}"
        if name in kinds:
            return False
        kinds[name] = Inert
        return True
    if match := re.search(rf"Can only (SETITEM|append).*<class '{MODULE}\.([^']+)'>", message):
        kind = InertDict if match[1] == "SETITEM" else InertList
        if kinds.get(match[2]) is kind:
            return False
        kinds[match[2]] = kind
        return True
    return False


def named_tensors(content: object) -> tuple[dict[str, Tensor], Modules]:
    """Every tensor below mappings, sequences and saved modules, by its path with dots; and the saved modules."""
    found: dict[str, Tensor] = {}
    modules: dict[str, tuple[str, Mapping[str, object]]] = {}
    seen: set[int] = set()
    unnamed: dict[str, list[Tensor]] = {}
    dicts: list[dict[str, Tensor]] = []

    def walk(value: object, path: str) -> None:
        if isinstance(value, Inert) and (numbers := numpy_of(value)) is not None and numbers.dtype.kind != "U":
            value = torch.from_numpy(numbers)
        if isinstance(value, Tensor):
            found.setdefault(path, value)
            return
        items = value.state if isinstance(value, Inert) else value
        if isinstance(items, (list, tuple)) and len(items) <= MOST_ITEMS:
            if items and all(isinstance(item, Tensor) for item in items):
                unnamed[path] = list(items)
            items = dict(enumerate(items)) if any(isinstance(item, (Mapping, Inert)) for item in items) else None
        if not isinstance(items, Mapping) or id(items) in seen:
            return
        seen.add(id(items))
        dicts.append({str(key): inner for key, inner in items.items() if isinstance(inner, Tensor)})
        parts = [items]
        if "_parameters" in items and "_modules" in items:
            parts = [items[key] for key in ("_parameters", "_buffers", "_modules") if key in items]
            modules[path] = type(value).__name__, plain(value)
        for part in parts:
            for key, inner in part.items() if isinstance(part, Mapping) else ():
                name = key.decode(errors="replace") if isinstance(key, bytes) else str(key)
                walk(inner, f"{path}.{name}" if path else name)

    walk(content, "")
    for path, tensors in unnamed.items():  # averages in the order of the model's own
        sizes = [tensor.shape for tensor in tensors]
        named = next((own for own in dicts if [tensor.shape for tensor in own.values()] == sizes), {})
        found |= {f"{path}.{key}": tensor for key, tensor in zip(named, tensors, strict=False)}
    return found, modules


def numpy_of(value: Inert) -> np.ndarray | None:
    """The numbers of a NumPy array or scalar, from the bytes that were saved of it; None for anything else."""
    kind, state = type(value).__name__.rpartition(".")[2], value.state
    if kind == "_reconstruct" and isinstance(state, tuple) and len(state) == 5:
        _, shape, dtype, fortran, content = state
    elif kind == "scalar" and len(value.arguments) == 2:
        (dtype, content), shape, fortran = value.arguments, (), False
    else:
        return None
    code = dtype.arguments[0] if isinstance(dtype, Inert) and dtype.arguments else None
    if not isinstance(content, bytes) or not re.fullmatch(r"[fiu][1248]|U\d{1,4}", str(code)):
        return None
    order = dtype.state[1] if isinstance(dtype.state, tuple) else "<"
    numbers = np.frombuffer(content, np.dtype(f"{'>' if order == '>' else '<'}{code}"))
    return numbers.reshape(shape, order="F" if fortran else "C").astype(str(code))


def plain(value: object) -> Any:
    """A value without the classes around it: attributes, lists and texts of JSON as plain ones; of a module its own."""
    if isinstance(value, Inert):
        if (numbers := numpy_of(value)) is not None:
            return numbers.tolist()
        state = value.state
        if not isinstance(state, Mapping):
            return value
        if inner := [state[key] for key in ("_content", "_val") if key in state]:  # OmegaConf's
            return plain(inner[0])
        return {key: inner for key, inner in state.items() if key not in ("_parameters", "_buffers", "_modules")}
    if isinstance(value, Tensor):
        few = 0 < value.numel() <= MOST_COLOURS and value.layout == torch.strided
        return value.flatten().tolist() if few and not (value.is_quantized or value.is_meta) else None
    if isinstance(value, (list, tuple)) and len(value) <= MOST_ITEMS:
        return [plain(item) if isinstance(item, (Inert, Tensor)) else item for item in value]
    if isinstance(value, str) and value[:1] in "{[" and value[-1:] in "}]":
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


def plain_values(content: object) -> dict[str, Any]:
    """Everything beside the tensors by the last part of its name in lower case; of one name the outermost.

    Mappings count as values only where they hold nothing but numbers and texts, such as labels.
    """
    found: dict[str, Any] = {}
    level, seen = [plain(content)], set()
    for _ in range(DEEPEST):
        below = []
        for part in level:
            if not isinstance(part, Mapping) or id(part) in seen:
                continue
            seen.add(id(part))
            for key, value in part.items():
                name = str(key).rpartition(".")[2].lower()
                if (value := plain(value)) is None or NOT_THE_MODELS.search(name):
                    continue
                if not isinstance(value, Mapping) or all(isinstance(inner, (int, str)) for inner in value.values()):
                    found.setdefault(name, value)
                below.append(value)
        level = below
    return found
