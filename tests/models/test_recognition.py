"""Objects beside tensors stay closed; the choice of weights and every assumption about a file are told."""

import argparse
import collections
import enum
import json
import re
import zipfile
from collections.abc import Callable
from pathlib import Path, PosixPath
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.utils import prune
from typer.testing import CliRunner

from tests.support.checkpoints import CFG, logits, perturbed, saved, transformers_names, wide
from tests.support.errors import refused
from tests.support.shrunk import shrunk
from tests.support.tiny import images, tiny
from upvit_core.cli import app
from upvit_core.errors import CheckpointError, UnsupportedModelError
from upvit_core.models.build import expected_tensors
from upvit_core.models.checkpoint import build_model, load_model, save_model, shape_of
from upvit_core.models.heads import assumed_heads, with_heads
from upvit_core.records.shape import BlockShape, ModelShape
from upvit_core.records.source import Source

State = dict[str, Tensor]


class Colour(enum.Enum):
    RED = 1


class Settings(dict):  # type: ignore[type-arg]
    """A dictionary of a class of its own, as configuration libraries have."""


class Names(list):  # type: ignore[type-arg]
    pass


BESIDE = {
    "paths": argparse.Namespace(lr=5e-4, output_dir=PosixPath("/checkpoint")),
    "numpy": {"best": np.float64(81.2), "history": np.arange(3), "kind": np.dtype("f4")},
    "defaultdict": collections.defaultdict(list, a=[1]),
    "enum": Colour.RED,
    "own dictionary": Settings(lr=1, inner=Settings(depth=2)),
    "own list": Names(["a", "b"]),
    "callback": {"monitor": torch.optim.lr_scheduler.LambdaLR},
    "range": range(3),
}


@pytest.mark.parametrize("beside", BESIDE)
@pytest.mark.parametrize("form", ["zip", "legacy"])
def test_objects_beside_tensors_stay_closed(beside: str, form: str, tmp_path: Path) -> None:
    model, path = wide(), tmp_path / "w.pth"
    content = {"model": model.state_dict(), "epoch": 3, beside: BESIDE[beside]}
    torch.save(content, path, _use_new_zipfile_serialization=form == "zip")
    assert torch.equal(logits(load_model(path).model), logits(model))


def test_a_whole_module_gives_its_tensors(tmp_path: Path) -> None:
    model = wide()
    assert torch.equal(logits(load_model(saved(tmp_path / "w.pth", {"ema": model})).model), logits(model))


AVERAGES: dict[str, Callable[[State, State], object]] = {
    "timm": lambda own, ema: {"state_dict": own, "state_dict_ema": ema, "epoch": 1},
    "DeiT": lambda own, ema: {"model": own, "model_ema": {f"module.{key}": value for key, value in ema.items()}},
    "nested": lambda own, ema: {"model": own, "model_ema": {"module": ema, "decay": 0.99}},
    "flat": lambda own, ema: {f"model.{k}": v for k, v in own.items()} | {f"ema_model.{k}": v for k, v in ema.items()},
    "DINO": lambda own, ema: {"student": {f"module.{k}": v for k, v in own.items()}, "teacher": ema},
    "I-JEPA": lambda own, ema: {"encoder": own, "target_encoder": {f"module.{k}": v for k, v in ema.items()}},
    "a list": lambda own, ema: {"model": own, "ema": {"decay": 0.9, "shadow_params": [*ema.values()]}},
    "NumPy": lambda own, ema: {"net": own, "model_avg": {k: v.numpy() for k, v in ema.items()}},
    "MMEngine": lambda own, ema: {
        "state_dict": ema,
        "ema_state_dict": {f"module.{k}": v for k, v in own.items()} | {"steps": torch.tensor(3)},
    },
    "a pair": lambda own, ema: [{"model": own, "polyak_model": ema}, 3],
    "DINO of an encoder": lambda own, ema: {"student": {"base_encoder": own}, "teacher": {"base_encoder": ema}},
    "average of an encoder": lambda own, ema: {"model": {"base_encoder": own}, "model_ema": {"base_encoder": ema}},
    "SWA": lambda own, ema: {"state_dict": own, "averaged_model": {f"module.{k}": v for k, v in ema.items()}},
}


