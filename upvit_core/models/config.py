"""`config.json` beside the weights: ours, timm's, or Hugging Face's; and the preprocessing that goes with a model."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import timm
from timm.models import PretrainedCfg

from upvit_core.errors import CheckpointError, UnsupportedModelError
from upvit_core.files import Json, Values
from upvit_core.limits import MOST_BLOCKS
from upvit_core.models.build import Untyped, shape_of
from upvit_core.models.files import reason
from upvit_core.models.gpt2 import UNEVEN
from upvit_core.models.layout import layout
from upvit_core.records.family import load
from upvit_core.records.shape import Activation, ModelShape
from upvit_core.records.structure import PLAIN

TIMM_MODULES = ("vision_transformer", "deit", "eva", "beit", "pvt_v2")
WEIGHT_SOURCES = ("url", "file", "hf_hub_id", "hf_hub_filename", "source", "state_dict", "custom_load")
CFG_FIELDS = {field.name for field in dataclasses.fields(PretrainedCfg)}
PIL_RESAMPLING = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}
DEIT_CFG: Json = {
    "mean": (0.485, 0.456, 0.406),
    "std": (0.229, 0.224, 0.225),
    "crop_pct": 0.875,
    "crop_mode": "center",
    "interpolation": "bicubic",
}
VIT_CFG: Json = {
    "mean": (0.5,) * 3, "std": (0.5,) * 3, "crop_pct": 1.0, "crop_mode": "squash", "interpolation": "bilinear"
}  # fmt: skip
CLIP_CFG: Json = {
    "mean": (0.48145466, 0.4578275, 0.40821073),
    "std": (0.26862954, 0.26130258, 0.27577711),
    "crop_pct": 1.0,
    "crop_mode": "center",
    "interpolation": "bicubic",
}
TRANSFORMERS = {
    "vit": VIT_CFG,
    "deit": DEIT_CFG,
    "vit_msn": {**DEIT_CFG, "interpolation": "bilinear"},
    "ijepa": VIT_CFG,
    "dinov2": DEIT_CFG,
    "dinov2_with_registers": DEIT_CFG,
    "clip_vision_model": CLIP_CFG,
    "siglip_vision_model": VIT_CFG,
    "siglip2_vision_model": VIT_CFG,
}
"""Preprocessing of the image models of transformers, by type, for folders that do not say theirs."""
BASE = {"num_attention_heads": 12, "image_size": 224}
TOWER_DEFAULTS: dict[str, Json] = {
    "clip_vision_model": BASE | {"hidden_act": "quick_gelu", "layer_norm_eps": 1e-5},
    "siglip_vision_model": BASE | {"hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6},
    "siglip2_vision_model": BASE
    | {
        "image_size": None,
        "num_patches": 256,
        "patch_size": 16,
        "hidden_act": "gelu_pytorch_tanh",
        "layer_norm_eps": 1e-6,
    },
    "dinov2": BASE | {"layer_norm_eps": 1e-6},
    "dinov2_with_registers": BASE | {"layer_norm_eps": 1e-6},
}
"""Settings that a config of transformers leaves out if they are those of its base model."""
CLIP_BASE, CLIP_EPS = "vit_base_patch16_clip_224", 1e-5
"""A name of timm whose norms have CLIP's eps."""
LABELS = ("label_names", "label_descriptions")
CLASSES = (
    "class_names", "classes", "label_names", "id2label", "idx_to_class", "class_to_idx", "label2id", "labels",
)  # fmt: skip
ACTIVATIONS: dict[str, Activation] = {
    "gelu": "gelu", "gelu_python": "gelu", "quick_gelu": "quick_gelu", "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh", "gelu_fast": "gelu_tanh", "gelu_accurate": "gelu_tanh",
}  # fmt: skip
PROCESSORS = ("preprocessor_config.json", "processor_config.json")
BY_SHORTEST_EDGE = re.compile("(Chinese)?CLIP|Bit|ConvNext|Levit|MobileNet|PoolFormer")
"""Processors for whom a size that is one number is the shortest edge, not both sides."""


@dataclass(frozen=True)
class ModelConfig:
    """The content of a `config.json`; `shape` is None where it follows from the tensors (Hugging Face).

    `stated` is what the file itself has, to be held against the tensors.
    """

    shape: ModelShape | None
    heads: int | None = None
    img_size: tuple[int, int] | None = None
    norm_eps: float | None = None
    act: Activation | None = None
    pretrained_cfg: Values | None = None
    images: str = "as config.json says"
    class_names: tuple[str, ...] | None = None
    name: str | None = None
    note: str = ""
    stated: Values = field(default_factory=dict)


