"""ONNX export, checked: onnxruntime runs the written file beside the model and the largest logit difference is told."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from upvit_core.errors import ExportError
from upvit_core.models.shape import ModelShape

OPSET = 20
TOLERANCE = 1e-3
CHECK_BATCHES = (1, 3)


def export_onnx(
    model: nn.Module, shape: ModelShape, path: str | Path, *, tolerance: float = TOLERANCE
) -> dict[str, Any]:
    """Write one `.onnx` file with a free batch size, input `images` (B, C, H, W), output `logits` (B, classes).

    Returns `max_abs_difference` (of the logits, over `checked_images` random images in batches of 1 and 3), `opset`,
    `bytes` and `onnxruntime`. Raises ExportError, and leaves no file, where the difference is more than `tolerance`
    times the largest logit (at least 1), or the export fails.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.onnx")
    example = _noise(shape, 2)
    try:
        with _evaluating(model) as plain:
            _write(plain, example, temporary)
            difference, largest, version = _check(plain, shape, temporary)
        if not difference <= tolerance * max(largest, 1.0):
            raise ExportError(
                f"The exported {path.name} differs from the model by up to {difference:.3g} in its logits, more than "
                f"{tolerance * max(largest, 1.0):.3g}; it was not kept."
            )
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return {
        "max_abs_difference": difference, "checked_images": sum(CHECK_BATCHES), "opset": OPSET,
        "bytes": path.stat().st_size, "onnxruntime": version,
    }  # fmt: skip


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[nn.Module]:
    """The model in eval mode on the CPU; its mode and device come back."""
    mode, device = model.training, next(model.parameters()).device
    try:
        yield model.eval().cpu()
    finally:
        model.train(mode).to(device)


def _noise(shape: ModelShape, count: int) -> Tensor:
    generator = torch.Generator().manual_seed(count)
    return torch.randn(count, shape.in_chans, *shape.img_size, generator=generator)


def _write(model: nn.Module, example: Tensor, path: Path) -> None:
    from timm.layers.config import set_exportable

    logger = logging.getLogger("torch.onnx")
    level = logger.level
    try:
        logger.setLevel(logging.ERROR)
        with set_exportable(True), warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                model, (example,), str(path), dynamo=True, opset_version=OPSET, input_names=["images"],
                output_names=["logits"], dynamic_shapes=({0: torch.export.Dim("batch")},), external_data=False,
                verbose=False,
            )  # fmt: skip
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ExportError(f"The model could not be exported to ONNX: {reason}") from error
    finally:
        logger.setLevel(level)


def _check(model: nn.Module, shape: ModelShape, path: Path) -> tuple[float, float, str]:
    """Largest difference and largest logit over some images, and the version of onnxruntime."""
    import onnxruntime

    difference, largest = 0.0, 0.0
    try:
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        for count in CHECK_BATCHES:
            images = _noise(shape, count)
            with torch.no_grad():
                expected = model(images).numpy()
            (given,) = session.run(["logits"], {"images": images.numpy()})
            difference = max(difference, float(np.abs(given - expected).max()))
            largest = max(largest, float(np.abs(expected).max()))
    except Exception as error:
        raise ExportError(f"onnxruntime cannot run the exported model ({str(error).splitlines()[0]}).") from error
    return difference, largest, onnxruntime.__version__
