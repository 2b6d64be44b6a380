"""Read files of torch.save: tensors and plain values are built, every other object is replaced by an inert stand-in.

torch's own weights-only reader does the reading and runs no code from the file; it refuses classes that it does not
know. Here each of them is answered for by an empty class, so that tensors beside them can be read.
"""

from __future__ import annotations

import pickle
import re
import threading
import warnings
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

MOST_TRIES = 500
MODULE = "stand_in"
_lock = threading.Lock()  # torch keeps the allowed classes in one set for the whole process


class Inert:
    """Stands for an object of a foreign class; `state` is what was saved of its attributes."""

    state: object = None

    def __new__(cls, *_: object) -> Inert:
        return super().__new__(cls)

    def __init__(self, *_: object) -> None:
        pass

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


def named_tensors(content: object) -> dict[str, Tensor]:
    """Every tensor below mappings and saved modules, by its path with dots."""
    found: dict[str, Tensor] = {}
    seen: set[int] = set()

    def walk(value: object, path: str) -> None:
        if isinstance(value, Tensor):
            found.setdefault(path, value)
            return
        items = value.state if isinstance(value, Inert) else value
        if not isinstance(items, Mapping) or id(items) in seen:
            return
        seen.add(id(items))
        module = "_parameters" in items and "_modules" in items
        parts = [items[key] for key in ("_parameters", "_buffers", "_modules") if key in items] if module else [items]
        for part in parts:
            for key, inner in part.items() if isinstance(part, Mapping) else ():
                walk(inner, f"{path}.{key}" if path else str(key))

    walk(content, "")
    return found


def plain_values(content: object, *names: str) -> dict[str, object]:
    """The attributes or items of the first of `names` that a file has at its top, such as a run's `args`."""
    for name in names:
        value = content.get(name) if isinstance(content, Mapping) else None
        value = value.state if isinstance(value, Inert) else value
        if isinstance(value, Mapping):
            return {str(key): inner for key, inner in value.items()}
    return {}
