"""Read any accepted checkpoint into a live model, and write folders that the stock library opens too."""

from __future__ import annotations

import difflib
import json
import os.path
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from upvit_core.atomic import replaced
from upvit_core.errors import CheckpointError, UnsupportedModelError
from upvit_core.files import Json, Values
from upvit_core.models.build import Untyped, build_model, canonical, live_tensors, shape_of, with_state
from upvit_core.models.config import (
    TIMM_MODULES,
    ModelConfig,
    check_config,
    complete_cfg,
    read_config,
    read_json,
    require_vit_name,
)
from upvit_core.models.files import (
    SUFFIXES,
    is_zipped_folder,
    model_folder,
    read_contents,
    reason,
    unzipped,
    weights_of,
)
from upvit_core.models.gpt2 import gpt2_names, shape_of_config
from upvit_core.models.heads import Numbers, assumed_heads, counted, given_heads, numbers_of, with_heads
from upvit_core.models.hub import fetch
from upvit_core.models.keys import Found, find_model
from upvit_core.models.names import FORMS, MULTIHEAD
from upvit_core.models.preprocessing import Colours, as_modules_say, chosen_cfg, settings_of_run, size_of_run
from upvit_core.models.pvt_build import is_pvt, shape_of_pvt_tensors
from upvit_core.models.recognition import Recognition
from upvit_core.models.resize import at_size
from upvit_core.models.tensors import check_tensors, digest_of, shape_of_tensors
from upvit_core.models.unpickle import plain_values
from upvit_core.paths import DEMO_FOLDER, place_of
from upvit_core.records.family import load
from upvit_core.records.known_shapes import PvtVariant, pvt_shape
from upvit_core.records.shape import ModelShape
from upvit_core.records.source import Source, sides_of

__all__ = ["LoadedModel", "build_model", "load_model", "save_model", "shape_of"]

TOKENIZER = "tokenizer.json"
Size = tuple[int, int] | None
"""Height and width of images, where somebody gave them."""


@dataclass(frozen=True)
class LoadedModel:
    """A model in eval mode and float32, with its origin.

    `digest` covers the weights and what no tensor holds (head counts, eps); it is empty for random weights.
    `recognised` tells what was found in the source and what was assumed.
    """

    model: nn.Module
    shape: ModelShape
    name: str
    source: str
    digest: str
    has_weights: bool
    recognised: Recognition
    pretrained_cfg: Json
    class_names: tuple[str, ...] | None


@dataclass(frozen=True)
class _Opened:
    """Tensors in timm's names (None: to be drawn by seed), the shape that they must have, and what came with them."""

    tensors: dict[str, Tensor] | None
    shape: ModelShape
    recognised: Recognition
    cfg: Values | None
    class_names: tuple[str, ...] | None
    name: str


def load_model(
    source: str | Path | Source,
    *,
    num_heads: Numbers = None,
    head_dim: Numbers = None,
    weights: str | None = None,
    mean: Colours = None,
    std: Colours = None,
    pretrained: bool = True,
    device: torch.device | str = "cpu",
    seed: int = 0,
    img_size: int | tuple[int, int] | None = None,
) -> LoadedModel:
    """Open `demo`, a folder, a file, `hf-hub:owner/name`, or a timm model name; no code from a file is run.

    `num_heads` or `head_dim` (one number or one a block) replace the head counts, which no tensor holds; `weights`
    chooses by name among several state dicts in a file; `mean` and `std` (one number or one a colour) replace those of
    normalisation. `img_size` (a side, or height and width) replaces the image size; timm then resamples the position
    embedding, bicubic. Each of these may stand in the source too, as `Source` writes them. With `pretrained=False` a
    timm name gets random weights by `seed`. Raises CheckpointError or UnsupportedModelError with one sentence.
    """
    asked = source if isinstance(source, Source) else Source.parse(str(source).strip())
    text = asked.path
    size = (img_size, img_size) if isinstance(img_size, int) else img_size or sides_of(asked.size)
    opened = _open(text, weights or asked.weights or None, pretrained, sides_of(asked.size) or size)
    shape, recognised = replace(opened.shape, name=opened.name), opened.recognised
    heads, dims = (
        numbers_of(num_heads or asked.heads or None, "heads"),
        numbers_of(head_dim or asked.head_dim or None, "channels a head"),
    )
    if given := given_heads(shape, heads, dims, text):
        said = f"{', '.join(map(str, given))}, as given"
        shape, recognised = with_heads(shape, given, text), replace(recognised, heads=said, heads_assumed=False)
    elif not recognised.heads:
        assumed, why = assumed_heads(shape, text)
        shape, recognised = with_heads(shape, assumed, text), replace(recognised, heads=why, heads_assumed=True)
    if size is not None:
        tensors, shape = at_size(opened.tensors, shape, (size[0], size[1]))
        opened = replace(opened, tensors=tensors)
    names = opened.class_names
    if names and shape.num_classes and len(names) != shape.num_classes:
        told = f"the names of {len(names):,} classes beside it are left out, since the model has {shape.num_classes:,}"
        recognised = replace(recognised, config="; ".join(filter(None, (recognised.config, told))))
    cfg, recognised = chosen_cfg(opened.cfg, mean or asked.mean, std or asked.std, recognised)
    cfg = complete_cfg(cfg, shape)
    if opened.tensors is None:
        model, digest = build_model(shape, seed=seed), ""
    else:
        check_tensors(opened.tensors, shape, text)
        # Copied, because safetensors maps the file itself into memory.
        state = {key: tensor.to(torch.float32, copy=True) for key, tensor in opened.tensors.items()}
        model, digest = with_state(shape, state), digest_of(state, shape)
    model.pretrained_cfg = model.default_cfg = cfg  # type: ignore[assignment]
    return LoadedModel(
        model=model.eval().to(device),
        shape=shape,
        name=opened.name,
        source=str(replace(asked, path=text)),
        digest=digest,
        has_weights=opened.tensors is not None,
        recognised=recognised,
        pretrained_cfg=cfg,
        class_names=names if names and len(names) == shape.num_classes else None,
    )