def read_json(path: Path) -> Json:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not readable JSON ({reason(error)}); restore it or remove it.") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} holds a JSON {type(values).__name__}, expected an object; restore or remove it.")
    return values


def read_config(folder: Path) -> ModelConfig:
    """Interpret `folder/config.json`.

    Raises CheckpointError where it is malformed, UnsupportedModelError where it names another architecture.
    """
    path = folder / "config.json"
    values = read_json(path)
    try:
        if "upvit_shape" in values:
            return _ours(values)
        if "architecture" in values:
            return _timm(values, folder)
        if "model_type" in values:
            return _hugging_face(values, folder)
    except (TypeError, ValueError, LookupError, AttributeError, AssertionError, RuntimeError, ArithmeticError) as error:
        raise CheckpointError(
            f"{path} is malformed ({reason(error)}); restore it, or give the weights file alone."
        ) from error
    raise CheckpointError(
        f"{path} names no architecture (it has {', '.join(list(values)[:4]) or 'no entries'}; expected upvit_shape, "
        "architecture or model_type); give the weights file alone, or a folder that timm or this project wrote."
    )


def _ours(values: Json) -> ModelConfig:
    shape = ModelShape.from_dict(values["upvit_shape"])
    cfg = values.get("pretrained_cfg")
    if not isinstance(cfg, dict | None):
        raise TypeError("pretrained_cfg is no object")
    if cfg and values.get("label_descriptions"):
        cfg |= {key: values.get(key) for key in LABELS}
    return ModelConfig(shape, pretrained_cfg=cfg, class_names=_labels(values), name=values.get("upvit_name"))


def _timm(values: Json, folder: Path) -> ModelConfig:
    require_vit_name(values["architecture"])
    if int((values.get("model_args") or {}).get("depth") or 1) > MOST_BLOCKS:
        raise ValueError(f"model_args asks for more than {MOST_BLOCKS} blocks")
    model: Untyped = timm.create_model(f"local-dir:{folder}", pretrained=False, device="meta")
    shape = shape_of(model, values["architecture"])
    return ModelConfig(shape, pretrained_cfg=model.pretrained_cfg, class_names=_labels(model.pretrained_cfg))


def _hugging_face(values: Json, folder: Path) -> ModelConfig:
    if isinstance(values.get("vision_config"), dict):  # a tower beside one of texts
        kind, labels = f"{values['model_type']}_vision_model", values.get("id2label")
        values = {"model_type": kind, **values["vision_config"], "id2label": labels}
    values = {**TOWER_DEFAULTS.get(str(values["model_type"]), {}), **values}
    if values["model_type"] not in TRANSFORMERS:
        raise UnsupportedModelError(
            f"{folder} holds a model of type {values['model_type']!r}, which is no ViT that is understood; give one of "
            f"type {', '.join(TRANSFORMERS)}."
        )
    if (act := values.get("hidden_act", "gelu")) not in ACTIVATIONS:
        raise UnsupportedModelError(
            f"{folder} has the activation {act!r}, which is not understood; only {', '.join(ACTIVATIONS)} are."
        )
    size = values["image_size"]
    if size is None and "num_patches" in values:
        size = math.isqrt(values["num_patches"]) * values["patch_size"]
    size = (size, size) if isinstance(size, int) else tuple(map(int, size))
    if len(size) != 2:
        raise ValueError(f"image_size is {values['image_size']}")
    cfg = dict(TRANSFORMERS[values["model_type"]])
    found = next((folder / name for name in PROCESSORS if (folder / name).is_file()), None)
    square = values["model_type"] == "siglip2_vision_model"
    note = "images are resized to squares here; transformers keeps their shape" if square else ""
    if found is None:
        images = f"assumed as usual for a {values['model_type']} of transformers, since {PROCESSORS[0]} is missing"
    else:
        processor = read_json(found)
        prepared, crop = _hugging_face_preprocessing(processor.get("image_processor") or processor, size, cfg)
        cfg, images = cfg | prepared, f"as {found.name} says"
        if crop != size and not note:
            sizes = [f"{height}x{width}" for height, width in (crop, size)]
            note = f"{found.name} prepares images of {sizes[0]}, and config.json says {sizes[1]}, which is taken"
    return ModelConfig(
        shape=None,
        heads=int(values["num_attention_heads"]),
        img_size=size,
        norm_eps=float(values.get("layer_norm_eps", 1e-12)),
        act=ACTIVATIONS[act],
        pretrained_cfg=cfg,
        images=images,
        class_names=class_names_of(values),
        name=folder.name,
        note=note,
        stated=values,
    )