@pytest.mark.parametrize("form", AVERAGES)
def test_the_average_is_taken_told_and_the_other_offered(form: str, tmp_path: Path) -> None:
    own, average = wide(), perturbed(wide(), seed=9)
    path = saved(tmp_path / "w.pth", AVERAGES[form](own.state_dict(), average.state_dict()))
    loaded = load_model(path)
    assert torch.equal(logits(loaded.model), logits(average))
    assert "average" in loaded.recognised.weights
    other = loaded.recognised.others[0]
    assert torch.equal(logits(load_model(path, weights=other).model), logits(own))
    assert torch.equal(logits(load_model(f"{path}#weights={other}").model), logits(own))
    with refused(CheckpointError, "nothing", other):
        load_model(path, weights="nothing")


def test_of_a_distillation_the_student_is_taken(tmp_path: Path) -> None:
    student, teacher = wide(), wide(embed_dim=192, num_heads=3)
    both = {f"teacher.{k}": v for k, v in teacher.state_dict().items()} | {
        f"student.{k}": v for k, v in student.state_dict().items()
    }
    loaded = load_model(saved(tmp_path / "w.pth", {"state_dict": both}))
    assert torch.equal(logits(loaded.model), logits(student))


def test_of_moco_the_encoder_of_queries_is_taken_without_its_projector(tmp_path: Path) -> None:
    own, average = wide(num_classes=0), perturbed(wide(num_classes=0), seed=9)
    parts = {"base_encoder": own, "momentum_encoder": average}
    state = {f"module.{part}.{key}": value for part, m in parts.items() for key, value in m.state_dict().items()}
    state |= {
        f"module.{part}.head.{n}.weight": torch.ones(8, 128)[:, : 128 if n else 1] for part in parts for n in (0, 3)
    }
    loaded = load_model(saved(tmp_path / "w.pth", {"arch": "vit_small", "state_dict": state}))
    assert torch.equal(logits(loaded.model), logits(own))
    assert loaded.recognised.others == ("state_dict.module.momentum_encoder",)


@pytest.mark.parametrize(
    ("beside", "said"),
    [
        ({"bottleneck.weight": (128,), "bottleneck.running_mean": (128,), "classifier.weight": (5, 128)}, "bottleneck"),
        ({"fc1.weight": (32, 128), "fc2.weight": (5, 32)}, ""),
    ],
)
def test_layers_between_backbone_and_classifier_are_not_passed_over(
    beside: dict[str, tuple[int, ...]], said: str, tmp_path: Path
) -> None:
    state = {f"backbone.{key}": value for key, value in wide(num_classes=0).state_dict().items()}
    path = saved(tmp_path / "w.pth", state | {key: torch.ones(size) for key, size in beside.items()})
    if said:
        with refused(UnsupportedModelError, said):
            load_model(path)
    else:
        loaded = load_model(path)
        assert loaded.shape.features
        assert set(beside) == set(loaded.recognised.left_out)


def test_the_best_weights_go_before_the_last(tmp_path: Path) -> None:
    last, best = wide(), perturbed(wide(), seed=9)
    path = saved(tmp_path / "w.pth", {"model_state_dict": last.state_dict(), "best_model_state": best.state_dict()})
    loaded = load_model(path)
    assert torch.equal(logits(loaded.model), logits(best))
    assert "best_model_state taken, model_state_dict left" in loaded.recognised.weights


@pytest.mark.parametrize(
    "form", ["masked", "weight norm", "inner wrappers", "module", "slashes", "parts apart", "flat tokens", "parallel"]
)
def test_tensors_in_other_pieces_are_put_together(form: str, tmp_path: Path) -> None:
    model = shrunk("vit_small_patch16_18x2_224") if form == "parallel" else wide()
    layers = [module for module in model.modules() if isinstance(module, nn.Linear)]
    if form == "masked":
        for layer in layers:
            prune.l1_unstructured(layer, "weight", 0.3)
    elif form == "weight norm":
        for layer in layers:
            nn.utils.parametrizations.weight_norm(layer)
    state = model.state_dict()
    if form in ("inner wrappers", "module"):
        inner = r"\1module." if form == "module" else r"\1_orig_mod._checkpoint_wrapped_module."
        state = {re.sub(r"^(blocks\.\d+\.)", inner, key): tensor for key, tensor in state.items()}
    elif form == "parts apart":
        for key in [key for key in state if "attn.qkv." in key]:
            for letter, part in zip("qkv", state.pop(key).chunk(3), strict=True):
                state[key.replace("qkv", f"{letter}_proj")] = part
    elif form == "slashes":
        state = {f"vit/{key.replace('.', '/')}": tensor for key, tensor in state.items()}
    elif form == "flat tokens":
        state |= {"cls_token": state["cls_token"][0, 0], "pos_embed": state["pos_embed"][0]}
    loaded = load_model(saved(tmp_path / "w.pth", {"model": state}), num_heads=8 if form == "parallel" else None)
    torch.testing.assert_close(logits(loaded.model), logits(model), rtol=1e-5, atol=1e-5)
    assert ("masks" in loaded.recognised.assumes) is (form == "masked")