def _open(text: str, weights: str | None, pretrained: bool, size: Size) -> _Opened:
    if not text:
        raise CheckpointError("No model was given; type demo, a timm name, a file, a folder, or hf-hub:owner/name.")
    if text == "demo":
        if not (DEMO_FOLDER / "config.json").is_file():
            raise CheckpointError(
                f"The demo model is missing ({DEMO_FOLDER} has no config.json); restore the folder from the "
                "repository, or make it again with `python -m upvit_core demo train`."
            )
        return _open_folder(DEMO_FOLDER, weights, size)
    prefix, _, rest = text.partition(":")
    if prefix in ("hf-hub", "hf_hub"):
        opened = _open_folder(fetch(rest), weights, size)
        return replace(opened, name=_human_name(rest.partition("@")[0], opened.shape))
    path = place_of(text)
    if os.path.isdir(path):  # unlike Path's methods, no error for a name that is too long
        return _open_folder(path, weights, size)
    if os.path.exists(path):
        if is_zipped_folder(path):
            with unzipped(path) as folder:
                return replace(_open_folder(folder, weights, size), name=path.stem)
        return _open_file(path, weights, size)
    if prefix in ("http", "https"):
        of_hub = re.match(r"https?://(?:www\.)?huggingface\.co/([\w.-]+/[\w.-]+)/?$", text)
        advice = f"give hf-hub:{of_hub[1]}" if of_hub else "download it and give the file"
        raise CheckpointError(f"{text} is an address, and none is opened; {advice}.")
    if prefix == "local-dir" or any(mark in text for mark in "/\\") or path.suffix in SUFFIXES:
        like_hub = text.count("/") == 1 and path.suffix not in SUFFIXES
        hint = f", or hf-hub:{text} if it is on the hub" if like_hub else ""
        raise CheckpointError(f"{path} does not exist; give a file or folder that does{hint}.")
    return _open_timm(text, weights, pretrained, size)


def _open_folder(folder: Path, wanted: str | None, given: Size) -> _Opened:
    folder = model_folder(folder)
    weights = weights_of(folder)
    if not (folder / "config.json").is_file():
        return _open_file(weights, wanted, given)
    if read_json(folder / "config.json").get("model_type") == "gpt2":
        return _describe_language(folder, weights)
    return _describe(weights, read_config(folder), wanted, folder.name, given)


def _describe_language(folder: Path, weights: Path) -> _Opened:
    """A folder of `transformers` that holds a GPT-2 and the tokenizer for its texts."""
    values = read_json(folder / "config.json")
    try:
        ours = values.get("upvit_shape")
        shape = ModelShape.from_dict(ours) if ours else shape_of_config(values, folder.name)
    except (TypeError, ValueError, LookupError, ArithmeticError, AttributeError) as error:
        raise CheckpointError(f"{folder}/config.json is malformed ({reason(error)}); restore it.") from error
    tokenizer = folder / TOKENIZER
    try:
        cfg = {"tokenizer": tokenizer.read_text(encoding="utf-8")} if tokenizer.is_file() else {}
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{tokenizer} is not readable text ({reason(error)}); restore it.") from error
    tensors = gpt2_names(read_contents(weights).tensors)
    recognised = Recognition("a GPT-2 of transformers", heads="as config.json says")
    return _Opened(tensors, shape, recognised, cfg, None, str(values.get("upvit_name") or folder.name))


