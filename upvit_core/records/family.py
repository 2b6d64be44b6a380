"""The registry of architectures: facts about each, and the address of every part that is written for it alone.

Everything else goes by `ModelShape.groups`, so no other module asks which architecture it has. Parts are named as
`module:name` inside `upvit_core` and imported when first used, so that planning and pages need no torch. To add one:

1. `records/shape.py`: the fields that its widths need, with defaults that older records can leave out;
   `records/known_shapes.py`: the shapes that its library has names for;
2. a file in `models/`: `layout` (its tensors, without torch), `build`, `arguments`, a reader of live models, an adapter
   that extends `TransformerAdapter`; the module of timm that defines it in `TIMM_MODULES` of `models/config.py`;
   `models/keys.py` and `models/checkpoint.py` where its files name the tensors in another way;
3. functions for the other fields of `Family`; the ones that exist serve wherever they are true of it (GPT-2 and ViT
   share the multiply-accumulates of a block). What it cannot do gets a function that refuses in one sentence;
4. its entry in `FAMILIES`. Every field is required, and `tests/records/test_family.py` resolves each address.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from importlib import import_module
from typing import Any, Literal


@dataclass(frozen=True, kw_only=True)
class Family:
    """One architecture; fields with an address say in their comment how the part is called."""

    title: str
    task: Literal["images", "text"]
    library: Literal["timm", "transformers"]
    has_directions: bool  # the residual can be rotated, and directions cut in place of channels
    one_share: bool  # a plan takes one share of a component from all blocks; elsewhere each may have other widths
    preset: str  # the training preset to start from; empty: it depends on repair and size
    ffn_kept: int  # results as wide as the FFN that training keeps for the backward pass
    ffn_passing: int  # and those that exist for a moment during it

    tokens: str  # (shape, block) -> tokens of a block, and tokens that its queries attend to
    stock: str  # (shape) -> the library's named shapes of the same kind, by the name to show
    layout: str  # (shape) -> every tensor by name
    stem: str  # (shape, block) -> the beginning of the names of a block's tensors
    live: Mapping[str, str]  # class of a live model -> (model, name) -> shape
    arguments: str  # (shape) -> what the library's class takes for a uniform shape
    build: str  # (shape, *, weight_init, drop_path_rate, device) -> model
    adapter: str  # (model, shape) -> Adapter
    resize: str  # (tensors or None, shape, img_size) -> tensors for inputs of that size
    preprocessing: str  # (what is known, shape) -> the complete pretrained_cfg
    config: str  # (shape, pretrained_cfg, name, class_names) -> config.json
    parameters: str  # (shape) -> number of weights
    end_macs: str  # (shape) -> multiply-accumulates outside the blocks
    block_macs: str  # (shape, block) -> multiply-accumulates of attention and of FFN
    activations: str  # (shape, batch) -> numbers that a forward pass holds at its peak
    latency: str  # (shape, batch, calibration) -> its estimate in parts
    calibration: str  # (shape) -> the models that one calibration holds for
    bench: str  # (device, dtype, clock, shape) -> Bench
    repair: str  # (student, original, plan, batches, report, *, stats, basis) -> LayerwiseRepair
    diagram: str  # (shape, theme, after, *, emphasis, height) -> Chart


VIT = Family(
    title="ViT",
    task="images",
    library="timm",
    has_directions=True,
    one_share=False,
    preset="",
    ffn_kept=2,
    ffn_passing=1,
    tokens="records.shape:plain_tokens",
    stock="records.known_shapes:deit_shapes",
    layout="models.layout:vit_layout",
    stem="models.layout:vit_stem",
    live={
        "timm.models.vision_transformer:VisionTransformer": "models.vit_build:shape_of_vit",
        "timm.models.deit:VisionTransformerDistilled": "models.vit_build:shape_of_vit",
    },
    arguments="models.vit_build:timm_arguments",
    build="models.vit_build:build_vit",
    adapter="models.vit:ViTAdapter",
    resize="models.resize:resample_positions",
    preprocessing="models.config:image_preprocessing",
    config="models.config:timm_config",
    parameters="profiling.macs:vit_parameters",
    end_macs="profiling.macs:vit_ends",
    block_macs="profiling.macs:plain_block",
    activations="profiling.memory:vit_activations",
    latency="profiling.latency:Latency",
    calibration="profiling.calibration:vit_scope",
    bench="profiling.bench:Bench",
    repair="pruning.repair.families:ViTRepair",
    diagram="figures.model_diagram:draw_plain",
)
EVA = replace(
    VIT,
    title="EVA",
    has_directions=False,
    stock="models.eva:eva_shapes",
    layout="models.layout:eva_layout",
    live={
        "timm.models.eva:Eva": "models.eva:shape_of_eva",
        "timm.models.beit:Beit": "models.eva:shape_of_eva",
    },
    arguments="models.eva:timm_arguments",
    build="models.eva:build_eva",
    adapter="models.eva:EvaAdapter",
    resize="models.eva:resample_eva",
)
PVT = Family(
    title="PVTv2",
    task="images",
    library="timm",
    has_directions=False,
    one_share=True,
    preset="",
    ffn_kept=4,  # a depthwise convolution keeps its input twice (as a map too)
    ffn_passing=2,
    tokens="records.shape:reduced_tokens",
    stock="records.known_shapes:pvt_shapes",
    layout="models.layout:pvt_layout",
    stem="models.layout:pvt_stem",
    live={"timm.models.pvt_v2:PyramidVisionTransformerV2": "models.pvt_build:shape_of_pvt"},
    arguments="models.pvt_build:timm_arguments",
    build="models.pvt_build:build_pvt",
    adapter="models.pvt:PVTAdapter",
    resize="models.pvt_build:check_resized",
    preprocessing="models.config:image_preprocessing",
    config="models.config:timm_config",
    parameters="models.layout:count_in_layout",
    end_macs="profiling.macs:pvt_ends",
    block_macs="profiling.macs:pvt_block",
    activations="profiling.memory:pvt_activations",
    latency="profiling.latency:PyramidLatency",
    calibration="profiling.calibration:pvt_scope",
    bench="profiling.bench_pyramid:PyramidBench",
    repair="pruning.repair.families:PVTRepair",
    diagram="figures.model_diagram_stages:draw_stages",
)
GPT2 = Family(
    title="GPT-2",
    task="text",
    library="transformers",
    has_directions=False,
    one_share=False,
    preset="language",
    ffn_kept=5,  # its GELU is written out of several operations
    ffn_passing=2,
    tokens="records.shape:plain_tokens",
    stock="records.known_shapes:no_shapes",
    layout="models.layout:gpt2_layout",
    stem="models.layout:gpt2_stem",
    live={},
    arguments="models.gpt2:gpt2_config",
    build="models.gpt2:build_gpt2",
    adapter="models.gpt2:GPT2Adapter",
    resize="models.gpt2:refuse_resize",
    preprocessing="models.gpt2:text_preprocessing",
    config="models.gpt2:folder_config",
    parameters="models.layout:count_in_layout",
    end_macs="profiling.macs:gpt2_ends",
    block_macs="profiling.macs:plain_block",
    activations="profiling.memory:gpt2_activations",
    latency="profiling.latency:LanguageLatency",
    calibration="profiling.calibration:gpt2_scope",
    bench="profiling.bench_language:LanguageBench",
    repair="pruning.repair.families:GPT2Repair",
    diagram="figures.model_diagram:draw_plain",
)

FAMILIES: dict[str, Family] = {"vit": VIT, "eva": EVA, "pvt_v2": PVT, "gpt2": GPT2}
"""Architectures by `ModelShape.family`."""


@cache
def load(address: str) -> Any:
    """The function or class at an address of `Family`."""
    module, _, name = address.partition(":")
    return getattr(import_module(f"upvit_core.{module}"), name)