@pytest.mark.parametrize(
    ("head", "words"),
    [
        ("head.1", None), ("heads.head.0", None), ("classification_head", None), ("output", None), ("fc_out", None),
        ("square", None),
        ("head.0", ("several parts", "head.2.weight")), ("linear_head", ("5 features",)),
    ],
)  # fmt: skip
def test_a_classifier_of_any_name(head: str, words: tuple[str, ...] | None, tmp_path: Path) -> None:
    model = wide(num_classes=128 if head == "square" else 5)
    state = {f"backbone.{key}": tensor for key, tensor in model.state_dict().items()}
    weight, state[f"{head}.bias"] = state.pop("backbone.head.weight"), state.pop("backbone.head.bias")
    state[f"{head}.weight"] = weight.repeat(1, 5) if head == "linear_head" else weight
    if head == "head.0":
        state["head.2.weight"] = torch.ones(3, 5)
    path = saved(tmp_path / "w.pth", {"state_dict": state})
    if words:
        with refused(UnsupportedModelError, *words):
            load_model(path)
    else:
        assert torch.equal(logits(load_model(path).model), logits(model))


def test_projection_heads_of_self_supervision_are_left_out_and_told(tmp_path: Path) -> None:
    model = wide(num_classes=0)
    state = {f"backbone.{key}": tensor for key, tensor in model.state_dict().items()}
    state |= {"head.mlp.0.weight": torch.ones(8, 128), "head.last_layer.weight_v": torch.ones(9, 8)}
    loaded = load_model(saved(tmp_path / "w.pth", {"teacher": state, "args": argparse.Namespace(arch="vit_small")}))
    assert torch.equal(logits(loaded.model), logits(model))
    assert "head.mlp.0.weight" in loaded.recognised.line


@pytest.mark.parametrize("prefix", ["net.", "backbone.", "encoder.", "module.base_encoder.", "_orig_mod.", "a.b.c."])
@pytest.mark.parametrize("head", ["inside", "beside", "called fc"])
def test_any_prefix_goes_and_strangers_are_told(prefix: str, head: str, tmp_path: Path) -> None:
    model = wide()
    state = {prefix + key: tensor for key, tensor in model.state_dict().items()}
    if head != "inside":
        name = "head" if head == "beside" else "fc"
        state |= {f"{name}.{leaf}": state.pop(f"{prefix}head.{leaf}") for leaf in ("weight", "bias")}
    state |= {"criterion.pos_weight": torch.ones(5), f"{prefix}total_ops": torch.zeros(1)}
    loaded = load_model(saved(tmp_path / "last.ckpt", {"state_dict": state, "optimizer_states": [{"lr": 0.1}]}))
    assert torch.equal(logits(loaded.model), logits(model))
    assert {"state_dict.criterion.pos_weight"} < set(loaded.recognised.left_out)
    assert "criterion" in " ".join(loaded.recognised.assumptions)


def plain(width: int, attention: tuple[int, ...], **changes: object) -> ModelShape:
    blocks = tuple(BlockShape(1, channels, 32) for channels in attention)
    return ModelShape("m", width, blocks, (16, 16), (8, 8), 3, 5, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("width", "heads"),
    [(192, 3), (384, 6), (512, 8), (768, 12), (1024, 16), (1152, 16), (1280, 16), (1408, 16), (1536, 24), (1664, 16),
     (1792, 16), (128, 2)],
)  # fmt: skip
def test_heads_of_published_widths(width: int, heads: int) -> None:
    found, why = assumed_heads(plain(width, (width, width)), "m")
    shape = with_heads(plain(width, (width, width)), found, "m")
    assert [block.num_heads for block in shape.blocks] == [heads, heads]
    assert f"{heads} in every block, assumed" in why