def check_config(config: ModelConfig, shape: ModelShape, source: str) -> None:
    """Raise CheckpointError where a config states another architecture than the tensors have."""
    block = shape.blocks[0]
    facts = {
        "hidden_size": shape.embed_dim,
        "num_hidden_layers": shape.depth,
        "patch_size": shape.patch_size[0],
        "num_channels": shape.in_chans,
        "qkv_bias": shape.qkv_bias,
        "intermediate_size": block.ffn,
        "num_labels": shape.num_classes,
    }
    for name, fact in facts.items():
        said = config.stated.get(name)
        unread = {
            "qkv_bias": shape.features,
            "intermediate_size": "mlp_ratio" in config.stated,
            "num_labels": not shape.classes,
        }.get(name)
        if isinstance(said, int) and said != fact and not unread:
            raise CheckpointError(
                f"config.json says {name} {said}, and the tensors of {source} have {fact}; restore the config, or give "
                "the weights file alone, elsewhere."
            )


def _sides(size: object) -> tuple[int, int]:
    """Height and width of a size in a processor's config: a number, a pair, or by name."""
    if isinstance(size, dict):
        edge = size.get("shortest_edge") or size.get("longest_edge")
        return (edge, edge) if edge else (size["height"], size["width"])
    return (size[0], size[-1]) if isinstance(size, list) else (int(size), int(size))  # type: ignore[call-overload]


def _hugging_face_preprocessing(
    values: Json, img_size: tuple[int, int], defaults: Values
) -> tuple[Json, tuple[int, int]]:
    """An image processor in timm's fields, and the size of its images.

    It resizes to `size` (both sides, or the shortest edge), crops, and scales; null is as if nothing was said.
    """
    values = {key: value for key, value in values.items() if value is not None}
    cfg: Json = {}
    for ours, theirs in (("mean", "image_mean"), ("std", "image_std")):
        if theirs in values:
            cfg[ours] = tuple(values[theirs]) if isinstance(values[theirs], list) else (float(values[theirs]),) * 3
    if values.get("do_normalize", True) is False:
        cfg |= {"mean": (0.0,) * 3, "std": (1.0,) * 3}
    scale = 255 * (values.get("rescale_factor", 1 / 255) if values.get("do_rescale", True) else 1)
    shift = float(bool(values.get("rescale_offset", values.get("offset", False))))  # pixels less 1
    if abs(scale - 1) > 1e-3 or shift:  # pixels reach the model as `scale` times what is usual
        cfg["mean"] = tuple((value + shift) / scale for value in cfg.get("mean") or defaults["mean"])
        cfg["std"] = tuple(value / scale for value in cfg.get("std") or defaults["std"])
    resample: Any = values.get("resample")
    if resample in PIL_RESAMPLING or resample in PIL_RESAMPLING.values():
        cfg["interpolation"] = PIL_RESAMPLING.get(resample, resample)
    if "size" not in values:
        return cfg, img_size
    size, kind = values["size"], str(values.get("image_processor_type") or values.get("feature_extractor_type"))
    by_edge = "shortest_edge" in size if isinstance(size, dict) else bool(BY_SHORTEST_EDGE.match(kind))
    crop = edges = _sides(size)
    cfg["crop_mode"] = "center" if by_edge and not isinstance(size, list) else "squash"
    cfg["crop_pct"] = float(values.get("crop_pct", 1.0))
    if values.get("do_center_crop", False):
        crop = _sides(values["crop_size"]) if "crop_size" in values else img_size
        cfg["crop_pct"] = crop[0] / edges[0]
    return cfg, crop


def class_names_of(values: Values, count: int | None = None) -> tuple[str, ...] | None:
    """The names of `count` classes in a list, or in a mapping from or to their numbers; None where there are none."""
    for key in CLASSES:
        named = values.get(key)
        try:
            if isinstance(named, Mapping):
                by_number = {int(k): v for k, v in named.items()} if key.startswith("id") else {
                    int(v): k for k, v in named.items()
                }  # fmt: skip
                named = [by_number[index] for index in range(len(by_number))]
            if (
                not isinstance(named, list)
                or len(named) != (count or len(named))
                or not all(isinstance(name, str) for name in named)
            ):
                continue
        except (TypeError, ValueError, KeyError):
            continue
        if any(name != f"LABEL_{index}" for index, name in enumerate(named)):
            return tuple(named)
    return None


