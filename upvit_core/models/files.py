"""Read the tensors of one file without ever running code from it: safetensors, or a pickle limited to tensors."""

from __future__ import annotations

import argparse
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from upvit_core.errors import CheckpointError
from upvit_core.models.tensors import listed

WRAPPERS = ("model", "state_dict", "model_ema", "state_dict_ema")
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
    if start.startswith((b"PK\x03\x04", b"\x80")):
        return unwrap(_load_pickle(path), path)
    if start[8:9] == b"{":
        try:
            return load_file(path)
        except SafetensorError as error:
            raise CheckpointError(
                f"{path} is a damaged or truncated safetensors file ({error}); download or copy it again."
            ) from error
    raise CheckpointError(
        f"{path} is neither a safetensors nor a PyTorch file (it begins with {start[:12]!r}); give one of "
        f"{', '.join(SUFFIXES)}."
    )


def _load_pickle(path: Path) -> Any:
    try:
        # DeiT's own training checkpoints carry their command line as a Namespace of plain values.
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "Unsupported" not in str(error) and "weights_only" not in str(error).lower():
            raise _damaged(path, error) from error
        try:
            names = torch.serialization.get_unsafe_globals_in_checkpoint(str(path))
        except Exception:
            names = []
        raise CheckpointError(
            f"{path} holds more than tensors ({listed(sorted(names)) or 'code or foreign objects'}), and nothing in a "
            "file is ever run; save its state dict alone, best as .safetensors."
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> CheckpointError:
    reason = str(error).strip().splitlines()[0][:120] if str(error).strip() else type(error).__name__
    return CheckpointError(f"{path} is a damaged or truncated PyTorch file ({reason}); download or copy it again.")


def unwrap(content: Any, path: Path) -> dict[str, Tensor]:
    """The state dict inside what a training script saved."""
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, expected tensors by name; save a state dict.")
    for wrapper in WRAPPERS:
        if isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
            break
    tensors = {str(key): value for key, value in content.items() if isinstance(value, Tensor)}
    if not tensors or len(tensors) < len(content):
        others = [str(key) for key, value in content.items() if not isinstance(value, Tensor)]
        raise CheckpointError(
            f"{path} holds no state dict: its entries {listed(others) or '(none)'} are not tensors; save the tensors "
            f"by name, flat or under one of {', '.join(WRAPPERS)}."
        )
    return tensors