def test_a_pruned_width_is_not_taken_for_a_published_one() -> None:
    assert assumed_heads(plain(1280, (640, 1280)), "m")[0] == (10, 20)
    with refused(CheckpointError, "block 1", "144", "num_heads"):
        assumed_heads(plain(384, (384, 144)), "m")


@pytest.mark.parametrize(
    "said", [{"num_heads": "6,4,5"}, {"num_heads": (6, 4, 5)}, {"head_dim": 8}, {"head_dim": "8,8,8"}]
)
def test_heads_are_said_block_by_block(said: dict[str, object], tmp_path: Path) -> None:
    shape = plain(24, (48, 32, 40))
    shape = with_heads(shape, (6, 4, 5), "m")
    model = perturbed(build_model(shape))
    path = saved(tmp_path / "w.pth", model.state_dict())
    loaded = load_model(path, **said)  # type: ignore[arg-type]
    assert torch.equal(logits(loaded.model), logits(model))
    assert loaded.recognised.heads == "6, 4, 5, as given"
    assert load_model(f"{path}#heads=6,4,5").digest == loaded.digest


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({}, ("16", "64", "num_heads")), ({"num_heads": 3}, ("16", "3 heads")), ({"num_heads": 0}, ("0",)),
        ({"num_heads": "2,2"}, ("3 blocks", "2 numbers")), ({"num_heads": "two"}, ("two",)),
        ({"head_dim": 7}, ("16", "7 wide")), ({"num_heads": 2, "head_dim": 8}, ("Both",)),
    ],
)  # fmt: skip
def test_heads_that_cannot_be_are_refused(said: dict[str, object], words: tuple[str, ...], tmp_path: Path) -> None:
    path = saved(tmp_path / "w.pth", tiny(dtype=torch.float32)[0].state_dict())
    with refused(CheckpointError, *words):
        load_model(path, **said)  # type: ignore[arg-type]


def test_heads_come_from_a_config_or_from_the_model_that_the_run_names(tmp_path: Path) -> None:
    model = wide(num_heads=4)
    save_model(model, tmp_path, shape=shape_of(model), pretrained_cfg=CFG, name="a")
    assert load_model(tmp_path / "model.safetensors").shape.num_heads == 4
    assert load_model(tmp_path, num_heads=8).model.blocks[0].attn.num_heads == 8
    beside = load_model(saved(tmp_path / "other.pth", wide(embed_dim=192).state_dict()))
    assert (beside.shape.num_heads, beside.recognised.heads_assumed) == (3, True)
    assert "config.json" in beside.recognised.config


def test_heads_come_from_the_model_that_the_run_names(tmp_path: Path) -> None:
    name = "vit_base_patch16_gap_224"  # 768 wide with 16 heads, where others have 12
    shape = load_model(name, pretrained=False).shape
    state = {key: torch.zeros(size) for key, size in expected_tensors(shape).items()}
    path = saved(tmp_path / "w.pth", {"state_dict": state, "args": argparse.Namespace(model=name, mean=None)})
    loaded = load_model(path)
    assert (loaded.shape.num_heads, loaded.recognised.heads_assumed) == (16, False)
    assert name in loaded.recognised.line


class Node:
    """An object as OmegaConf and other configuration libraries pickle their values."""

    def __init__(self, **state: object) -> None:
        self.__dict__.update(state)


SAID: dict[str, dict[str, object]] = {
    "arguments": {"args": argparse.Namespace(lr=1, num_heads=4, decoder_num_heads=8)},
    "nested": {"hyper_parameters": {"model": argparse.Namespace(n_heads=4)}},
    "JSON": {"config": '{"vit": {"num_attention_heads": 4}}'},
    "capitals": {"cfg": Settings(MODEL=Settings(VIT=Settings(NUM_HEADS=4)))},
    "OmegaConf": {"cfg": Node(_content={"model": Node(_content={"num_heads": Node(_val=4)})}, _parent=None)},
    "each block": {"args": {"num_heads": [4, 4]}},
    "width": {"model_args": {"dim_head": 32}},
    "NumPy": {"args": {"num_heads": np.int64(4)}},
    "beside": {"num_heads": "4"},
}


