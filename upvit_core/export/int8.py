"""ONNX files with 8-bit integer weights, by onnxruntime's own quantiser, judged on images beside the float32 file.

Weights are quantised per output channel, symmetrically. Activations are quantised per tensor: "dynamic" takes their
range from each batch as it comes, so that answers depend a little on the batch, "static" from `CALIBRATION` images,
once. In a dynamic file LayerNorm, softmax, GELU and the products of attention stay in float32.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from upvit_core.atomic import replaced
from upvit_core.data import ImageSet
from upvit_core.errors import ExportError
from upvit_core.evaluation import evaluate, readout_of
from upvit_core.export.onnx import export_onnx, lean
from upvit_core.models.checkpoint import LoadedModel
from upvit_core.profiling.throughput import measure
from upvit_core.records.task import task_of

Int8 = Literal["dynamic", "static"]
CALIBRATION = 200
"""Images from which "static" takes the ranges of activations."""
BATCH = 50
TIMED_SECONDS = 10.0


class OnnxModel(nn.Module):
    """An ONNX file as a module on the CPU: images (B, C, H, W) to its first output."""

    def __init__(self, path: Path) -> None:
        import onnxruntime

        super().__init__()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self.device = nn.Parameter(torch.empty(0), requires_grad=False)

    def forward(self, images: Tensor) -> Tensor:
        return torch.from_numpy(self.session.run(None, {"images": images.numpy()})[0])


def export_int8(
    loaded: LoadedModel, path: str | Path, kind: Int8, test: ImageSet, calibration: ImageSet, images: int | None = None
) -> dict[str, object]:
    """Write one `.onnx` file with 8-bit weights, and measure in onnxruntime what that costs and wins.

    Returns `bytes`, the measure of the task (`top1` in percent) on the first `images` of `test` (all by default), `kl`
    (mean nats an image, KL(float32 || int8)) and `images_per_s`; with the suffix `_float32` the same of the float32
    file. Both run and are timed in turns on batches of `batch_size`. `calibration` is read for "static" alone. Raises
    ExportError where the model cannot be exported or quantised; no file is left then.
    """
    path = Path(path)
    with TemporaryDirectory() as folder, _quiet():
        plain = Path(folder) / "float32.onnx"
        exported = export_onnx(loaded.model, loaded.shape, plain)
        with replaced(path) as temporary:
            try:
                _quantise(plain, temporary, kind, calibration)
                models = [OnnxModel(temporary), OnnxModel(plain)]
            except Exception as error:
                raise ExportError(f"onnxruntime cannot quantise the model ({str(error).splitlines()[0]}).") from error
            values = _compared(loaded, models, test, images, calibration)
        sizes = {"bytes": path.stat().st_size, "bytes_float32": exported["bytes"]}
    return {"int8": kind, **sizes, **values, "onnxruntime": exported["onnxruntime"]}


def _quantise(plain: Path, path: Path, kind: Int8, images: ImageSet) -> None:
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_dynamic, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    if kind == "dynamic":
        quantize_dynamic(plain, path, weight_type=QuantType.QInt8, per_channel=True)
    else:
        batches = (pixels.numpy() for pixels, _ in images.batches(BATCH, indices=_spread(images)))

        class Reader(CalibrationDataReader):
            def get_next(self) -> dict[str, np.ndarray] | None:
                return next(({"images": batch} for batch in batches), None)

        prepared = plain.with_name("prepared.onnx")
        quant_pre_process(str(plain), str(prepared), skip_symbolic_shape=True)
        quantize_static(prepared, path, Reader(), weight_type=QuantType.QInt8, per_channel=True)
    _without_zero_points(path)
    lean(path)


def _without_zero_points(path: Path) -> None:
    """Leave out the zero points of symmetric weights, which are zeros, as the operators take them by default."""
    import onnx
    from onnx.numpy_helper import to_array

    model = onnx.load(path)
    zeros = {tensor.name for tensor in model.graph.initializer if not to_array(tensor).any()}
    for node in model.graph.node:
        if node.op_type in ("MatMulInteger", "ConvInteger") and len(node.input) == 4 and node.input[3] in zeros:
            del node.input[3]
    used = {name for node in model.graph.node for name in node.input}
    kept = [tensor for tensor in model.graph.initializer if tensor.name in used]
    model.graph.ClearField("initializer")
    model.graph.initializer.extend(kept)
    onnx.save(model, path)


def _spread(images: ImageSet) -> range:
    """Indices of `CALIBRATION` images over the whole set, which may be sorted by class."""
    return range(0, len(images), max(1, len(images) // CALIBRATION))[:CALIBRATION]


def _compared(
    loaded: LoadedModel, models: list[OnnxModel], test: ImageSet, images: int | None, train: ImageSet
) -> dict[str, object]:
    task, readout = task_of(loaded.shape), readout_of(loaded.shape, train, test)
    indices = range(len(test))[:images]
    values: dict[str, Any] = {}
    for suffix, model in zip(("", "_float32"), models, strict=True):
        teacher = models[1] if model is models[0] else None
        result = evaluate(model, test.batches(BATCH, indices=indices), teacher=teacher, readout=readout)
        values[f"{task.key}{suffix}"] = task.value(result)
        if teacher is not None:
            values |= {"kl": result.kl, task.samples: result.images}
    batch = next(islice(test.batches(BATCH, indices=indices), 1))[0]
    for suffix, speed in zip(("", "_float32"), measure(models, batch, seconds=TIMED_SECONDS), strict=True):
        values[f"images_per_s{suffix}"] = speed.images_per_s
    return values | {"batch_size": len(batch), "threads": torch.get_num_threads()}


@contextmanager
def _quiet() -> Iterator[None]:
    """The quantiser warns through the root logger that a model might be prepared first."""
    root, level = logging.getLogger(), logging.getLogger().level
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(level)