def _open_file(path: Path, wanted: str | None, given: Size) -> _Opened:
    """A file alone; a `config.json` beside it counts only if it describes these tensors, which is told."""
    beside = ""
    if (path.parent / "config.json").is_file():
        try:
            config = read_config(path.parent)
            opened = _describe(path, config, wanted, path.stem, given)
            if opened.tensors is not None:
                check_tensors(opened.tensors, opened.shape, str(path))
            return opened
        except (CheckpointError, UnsupportedModelError) as error:
            read_json(path.parent / "config.json")  # raises where it is malformed; one about another model is ignored
            beside = f"the config.json beside it was left out, since it does not fit ({str(error).split(';')[0]})"
    opened = _describe(path, ModelConfig(None), wanted, path.stem.removesuffix(".pth"), given)
    return replace(opened, recognised=replace(opened.recognised, config=beside))


def _describe(path: Path, config: ModelConfig, wanted: str | None, name: str, given: Size) -> _Opened:
    contents = read_contents(path)
    known = config.shape is not None
    found = find_model(contents.tensors, str(path), wanted, known=known, modules=contents.modules)
    where = str(path) if found.form is FORMS[0] else f"{path} (in {found.form.name})"
    modules = {key: value for key, value in contents.modules.items() if f"{key}.".startswith(found.prefix)}
    settings = {**contents.settings, **plain_values(modules.get(found.prefix.rstrip("."), ("", {}))[1])}
    size = config.img_size or size_of_run(settings, found.tensors) or size_of_run({"img_size": given}, found.tensors)
    shape = config.shape or _shape_of(found, replace(config, img_size=size), where)
    if config.shape is None and config.act is None:
        shape = as_modules_say(shape, modules, settings if found.form is MULTIHEAD else {}, where)
    check_config(config, shape, where)
    run = settings_of_run(settings, modules, shape)
    recognised = replace(Recognition.of(found), config=config.note)
    if config.shape is None and size is None:
        sides = " by ".join(map(str, shape.img_size))
        apart = ", and positions those of patches alone" if shape.no_embed_class and not shape.num_reg_tokens else ""
        recognised = replace(
            recognised, size=f"images are taken to be square, {sides}{apart}, since the file does not say"
        )
    if run.average and config.shape is None and found.form is FORMS[0] and shape.head_tokens == 1:
        shape = replace(shape, head_tokens=0)
        recognised = recognised.assuming("its classifier reads the mean over patches, as the settings say")
    if config.shape is not None or config.heads is not None:
        recognised = replace(recognised, heads="as config.json says")
    elif found.heads is not None:
        shape, recognised = (
            with_heads(shape, (found.heads,), str(path)),
            replace(recognised, heads="as its arrays show"),
        )
    elif run.heads:
        shape = with_heads(shape, run.heads, str(path))
        recognised = replace(recognised, heads=f"{counted(run.heads)}, {run.heads_said}")
    if config.shape is None and config.act is None and shape.pre_norm:
        said = "GELU, where those of OpenAI's CLIP are QuickGELU, and its features to be the class token's"
        recognised = recognised.assuming(f"activations are taken to be {said}")
    if config.shape is None and config.act is None and shape.structure.pool and shape.act == "gelu":
        said = "GELU, where those of SigLIP 2 are its tanh form"
        recognised = recognised.assuming(f"activations are taken to be {said}")
    if config.pretrained_cfg is not None:
        cfg, images = config.pretrained_cfg, config.images
    else:
        cfg, images = {**found.form.cfg, **run.cfg}, run.images
        images = images or f"assumed ({found.form.images}), since the file says nothing"
    return _Opened(
        canonical(found.tensors, shape),
        shape,
        replace(recognised, images=images, images_assumed=images.startswith("assumed")),
        cfg,
        config.class_names or run.class_names,
        config.name or _human_name(name, shape),
    )


def _shape_of(found: Found, config: ModelConfig, source: str) -> ModelShape:
    """The architecture that the tensors show, with what a config without shape adds."""
    eps = found.form.norm_eps if config.norm_eps is None else config.norm_eps
    read = shape_of_pvt_tensors if is_pvt(found.tensors) else shape_of_tensors
    shape = read(found.tensors, source, img_size=config.img_size, norm_eps=eps)
    act = config.act or ("gelu_tanh" if found.form.name.endswith("SigLIP") else shape.act)
    act = shape.act if shape.structure.gate else act
    structure = replace(shape.structure, pixel_norm=found.form.pixel_norm)
    shape = replace(shape, features=shape.features or found.form.features, act=act, structure=structure)
    is_clip = shape.pre_norm and found.form.features
    if is_clip and "norm.weight" not in found.tensors:  # transformers' classifier, which reads what the last norm would
        shape = replace(shape, features=False, head_tokens=0, final_norm=False)
    return shape if config.heads is None else with_heads(shape, (config.heads,), source)