@pytest.mark.parametrize("place", SAID)
def test_heads_come_from_the_settings_wherever_they_stand(place: str, tmp_path: Path) -> None:
    model = wide(num_heads=4)
    loaded = load_model(saved(tmp_path / "w.pth", {"state_dict": model.state_dict(), **SAID[place]}))
    assert torch.equal(logits(loaded.model), logits(model))
    assert loaded.recognised.heads == "4 in every block, as the settings in the file say"
    misfit = load_model(saved(tmp_path / "w.pth", {"model": model.state_dict(), "args": {"num_heads": 5}}))
    assert misfit.recognised.heads_assumed


@pytest.mark.parametrize("wrap", [lambda m: m, lambda m: {"ema": m}, nn.DataParallel])
@pytest.mark.parametrize("act", ["gelu", "quick_gelu", "gelu_tanh", "relu"])
def test_a_saved_module_tells_heads_eps_activation_and_pooling(
    wrap: Callable[[nn.Module], object], act: str, tmp_path: Path
) -> None:
    model = wide(num_heads=4, act_layer=act, global_pool="avg", fc_norm=False)
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = 1e-3
    path = saved(tmp_path / "w.pth", wrap(model))
    if act == "relu":
        with refused(UnsupportedModelError, "activation ReLU"):
            load_model(path)
    else:
        loaded = load_model(path)
        assert torch.equal(logits(loaded.model), logits(model))
        assert "as the saved modules say" in loaded.recognised.heads


def test_metadata_and_settings_tell_heads_size_and_classes(tmp_path: Path) -> None:
    model = wide(num_heads=4, img_size=(16, 32))
    said = {"num_heads": 4, "img_size": [16, 32], "class_to_idx": dict(zip("edcba", range(4, -1, -1), strict=True))}
    save_file(model.state_dict(), tmp_path / "w.safetensors", metadata={"config": json.dumps(said)})
    x = images(4, torch.float32).repeat(1, 1, 1, 2)
    arrays = said | {"class_to_idx": None, "classes": np.array(list("abcde"))}
    files = [saved(tmp_path / f"{len(s)}.pth", {"model": model.state_dict(), "args": s}) for s in (said, arrays)]
    for path in (tmp_path / "w.safetensors", *files):
        loaded = load_model(path)
        assert torch.equal(loaded.model(x), model(x))
        assert loaded.class_names == tuple("abcde")


@pytest.mark.parametrize(("sides", "square"), [((8, 32), (16, 16)), ((24, 40), (32, 32)), ((16, 24), None)])
def test_the_size_of_images_is_told_or_asked_for(
    sides: tuple[int, int], square: tuple[int, int] | None, tmp_path: Path
) -> None:
    model = wide(img_size=sides)
    path = saved(tmp_path / "w.pth", model.state_dict())
    if square:
        told = load_model(path)
        assert told.shape.img_size == square
        assert any(f"{square[0]} by {square[1]}" in sentence for sentence in told.recognised.assumptions)
    else:
        with refused(CheckpointError, "--img-size"):
            load_model(path)
    x, size = torch.randn(2, 3, *sides), ",".join(map(str, sides))
    for loaded in (load_model(path, img_size=sides), load_model(f"{path}#size={size}")):
        assert torch.equal(loaded.model(x), model(x))
        assert not loaded.recognised.size
    assert CliRunner().invoke(app, ["profile", str(path), "--img-size", size]).exit_code == 0
    with refused(CheckpointError, "'big'"):
        load_model(f"{path}#size=big")


def test_both_norms_before_the_classifier_are_refused(tmp_path: Path) -> None:
    state = wide().state_dict() | {"fc_norm.weight": torch.ones(128), "fc_norm.bias": torch.zeros(128)}
    with refused(CheckpointError, "both norm and fc_norm"):
        load_model(saved(tmp_path / "w.pth", state))


