"""Checked export: the written file is run beside the model, and the largest difference of their outputs is returned.

ONNX files by onnxruntime, whole or as a backbone; a backbone's folder by stock timm.
"""

import json
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from upvit_core.atomic import replaced
from upvit_core.errors import ExportError
from upvit_core.models.checkpoint import LoadedModel
from upvit_core.models.config import timm_config
from upvit_core.models.retarget import head_parameters
from upvit_core.records.shape import ModelShape
from upvit_core.records.task import refuse_language

OPSET = 20
BACKBONE = "A backbone without a head, and its map, are defined for models of images"
TOLERANCE = 1e-3
CHECK_BATCHES = (1, 3)
LARGEST_BATCH = 1 << 20  # torch 2.7 refuses a batch size without a bound


class Backbone(nn.Module):
    """A model without its head: images to the pooled `features` (B, D) and maps (B, D, H, W), as a detector takes them.

    A ViT gives the map of its last block, normalised; a pyramid one of each stage.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model: Any = model
        self.is_pyramid = not hasattr(model, "blocks")

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        if self.is_pyramid:
            last, maps = self.model.forward_intermediates(images)
        else:
            last, maps = self.model.forward_intermediates(images, indices=1, norm=True)
        return self.model.forward_head(last, pre_logits=True), *maps


def export_backbone_onnx(
    model: nn.Module, shape: ModelShape, path: str | Path, *, tolerance: float = TOLERANCE
) -> dict[str, object]:
    """`export_onnx` without the head: outputs `features` (B, D) and `map` (B, D, H, W), or `map1` … of a pyramid."""
    refuse_language(shape, BACKBONE, "its folder holds all of it")
    backbone = Backbone(model)
    with _evaluating(model), torch.no_grad():
        maps = [tuple(y.shape[1:]) for y in backbone(_noise(shape, 1))[1:]]
    names = ["map"] if len(maps) == 1 else [f"map{i + 1}" for i in range(len(maps))]
    result = export_onnx(backbone, shape, path, tolerance=tolerance, outputs=("features", *names))
    return result | {
        "outputs": {"features": [shape.embed_dim], **{n: list(m) for n, m in zip(names, maps, strict=True)}}
    }


def save_backbone(loaded: LoadedModel, folder: str | Path) -> dict[str, object]:
    """Write `config.json` and `model.safetensors` without the head, for `timm.create_model("local-dir:FOLDER")`.

    Returns `max_abs_difference` of timm's features from the model's. Raises ExportError where stock timm has no model
    of such widths.
    """
    import timm

    refuse_language(loaded.shape, BACKBONE, "its folder holds all of it")
    if not loaded.shape.is_uniform:
        raise ExportError(
            f"{loaded.name} has widths that no class of stock timm builds; export it with --format "
            "onnx, or use load_model and forward_intermediates."
        )
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    state = {key: value.detach().cpu().contiguous() for key, value in loaded.model.state_dict().items()}
    head = head_parameters(list(state))
    config = timm_config(loaded.shape, loaded.pretrained_cfg, loaded.name, None) | {"num_classes": 0}
    config["pretrained_cfg"] = config["pretrained_cfg"] | {"num_classes": 0}
    config = {key: value for key, value in config.items() if not key.startswith("upvit_")}
    with replaced(folder / "model.safetensors") as temporary:
        save_file({k: v for k, v in state.items() if k not in head}, temporary, metadata={"format": "pt"})
    with replaced(folder / "config.json") as temporary:
        temporary.write_text(json.dumps(config, indent=1, ensure_ascii=False), encoding="utf-8")
    images = _noise(loaded.shape, 2)
    with _evaluating(loaded.model) as plain, torch.no_grad():
        opened: Any = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
        difference = (opened(images) - Backbone(plain)(images)[0]).abs().max().item()
    if not difference <= TOLERANCE:
        raise ExportError(f"timm reads {folder} with features that differ by up to {difference:.3g}; do not use it.")
    return {"max_abs_difference": difference, "features": loaded.shape.embed_dim, "stock_timm": True}


def export_onnx(
    model: nn.Module,
    shape: ModelShape,
    path: str | Path,
    *,
    tolerance: float = TOLERANCE,
    outputs: Sequence[str] | None = None,
) -> dict[str, object]:
    """Write one `.onnx` file with a free batch size, input `images` (B, C, H, W), output `logits` (B, classes), or
    `features` (B, D).

    Returns `max_abs_difference` (of the logits, over `checked_images` random images in batches of 1 and 3), `opset`,
    `bytes` and `onnxruntime`. Raises ExportError, and leaves no file, where the difference is more than `tolerance`
    times the largest logit (at least 1), or the export fails. `outputs` names what the model returns, in order.
    """
    refuse_language(
        shape, "ONNX export is defined for models of images",
        "hand on its folder, which transformers opens where the widths allow it (--format timm writes one)",
    )  # fmt: skip
    outputs = outputs or ("features" if shape.features else "logits",)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    example = _noise(shape, 2)
    with replaced(path) as temporary, _evaluating(model) as plain:
        _write(plain, example, temporary, outputs)
        lean(temporary)
        difference, largest, version = _check(plain, shape, temporary, outputs)
        if not difference <= tolerance * max(largest, 1.0):
            raise ExportError(
                f"The exported {path.name} differs from the model by up to {difference:.3g} in its {outputs[0]}, more "
                f"than {tolerance * max(largest, 1.0):.3g}; it was not kept."
            )
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


def _write(model: nn.Module, example: Tensor, path: Path, outputs: Sequence[str]) -> None:
    from timm.layers.config import set_exportable

    logger = logging.getLogger("torch.onnx")
    level = logger.level
    try:
        logger.setLevel(logging.ERROR)
        with set_exportable(True), warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                model, (example,), str(path), dynamo=True, opset_version=OPSET, input_names=["images"],
                output_names=list(outputs), external_data=False,
                dynamic_shapes=({0: torch.export.Dim("batch", max=LARGEST_BATCH)},),
                verbose=False,
            )  # fmt: skip
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ExportError(f"The model could not be exported to ONNX: {reason}") from error
    finally:
        logger.setLevel(level)


def lean(path: Path) -> None:
    """Take out of an ONNX file what does not compute: names, shapes of intermediate values, where code came from.

    The exporter writes a stack trace beside every node, with paths of this machine.
    """
    import onnx

    model = onnx.load(path)
    graph = model.graph
    known = {value.name: value.name for value in (*graph.input, *graph.output)} | {"": ""}
    for node in graph.node:
        node.ClearField("metadata_props")
        node.ClearField("doc_string")
        node.ClearField("name")
        node.input[:], node.output[:] = (
            [known.setdefault(name, f"{len(known):x}") for name in names] for names in (node.input, node.output)
        )
    for tensor in graph.initializer:
        tensor.ClearField("doc_string")
        tensor.name = known.setdefault(tensor.name, f"{len(known):x}")
    for value in (*graph.input, *graph.output):
        value.ClearField("metadata_props")
    graph.ClearField("value_info")
    graph.ClearField("metadata_props")
    model.ClearField("metadata_props")
    onnx.save(model, path)


def _check(model: nn.Module, shape: ModelShape, path: Path, outputs: Sequence[str]) -> tuple[float, float, str]:
    """Largest difference and largest value of the outputs over some images, and the version of onnxruntime."""
    import onnxruntime

    difference, largest = 0.0, 0.0
    try:
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        for count in CHECK_BATCHES:
            images = _noise(shape, count)
            with torch.no_grad():
                expected = model(images)
            expected = expected if isinstance(expected, tuple) else (expected,)
            for given, wanted in zip(session.run(list(outputs), {"images": images.numpy()}), expected, strict=True):
                difference = max(difference, float(np.abs(given - wanted.numpy()).max()))
                largest = max(largest, wanted.abs().max().item())
    except Exception as error:
        raise ExportError(f"onnxruntime cannot run the exported model ({str(error).splitlines()[0]}).") from error
    return difference, largest, onnxruntime.__version__