def _open_timm(name: str, wanted: str | None, pretrained: bool, size: Size) -> _Opened:
    if not timm.is_model(name.split(".")[0]):
        known = [model for module in TIMM_MODULES for model in timm.list_models(module=module)]
        near = difflib.get_close_matches(name.lower(), known, n=3, cutoff=0.5)
        raise CheckpointError(
            f"{name!r} is neither a file nor a model that timm knows; "
            + (f"did you mean {' or '.join(near)}?" if near else "give for example deit_small_patch16_224.")
        )
    require_vit_name(name)
    try:
        bare: Untyped = timm.create_model(name, pretrained=False, device="meta")
    except RuntimeError as error:
        raise CheckpointError(
            f"{name!r} cannot be opened by timm ({reason(error)}); check the tag after the dot."
        ) from error
    shape, cfg = shape_of(bare, name), bare.pretrained_cfg
    tensors = None
    if pretrained:
        if not any(cfg.get(key) for key in ("hf_hub_id", "url", "file")):
            raise CheckpointError(f"timm has no weights for {name!r}; open it without weights, for costs only.")
        if cfg.get("hf_hub_id") and not cfg.get("hf_hub_filename") and not cfg.get("custom_load"):
            try:
                folder = fetch(cfg["hf_hub_id"])
            except CheckpointError as error:
                raise CheckpointError(f"{str(error)[:-1]}; or open {name} without weights, for costs only.") from error
            return replace(_open_folder(folder, wanted, size), name=_human_name(name, shape))
        try:
            with torch.random.fork_rng(devices=[]):
                tensors = live_tensors(timm.create_model(name, pretrained=True))
        except Exception as error:  # timm raises whatever its download or its file gave
            raise CheckpointError(
                f"The weights of {name!r} cannot be fetched ({reason(error)}); connect, or open it "
                "without weights, for costs only."
            ) from error
    names = cfg.get("label_names")
    recognised = Recognition(f"{name} of timm", heads="as timm defines them", images="as timm defines them")
    return _Opened(tensors, shape, recognised, cfg, tuple(names) if names else None, _human_name(name, shape))


def _human_name(name: str, shape: ModelShape) -> str:
    """`DeiT-B` for a file or model called deit_base… of that width, else the name itself."""
    last = name.rstrip("/").rsplit("/", 1)[-1]
    if match := re.match(r"(?:deit|DeiT)[_-](?:distilled[_-])?(tiny|small|base)(?![a-z])", last):
        letter, width = {"tiny": ("T", 192), "small": ("S", 384), "base": ("B", 768)}[match[1]]
        if shape.is_uniform and (shape.embed_dim, shape.depth) == (width, 12):
            pixels = f" {shape.img_size[0]}" if shape.img_size != (224, 224) else ""
            return f"DeiT-{letter}{' distilled' if shape.distilled else ''}{pixels}"
    if match := re.match(r"pvt_v2_(b2_li|b[0-5])(?![a-z0-9])", last):
        stock = pvt_shape(cast(PvtVariant, match[1]))
        if (shape.embed_dims, shape.depths) == (stock.embed_dims, stock.depths):
            return f"PVTv2-{match[1].upper().replace('_', '-')}"
    return last


def save_model(
    model: nn.Module,
    folder: str | Path,
    *,
    shape: ModelShape,
    pretrained_cfg: Values,
    plan_json: str | None = None,
    name: str,
    class_names: tuple[str, ...] | None = None,
) -> None:
    """Write `config.json`, `model.safetensors` and, where given, `plan.json`; each is replaced whole, config last.

    Stock timm opens the folder as `local-dir:FOLDER` where `shape.is_uniform`. Raises CheckpointError where the model's
    tensors are not those of `shape`, or are not finite.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    state = {key: tensor.detach().to("cpu", torch.float32).contiguous() for key, tensor in model.state_dict().items()}
    check_tensors(state, shape, name)
    with replaced(folder / "model.safetensors") as temporary:
        save_file(state, temporary, metadata={"format": "pt"})
    if plan_json is None:
        (folder / "plan.json").unlink(missing_ok=True)
    else:
        with replaced(folder / "plan.json") as temporary:
            temporary.write_text(plan_json, encoding="utf-8")
    if pretrained_cfg.get("tokenizer"):
        with replaced(folder / TOKENIZER) as temporary:
            temporary.write_text(str(pretrained_cfg["tokenizer"]), encoding="utf-8")
    with replaced(folder / "config.json") as temporary:
        config = load(shape.architecture.config)(shape, pretrained_cfg, name, class_names)
        temporary.write_text(json.dumps(config, indent=1, ensure_ascii=False), encoding="utf-8")