@pytest.mark.parametrize(
    ("settings", "mean", "crop"),
    [
        (None, 0.485, 0.875),
        (argparse.Namespace(mean=[0.1, 0.2, 0.3], std=[0.5] * 3, crop_pct=0.95), 0.1, 0.95),
        ({"mean": (0.4,) * 3, "std": (0.5,) * 3}, 0.4, 0.875),
        (argparse.Namespace(mean=None, std=None, model="resnet50", crop_pct=None), 0.485, 0.875),
        ({"mean": [127.5] * 3, "std": [51.0] * 3}, 0.5, 0.875),
        ({"data": {"norm_mean": np.full(3, 0.25), "norm_std": torch.ones(3)}}, 0.25, 0.875),
        ({"pretrained_cfg": {"mean": "0.25,0.25,0.25", "std": 0.5, "crop_pct": 1}}, 0.25, 1),
        ({"imagenet_default_mean_and_std": False}, 0.5, 0.875),
        (argparse.Namespace(inception=True, mean=None), 0.5, 0.875),
        (argparse.Namespace(inception=False), 0.485, 0.875),
    ],
)
def test_normalisation_comes_from_the_runs_settings(settings: object, mean: float, crop: float, tmp_path: Path) -> None:
    loaded = load_model(saved(tmp_path / "w.pth", {"state_dict": wide().state_dict(), "args": settings}))
    assert (loaded.pretrained_cfg["mean"][0], loaded.pretrained_cfg["crop_pct"]) == (mean, crop)
    assert loaded.recognised.images_assumed is (mean == 0.485)


@pytest.mark.parametrize(
    ("processor", "mean", "std"),
    [
        ({"do_normalize": False, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}, 0, 1),
        ({"do_rescale": False, "image_mean": [127.5] * 3, "image_std": [127.5] * 3}, 0.5, 0.5),
        ({"do_rescale": False, "do_normalize": False}, 0, 1 / 255),
        ({"rescale_factor": 1 / 127.5, "image_mean": [1.0] * 3, "image_std": [1.0] * 3}, 0.5, 0.5),
        ({"rescale_factor": 1 / 255, "image_mean": [0.2] * 3, "image_std": [0.3] * 3}, 0.2, 0.3),
        ({"rescale_factor": 1 / 127.5, "rescale_offset": True, "do_normalize": False}, 0.5, 0.5),
        ({"image_mean": 0.2, "image_std": 0.3, "do_rescale": None}, 0.2, 0.3),
        (None, 0.5, 0.5),
    ],
)
def test_a_processors_scaling_is_honoured(
    processor: dict[str, object], mean: float, std: float, tmp_path: Path
) -> None:
    save_file(transformers_names(wide(), {"head": "classifier"}, "vit.", 4), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit", "num_attention_heads": 2, "image_size": 16}))
    if processor is not None:
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor))
    loaded = load_model(tmp_path)
    assert loaded.pretrained_cfg["mean"] == pytest.approx((mean,) * 3)
    assert loaded.pretrained_cfg["std"] == pytest.approx((std,) * 3)
    assert loaded.recognised.images_assumed is (processor is None)


