"""Objects beside tensors stay closed; the choice of weights and every assumption about a file are told."""

import argparse
import collections
import enum
import json
import zipfile
from collections.abc import Callable
from pathlib import Path, PosixPath

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from typer.testing import CliRunner

from tests.support.checkpoints import CFG, logits, perturbed, saved, transformers_names, wide
from tests.support.errors import refused
from tests.support.tiny import tiny
from upvit_core.cli import app
from upvit_core.errors import CheckpointError
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


@pytest.mark.parametrize(
    ("settings", "mean", "crop"),
    [
        (None, 0.485, 0.875),
        (argparse.Namespace(mean=[0.1, 0.2, 0.3], std=[0.5] * 3, crop_pct=0.95), 0.1, 0.95),
        ({"mean": (0.4,) * 3, "std": (0.5,) * 3}, 0.4, 0.875),
        (argparse.Namespace(mean=None, std=None, model="resnet50", crop_pct=None), 0.485, 0.875),
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


@pytest.mark.parametrize(("given", "words"), [("", None), ("0.5", None), ("a", ("a",)), ("0.5,-1", ("-1",))])
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
    loaded = load_model(tmp_path / "mine.zip")
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
        ("a#b#mean=0.5&std=0.1,0.2,0.3", Source("a#b", mean="0.5", std="0.1,0.2,0.3")),
    ],
)  # fmt: skip
def test_a_source_goes_through_text(text: str, source: Source) -> None:
    assert Source.parse(text) == source
    assert str(source) == text
