"""Files of every form, and the names of DeiT, DeiT III and `transformers`."""

import argparse
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from tests.support.checkpoints import UNEVEN, logits, perturbed, saved, transformers_names, wide
from tests.support.errors import refused
from tests.support.tiny import images
from upvit_core.errors import CheckpointError, UnsupportedModelError
from upvit_core.models.checkpoint import build_model, load_model, shape_of
from upvit_core.models.files import read_contents
from upvit_core.records.known_shapes import deit_shape
from upvit_core.records.shape import BlockShape

FORMS = {
    "DeiT's own": lambda state: {"model": state},
    "a training run's": lambda state: {
        "epoch": 3, "model": state, "optimizer": {"lr": 1e-3}, "args": argparse.Namespace(lr=1.0),
    },
    "state_dict": lambda state: {"state_dict": state},
    "model_ema": lambda state: {"model_ema": state},
    "flat": lambda state: state,
    "DataParallel": lambda state: {"model": {f"module.{key}": tensor for key, tensor in state.items()}},
    "compiled": lambda state: {f"_orig_mod.module.{key}": tensor for key, tensor in state.items()},
}  # fmt: skip


@pytest.mark.parametrize("distilled", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_pytorch_files(form: str, distilled: bool, tmp_path: Path) -> None:
    model = wide(distilled)
    loaded = load_model(saved(tmp_path / "w.pth", FORMS[form](model.state_dict())))
    assert torch.equal(logits(loaded.model), logits(model))
    assert loaded.shape == replace(shape_of(model), name="w")
    assert loaded.shape.distilled is distilled
    assert loaded.class_names is None


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin", ".safetensors", ""])
def test_the_content_decides_the_format(suffix: str, tmp_path: Path) -> None:
    model = wide()
    for write in (save_file, torch.save):
        write(model.state_dict(), tmp_path / f"w{suffix}")
        assert torch.equal(logits(load_model(str(tmp_path / f"w{suffix}")).model), logits(model))


def test_a_safetensors_header_may_begin_like_a_pickle(tmp_path: Path) -> None:
    path = tmp_path / "w"
    for padding in range(0, 256, 8):
        save_file({"a": torch.ones(2)}, path, metadata={"padding": "x" * padding})
        if path.read_bytes()[0] == 0x80:
            break
    else:
        pytest.fail("no header length ends in 0x80")
    assert list(read_contents(path).tensors) == ["a"]


@pytest.mark.parametrize(
    "overrides",
    [
        {"reg_tokens": 2},
        {"reg_tokens": 4, "no_embed_class": True},
        {"class_token": False, "global_pool": "avg"},
        {"class_token": False, "global_pool": "avg", "reg_tokens": 3, "no_embed_class": True},
        {"global_pool": "avg"},
        {"pre_norm": True},
        {"qkv_bias": False, "init_values": 0.1},
        {"in_chans": 1, "img_size": 24, "patch_size": 8},
    ],
)
def test_architecture_is_read_from_the_tensors(overrides: dict[str, object], tmp_path: Path) -> None:
    model = wide(**overrides)
    loaded = load_model(saved(tmp_path / "w.pth", model.state_dict()))
    assert loaded.shape == replace(shape_of(model), name="w")
    x = torch.randn(2, loaded.shape.in_chans, *loaded.shape.img_size)
    assert torch.equal(loaded.model(x), model(x))


def test_uneven_file_is_read_with_the_heads_given(tmp_path: Path) -> None:
    shape = replace(UNEVEN, blocks=(BlockShape(2, 10, 9), BlockShape(2, 22, 3)), img_size=(16, 16), patch_size=(8, 8))
    model = perturbed(build_model(shape))
    loaded = load_model(saved(tmp_path / "uneven.pth", model.state_dict()), num_heads=2)
    assert loaded.shape == shape


def test_deit_iii_names_its_layer_scale_otherwise(tmp_path: Path) -> None:
    model = wide(init_values=0.1, no_embed_class=True)
    state = {re.sub(r"ls([12])\.gamma", r"gamma_\1", key): tensor for key, tensor in model.state_dict().items()}
    loaded = load_model(saved(tmp_path / "w.pth", {"model": state}))
    assert torch.equal(logits(loaded.model), logits(model))


@pytest.mark.parametrize(
    ("file", "name"), [("deit_tiny_patch16_224-a1311bcf.pth", "DeiT-T"), ("deit_tiny_pruned.pth", "deit_tiny_pruned")]
)
def test_a_name_for_people(file: str, name: str, tmp_path: Path) -> None:
    shape = deit_shape("tiny") if name == "DeiT-T" else shape_of(wide())
    assert load_model(saved(tmp_path / file, build_model(shape).state_dict())).name == name


@pytest.mark.parametrize("generation", [4, 5])
@pytest.mark.parametrize("prefixed", [True, False])
@pytest.mark.parametrize("kind", ["vit", "deit", "deit with teacher"])
def test_transformers_names(kind: str, prefixed: bool, generation: int, tmp_path: Path) -> None:
    teacher = kind == "deit with teacher"
    model = wide(teacher, **({"reg_tokens": 1} if kind == "deit" else {}))
    heads = {"head": "cls_classifier", "head_dist": "distillation_classifier"} if teacher else {"head": "classifier"}
    prefix = f"{kind.split()[0]}." if prefixed else ""
    state = transformers_names(model, heads, prefix, generation)
    loaded = load_model(saved(tmp_path / "pytorch_model.bin", {**state, f"{prefix}pooler.dense.bias": torch.zeros(1)}))
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = 1e-12  # that of transformers
    assert torch.equal(logits(loaded.model), logits(model))
    assert loaded.shape == replace(shape_of(model), name="pytorch_model")
    assert loaded.pretrained_cfg["mean"] == ((0.5,) * 3 if kind == "vit" else (0.485, 0.456, 0.406))


@pytest.mark.parametrize("generation", [4, 5])
def test_transformers_key_without_its_query_or_of_another_width(generation: int, tmp_path: Path) -> None:
    state = transformers_names(wide(), {"head": "classifier"}, "vit.", generation)
    key = next(name for name in state if re.search(r"\.1\..*k(ey|_proj)\.weight", name))
    with refused(CheckpointError, "(64, 128)", "blocks.1.attn.qkv.weight"):
        load_model(saved(tmp_path / "w.bin", {**state, key: state[key][:64]}))
    del state[key]
    with refused(CheckpointError, "key", "blocks.1.attn.qkv.weight"):
        load_model(saved(tmp_path / "w.bin", state))


@pytest.mark.parametrize("kind", ["ViT", "DeiT", "DeiTWithTeacher"])
def test_folder_that_transformers_wrote(kind: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip(
        "transformers", reason="transformers is not installed; the names are tested above"
    )
    config = (transformers.ViTConfig if kind == "ViT" else transformers.DeiTConfig)(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48, image_size=16, patch_size=8,
        num_labels=3, id2label={0: "cat", 1: "dog", 2: "eel"}, label2id={"cat": 0, "dog": 1, "eel": 2},
    )  # fmt: skip
    name = kind.removesuffix("WithTeacher") + "ForImageClassification" + ("WithTeacher" if "Teacher" in kind else "")
    model = perturbed(getattr(transformers, name)(config))
    model.save_pretrained(tmp_path)
    processor = {
        "do_resize": True, "size": {"height": 20, "width": 20}, "do_center_crop": True, "resample": 3,
        "image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6],
    }  # fmt: skip
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor))
    loaded = load_model(tmp_path)
    x = images(4, torch.float32)
    with torch.no_grad():
        assert loaded.model(x) == pytest.approx(model(x).logits, abs=1e-5)
    assert loaded.shape.num_heads == 4
    assert loaded.shape.norm_eps == 1e-12
    assert loaded.recognised.heads == "as config.json says"
    assert loaded.class_names == ("cat", "dog", "eel")
    cfg = loaded.pretrained_cfg
    assert (cfg["mean"], cfg["crop_pct"], cfg["crop_mode"]) == ((0.1, 0.2, 0.3), 16 / 20, "squash")
    torch.save(model.state_dict(), tmp_path / "live.bin")  # the names in memory, which differ from those saved
    assert load_model(tmp_path / "live.bin").digest == loaded.digest


@pytest.mark.parametrize(
    ("change", "word"),
    [({"model_type": "swin"}, "swin"), ({"hidden_act": "relu"}, "relu"), ({"image_size": None}, "None")],
)
def test_transformers_config_of_something_else(change: dict[str, object], word: str, tmp_path: Path) -> None:
    save_file(transformers_names(wide(), {"head": "classifier"}, "vit.", 4), tmp_path / "model.safetensors")
    config = {"model_type": "vit", "num_attention_heads": 2, "image_size": 16, **change}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with refused((UnsupportedModelError, CheckpointError), word):
        load_model(tmp_path)
