"""Folders are written and read back with equal logits; digests, devices and head counts."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

from tests.support.checkpoints import CFG, UNEVEN, WIDE, logits, perturbed, saved, wide
from tests.support.errors import refused
from tests.support.tiny import VARIANTS, tiny
from upvit_core.errors import CheckpointError
from upvit_core.models import checkpoint
from upvit_core.models.checkpoint import build_model, load_model, save_model, shape_of
from upvit_core.models.config import timm_config
from upvit_core.records.known_shapes import deit_shape
from upvit_core.records.shape import BlockShape


@pytest.mark.parametrize("variant", VARIANTS)
def test_folder_opens_in_stock_timm_and_here_with_equal_logits(variant: str, tmp_path: Path) -> None:
    model, shape = tiny(variant, torch.float32)
    save_model(model, tmp_path, shape=shape, pretrained_cfg=CFG, name="mine", class_names=tuple("abcde"))
    stock = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    loaded = load_model(tmp_path)
    assert torch.equal(logits(stock), logits(model))
    assert torch.equal(logits(loaded.model), logits(model))
    assert loaded.shape == replace(shape, name="mine")
    assert shape_of(stock, "mine") == loaded.shape
    assert (loaded.name, loaded.class_names, loaded.has_weights) == ("mine", tuple("abcde"), True)
    assert loaded.recognised.heads == "as config.json says"
    assert loaded.pretrained_cfg["mean"] == CFG["mean"]
    assert loaded.pretrained_cfg["input_size"] == (3, 16, 16)
    theirs, ours = (timm.data.resolve_model_data_config(each) for each in (stock, loaded.model))
    assert json.dumps(theirs) == json.dumps(ours)


@pytest.mark.parametrize(
    ("variant", "distilled", "parameters"),
    [("small", False, 22_050_664), ("tiny", False, 5_717_416), ("tiny", True, None), ("base", False, None)],
)
def test_a_shape_that_timm_has_a_name_for_gets_it(variant: str, distilled: bool, parameters: int | None) -> None:
    shape = deit_shape(variant, distilled=distilled)  # type: ignore[arg-type]
    config = timm_config(shape, CFG, "x", None)
    assert config["architecture"] == shape.name
    assert "model_args" not in config
    model = timm.create_model(shape.name, device="meta")
    assert shape_of(model, shape.name) == shape
    if parameters:
        assert sum(parameter.numel() for parameter in model.parameters()) == parameters


def test_the_demos_shape_is_told_by_model_args() -> None:
    shape = replace(
        deit_shape("tiny"), img_size=(28, 28), patch_size=(4, 4), in_chans=1, num_classes=10, embed_dim=96,
        blocks=(BlockShape(6, 96, 384),) * 6,
    )  # fmt: skip
    config = timm_config(shape, {"mean": (0.286,), "std": (0.353,)}, "demo", None)
    assert config["architecture"] == "deit_tiny_patch16_224"
    assert config["model_args"] == {
        "img_size": [28, 28], "patch_size": 4, "in_chans": 1, "embed_dim": 96, "depth": 6, "num_heads": 6,
    }  # fmt: skip
    assert config["pretrained_cfg"]["mean"] == (0.286,)


def test_uneven_folder_opens_here_alone(tmp_path: Path) -> None:
    model = perturbed(build_model(UNEVEN))
    save_model(model, tmp_path, shape=UNEVEN, pretrained_cfg=CFG, name="uneven")
    loaded = load_model(f"local-dir:{tmp_path}")
    x = torch.randn(2, 2, 16, 24)
    assert torch.equal(loaded.model(x), model(x))
    assert loaded.shape == UNEVEN
    assert loaded.pretrained_cfg["mean"] == pytest.approx((0.2, 0.2))
    with pytest.raises(RuntimeError, match="Unknown model"):
        timm.create_model(f"local-dir:{tmp_path}", pretrained=True)


def test_a_folder_that_timm_wrote_is_read(tmp_path: Path) -> None:
    arguments = {"num_heads": 4, "global_pool": "avg", "reg_tokens": 1, "no_embed_class": True}
    model = wide(**arguments)
    timm.models.save_for_hf(model, tmp_path, safe_serialization=True, model_args={**WIDE, **arguments})
    loaded = load_model(tmp_path)
    assert torch.equal(logits(loaded.model), logits(model))
    assert (loaded.shape.num_heads, loaded.shape.head_tokens, loaded.shape.num_reg_tokens) == (4, 0, 1)
    assert loaded.recognised.heads == "as config.json says"


def test_a_plan_lies_in_the_folder_and_goes_with_the_next_model(tmp_path: Path) -> None:
    model, shape = tiny(dtype=torch.float32)
    save_model(model, tmp_path, shape=shape, pretrained_cfg=CFG, name="a", plan_json='{"blocks": []}')
    assert json.loads((tmp_path / "plan.json").read_text()) == {"blocks": []}
    save_model(model, tmp_path, shape=shape, pretrained_cfg=CFG, name="b")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]


def test_a_failed_write_leaves_the_old_folder_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, shape = tiny(dtype=torch.float32)
    save_model(model, tmp_path, shape=shape, pretrained_cfg=CFG, name="a")
    before = load_model(tmp_path).digest

    def torn(state: object, path: Path, metadata: object) -> None:
        Path(path).write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(checkpoint, "save_file", torn)
    with pytest.raises(OSError, match="disk full"):
        save_model(model, tmp_path, shape=shape, pretrained_cfg=CFG, name="b")
    assert load_model(tmp_path).digest == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]


def test_a_model_that_is_not_of_the_shape_is_not_written(tmp_path: Path) -> None:
    model, shape = tiny(dtype=torch.float32)
    with pytest.raises(CheckpointError, match=r"head\.weight has the shape 5x16, expected 6x16"):
        save_model(model, tmp_path, shape=replace(shape, num_classes=6), pretrained_cfg=CFG, name="a")


def test_the_demo_is_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "DEMO_FOLDER", tmp_path)
    with refused(CheckpointError, "demo model is missing"):
        load_model("demo")
    model, shape = tiny(dtype=torch.float32)
    save_model(model, tmp_path, shape=shape, pretrained_cfg=CFG, name="demo")
    assert load_model("demo").name == "demo"


def test_digest_follows_weights_and_heads_but_not_form_or_name(tmp_path: Path) -> None:
    model = wide()
    shape = shape_of(model)
    save_model(model, tmp_path / "a", shape=shape, pretrained_cfg=CFG, name="a")
    digest = load_model(tmp_path / "a").digest
    assert re.fullmatch(r"[0-9a-f]{16}", digest)
    assert load_model(saved(tmp_path / "w.pth", {"model": model.state_dict()})).digest == digest
    assert load_model(tmp_path / "w.pth", num_heads=4).digest != digest
    with torch.no_grad():
        model.head.bias[0] += 1
    assert load_model(saved(tmp_path / "w.pth", model.state_dict())).digest != digest


def test_half_precision_is_widened_and_training_mode_is_off(tmp_path: Path) -> None:
    state = {key: tensor.half() for key, tensor in wide().state_dict().items()}
    save_file(state, tmp_path / "w.safetensors")
    loaded = load_model(tmp_path / "w.safetensors")
    assert {parameter.dtype for parameter in loaded.model.parameters()} == {torch.float32}
    assert all(parameter.requires_grad for parameter in loaded.model.parameters())
    assert not loaded.model.training


def test_loaded_weights_do_not_hang_on_the_file(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_file(wide().state_dict(), path)
    loaded = load_model(path)
    before = logits(loaded.model)
    path.write_bytes(b"\0" * path.stat().st_size)
    assert torch.equal(logits(loaded.model), before)