@pytest.mark.parametrize(
    ("processor", "pct", "mode", "interpolation"),
    [
        ({"size": {"shortest_edge": 20}, "crop_size": {"height": 16, "width": 16}, "do_center_crop": True,
          "resample": 3}, 0.8, "center", "bicubic"),
        ({"feature_extractor_type": "CLIPFeatureExtractor", "size": 20, "crop_size": 16, "do_center_crop": True},
         0.8, "center", "bilinear"),
        ({"feature_extractor_type": "DeiTFeatureExtractor", "size": 20, "crop_size": 16, "do_center_crop": True},
         0.8, "squash", "bilinear"),
        ({"size": {"shortest_edge": 10}, "crop_size": 8, "do_center_crop": True, "resample": 4}, 0.8, "center", "box"),
        ({"size": [16, 16], "resample": 5}, 1, "squash", "hamming"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("nested", [False, True])
def test_a_processors_sizes_are_honoured(
    processor: dict[str, Any], pct: float, mode: str, interpolation: str, nested: bool, tmp_path: Path
) -> None:
    save_file(transformers_names(wide(), {"head": "classifier"}, "vit.", 4), tmp_path / "model.safetensors")
    config = {"model_type": "vit", "num_attention_heads": 2, "image_size": 16, "label2id": {"b": 1, "a": 0}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    name = "processor_config.json" if nested else "preprocessor_config.json"
    (tmp_path / name).write_text(json.dumps({"image_processor": processor} if nested else processor))
    loaded = load_model(tmp_path)
    cfg = loaded.pretrained_cfg
    assert (cfg["crop_pct"], cfg["crop_mode"], cfg["interpolation"]) == (pct, mode, interpolation)
    assert ("images of 8x8" in loaded.recognised.config) is (processor.get("crop_size") == 8)
    assert "names of 2 classes" in loaded.recognised.config


@pytest.mark.parametrize(
    "said",
    [{"hidden_size": 256}, {"num_hidden_layers": 12}, {"patch_size": 16}, {"qkv_bias": False}, {"num_labels": 9}],
)
def test_a_config_that_contradicts_the_tensors_is_refused(said: dict[str, object], tmp_path: Path) -> None:
    save_file(transformers_names(wide(), {"head": "classifier"}, "vit.", 4), tmp_path / "model.safetensors")
    config = {"model_type": "vit", "num_attention_heads": 2, "image_size": 16, **said}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with refused(CheckpointError, *said, "config.json"):
        load_model(tmp_path)


@pytest.mark.parametrize(
    ("given", "words"), [("", None), ("0.5", None), ("a", ("a",)), ("0.5,-1", ("-1",)), ("1,1", ("1,1",))]
)
def test_normalisation_can_be_said(given: str, words: tuple[str, ...] | None, tmp_path: Path) -> None:
    path = saved(tmp_path / "w.pth", wide().state_dict())
    if words:
        with refused(CheckpointError, *words):
            load_model(path, std=given)
    else:
        loaded = load_model(path, mean="0.1,0.2,0.3", std=given)
        assert loaded.pretrained_cfg["mean"] == (0.1, 0.2, 0.3)
        assert loaded.pretrained_cfg["std"] == ((0.5,) * 3 if given else (0.229, 0.224, 0.225))
        assert not loaded.recognised.images_assumed
        with refused(CheckpointError, "0 to 255"):
            load_model(path, mean=127.5)


def test_the_activation_of_a_model_like_clip_is_assumed_and_told(tmp_path: Path) -> None:
    quick = wide(pre_norm=True, act_layer="quick_gelu")
    path = saved(tmp_path / "w.pth", quick.state_dict())
    loaded = load_model(path)
    assert loaded.shape.act == "gelu"
    assert any("QuickGELU" in sentence for sentence in loaded.recognised.assumptions)
    save_model(quick, tmp_path / "folder", shape=shape_of(quick), pretrained_cfg=CFG, name="quick")
    assert torch.equal(logits(load_model(tmp_path / "folder").model), logits(quick))


def test_a_zipped_folder(tmp_path: Path) -> None:
    model = wide(num_heads=4)
    save_model(model, tmp_path / "inner", shape=shape_of(model), pretrained_cfg=CFG, name="inner")
    with zipfile.ZipFile(tmp_path / "mine.zip", "w") as archive:
        for path in (tmp_path / "inner").iterdir():
            archive.write(path, f"some/place/{path.name}")
    loaded = load_model(f"'file://{tmp_path / 'mine.zip'}'")
    assert torch.equal(logits(loaded.model), logits(model))
    (tmp_path / "cut.zip").write_bytes((tmp_path / "mine.zip").read_bytes()[:-30])
    with refused(CheckpointError, "cut.zip"):
        load_model(tmp_path / "cut.zip")


@pytest.mark.parametrize("verb", ["profile", "evaluate"])
def test_what_is_assumed_is_told_by_the_verbs(verb: str, tmp_path: Path) -> None:
    path = saved(tmp_path / "w.pth", {"model": wide().state_dict(), "model_ema": wide().state_dict()})
    options = ["--data", "demo"] if verb == "evaluate" else []
    told = CliRunner().invoke(app, [verb, str(path), *options]).output
    for word in ("average", "Heads: 2 in every block, assumed", "Normalisation: assumed", "--mean"):
        assert word in told


@pytest.mark.parametrize(
    ("text", "source"),
    [
        ("a.pth", Source("a.pth")), ("a#b.pth", Source("a#b.pth")), ("a.pth#heads=12", Source("a.pth", heads="12")),
        ("a.pth#heads=6,4&weights=model_ema", Source("a.pth", heads="6,4", weights="model_ema")),
        ("a.pth#size=16,32", Source("a.pth", size="16,32")),
        ("a#b#mean=0.5&std=0.1,0.2,0.3", Source("a#b", mean="0.5", std="0.1,0.2,0.3")),
    ],
)  # fmt: skip
def test_a_source_goes_through_text(text: str, source: Source) -> None:
    assert Source.parse(text) == source
    assert str(source) == text