def _labels(values: Values) -> tuple[str, ...] | None:
    names, words = values.get("label_names"), values.get("label_descriptions") or {}
    if isinstance(names, dict):
        names = [names[key] for key in sorted(names, key=int)]
    return tuple(str(words.get(name, name)) for name in names) if names else None


def require_vit_name(architecture: str) -> None:
    """Raise unless timm knows `architecture` (a tag is ignored) as a Vision Transformer or DeiT."""
    bare = str(architecture).split(".")[0]
    if not timm.is_model(bare):
        raise CheckpointError(f"timm knows no model {architecture!r}; check the name.")
    module = timm.model_entrypoint(bare).__module__.rsplit(".", 1)[-1]
    if module not in TIMM_MODULES:
        raise UnsupportedModelError(
            f"{architecture} is not a Vision Transformer that is understood (timm defines it in {module}); give a ViT, "
            "DeiT or PVTv2, for example deit_small_patch16_224 or pvt_v2_b1."
        )


def complete_cfg(values: Values | None, shape: ModelShape) -> Json:
    """The preprocessing of this very shape, with defaults for what `values` leaves out."""
    cfg: Json = load(shape.architecture.preprocessing)(values, shape)
    return cfg


def image_preprocessing(values: Values | None, shape: ModelShape) -> Json:
    """timm's `pretrained_cfg` with DeiT's values where `values` has none; sources of weights are dropped."""
    cfg = {
        **DEIT_CFG,
        **{key: value for key, value in (values or {}).items() if key in CFG_FIELDS and value is not None},
    }
    for key in (*WEIGHT_SOURCES, "architecture", "tag", "test_input_size", "min_input_size", "label_offset"):
        cfg.pop(key, None)
    try:
        for key in ("mean", "std"):
            channels = tuple(float(value) for value in cfg[key])
            fits = len(channels) == shape.in_chans
            cfg[key] = channels if fits else (sum(channels) / len(channels),) * shape.in_chans
        cfg["crop_pct"] = float(cfg["crop_pct"])
    except (TypeError, ValueError, ZeroDivisionError) as error:
        raise CheckpointError(
            f"The preprocessing of {shape.name} is malformed ({key} is {cfg[key]!r}); restore its config.json."
        ) from error
    return cfg | {
        "input_size": (shape.in_chans, *shape.img_size),
        "fixed_input_size": "pos_embed" in layout(shape),
        "num_classes": shape.num_classes,
        "pool_size": None,
        "first_conv": "patch_embed.proj",
        "classifier": ("head", "head_dist") if shape.distilled else "head",
    }


def timm_config(shape: ModelShape, pretrained_cfg: Values, name: str, class_names: tuple[str, ...] | None) -> Json:
    """The `config.json` of a folder: timm's form, with our shape beside it.

    Where no stock timm model has such widths, it names an architecture that timm refuses as unknown.
    """
    uniform, architecture = shape.is_uniform, shape.architecture
    wanted: Json = load(architecture.arguments)(shape) if uniform else {}
    base, model_args = _stock(shape, wanted) if uniform else (UNEVEN, {})
    cfg = complete_cfg(pretrained_cfg, shape)
    labels: Json = {"label_names": list(class_names) if class_names else None}
    if pretrained_cfg.get("label_descriptions") and _labels(pretrained_cfg) == class_names:
        labels = {key: pretrained_cfg[key] for key in LABELS}  # wnids and their words
    values = {
        "architecture": base,
        "num_classes": shape.num_classes,
        "num_features": shape.embed_dim,
        "global_pool": "map" if shape.structure.pool else "token" if shape.head_tokens else "avg",
        **labels,
        "model_args": model_args,
        "pretrained_cfg": {key: value for key, value in cfg.items() if not key.startswith("label_")},
        "upvit_name": name,
        "upvit_shape": replace(shape, name=name).to_dict(),
    }
    return {key: value for key, value in values.items() if value not in (None, {})}


def _stock(shape: ModelShape, wanted: Json) -> tuple[str, Json]:
    """A name of timm, and the arguments in which a uniform shape differs from it."""
    if shape.structure != PLAIN:
        return shape.structure.timm, wanted
    if shape.norm_eps == CLIP_EPS and shape.family == "vit" and not shape.distilled:  # no argument tells it
        return CLIP_BASE, wanted
    of: Callable[[ModelShape], Json] = load(shape.architecture.arguments)
    bases = {base.name: of(base) for base in load(shape.architecture.stock)(shape).values()}
    base = next((name for name, arguments in bases.items() if arguments == wanted), next(iter(bases)))
    return base, {key: value for key, value in wanted.items() if value != bases[base][key]}
