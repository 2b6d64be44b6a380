"""Read the tensors of one file without ever running code from it: safetensors, or a pickle limited to tensors."""

from __future__ import annotations

import argparse
import pickle
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from upvit_core.errors import CheckpointError
from upvit_core.models.tensors import listed

WRAPPERS = ("model", "state_dict", "model_ema", "state_dict_ema")
SAFETENSORS_HEADER_LIMIT = 100_000_000  # bytes; the format's own
SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")


def load_state_dict_file(path: str | Path) -> dict[str, Tensor]:
    """Tensors by name as the file has them, on the CPU; `{"model": …}` and the like are unwrapped.

    The content decides the format, not the suffix. Raises CheckpointError for anything but a complete file of tensors.
    """
    path = Path(path)
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
            return load_file(path)
        except SafetensorError as error:
            raise CheckpointError(
                f"{path} is a damaged or truncated safetensors file ({reason(error)}); download or copy it again."
            ) from error
    if start.startswith((b"PK\x03\x04", b"\x80")):
        return unwrap(_load_pickle(path), path)
    raise CheckpointError(
        f"{path} is neither a safetensors nor a PyTorch file (it begins with {start[:12]!r}); give one of "
        f"{', '.join(SUFFIXES)}."
    )


def _load_pickle(path: Path) -> object:
    try:
        # DeiT's own training checkpoints carry their command line as a Namespace of plain values.
        with torch.serialization.safe_globals([argparse.Namespace]), path.open("rb") as file:
            return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged bytes can raise anything
        if "TorchScript" in str(error):
            raise CheckpointError(
                f"{path} is a TorchScript program, not weights; save the state dict alone."
            ) from error
        if isinstance(error, pickle.UnpicklingError) and (names := _unsafe_names(path, str(error))):
            raise CheckpointError(
                f"{path} holds more than tensors ({listed(names)}), and nothing in a file is ever run; save its state "
                "dict alone, best as .safetensors."
            ) from error
        raise CheckpointError(
            f"{path} is a damaged or truncated PyTorch file ({reason(error)}); download or copy it again."
        ) from error


def reason(error: Exception) -> str:
    """The first sentence of another library's message, to stand in one of ours."""
    text = re.split(r"[.!?]\s", str(error).strip() + " ")[0].split("\n")[0][:120].rstrip(". ")
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _unsafe_names(path: Path, message: str) -> list[str]:
    """Functions and classes that the pickle would have called."""
    try:
        allowed = "argparse.Namespace"
        names = set(torch.serialization.get_unsafe_globals_in_checkpoint(str(path))) - {allowed}
    except Exception:  # only files of torch.save's newer format can be searched
        names = set(re.findall(r"GLOBAL ([\w.]+)", message))
        if "Unsupported operand" in message:
            names = {"a pickle that torch.save did not write"}
    return sorted(names)


def unwrap(content: object, path: Path) -> dict[str, Tensor]:
    """The state dict inside the content of a checkpoint."""
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, expected tensors by name; save a state dict.")
    inner = (content[wrapper] for wrapper in WRAPPERS if isinstance(content.get(wrapper), Mapping))
    entries: Mapping[object, object] = next(inner, content)
    tensors = {str(key): value for key, value in entries.items() if isinstance(value, Tensor)}
    if not tensors or len(tensors) < len(entries):
        others = [str(key) for key, value in entries.items() if not isinstance(value, Tensor)]
        raise CheckpointError(
            f"{path} holds no state dict: its entries {listed(others) or '(none)'} are not tensors; save the tensors "
            f"by name, flat or under one of {', '.join(WRAPPERS)}."
        )
    return tensors
