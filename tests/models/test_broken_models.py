"""Every way in which a file or folder may be broken is refused in one sentence."""

import io
import json
import os
import pickle
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from tests.support import ROOT
from tests.support.checkpoints import CFG, WIDE, saved, wide
from tests.support.errors import refused
from upvit_core.errors import CheckpointError, UnsupportedModelError
from upvit_core.models.checkpoint import load_model, save_model, shape_of
from upvit_core.models.files import read_contents


class Evil:
    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.mark}",)


@pytest.mark.parametrize("form", ["zip", "legacy", "pickle"])
def test_a_pickle_with_code_is_refused_and_not_run(form: str, tmp_path: Path) -> None:
    mark, path = tmp_path / "ran", tmp_path / "w.pth"
    content = {"model": {"head.weight": torch.zeros(2), "x": Evil(mark)}}
    if form == "pickle":
        path.write_bytes(pickle.dumps({"x": Evil(mark)}))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=form == "zip")
    with refused(CheckpointError, "system" if form != "pickle" else "pickle", "nothing in a file is ever run"):
        load_model(path)
    assert not mark.exists()


@pytest.mark.parametrize("form", ["zip", "legacy", "safetensors"])
def test_a_file_cut_anywhere_is_refused(form: str, tmp_path: Path) -> None:
    path = tmp_path / "w"
    state = {"a": torch.randn(40, 40), "b": torch.randn(3)}
    if form == "safetensors":
        save_file(state, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=form == "zip")
    whole = path.read_bytes()
    for length in [1, 7, 9, 20, 30, 60, 200, 1000, len(whole) // 2, len(whole) - 100, len(whole) - 1]:
        path.write_bytes(whole[:length])
        with refused(CheckpointError, str(path)):
            read_contents(path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", ("empty",)),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", ("Git LFS",)),
        (b"<!DOCTYPE html><html>404</html>", ("web page",)),
        (b"root:x:0:0:root", ("neither",)),
        (b"\x1f\x8b\x08", ("compressed archive",)),
        (b"PK\x03\x04 not really", ("damaged",)),
    ],
)
def test_files_that_hold_no_weights(content: bytes, words: tuple[str, ...], tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    path.write_bytes(content)
    with refused(CheckpointError, *words):
        load_model(path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([torch.zeros(2)], ("list",)),
        ({"epoch": 3, "optimizer": {}}, ("epoch", "optimizer")),
        ({"head.weight": torch.zeros(2), "epoch": 3}, ("head.weight",)),
        ({}, ("none",)),
        ({"state": {0: {"exp_avg": torch.zeros(2)}}, "param_groups": []}, ("optimizer",)),
        (
            {"patch_embed.proj.weight": torch.zeros(2, 3, 2, 2, 2), "blocks.0.attn.qkv.weight": torch.zeros(2)},
            ("videos",),
        ),
        ({"blocks.0.mlp.fc1.SCB": torch.zeros(2)}, ("quantised",)),
        ({"base_model.blocks.0.attn.qkv.lora_A.default.weight": torch.zeros(2)}, ("LoRA",)),
    ],
)
def test_pickles_that_hold_no_state_dict(content: object, words: tuple[str, ...], tmp_path: Path) -> None:
    with refused((CheckpointError, UnsupportedModelError), *words):
        load_model(saved(tmp_path / "w.pth", content))


def expanded(path: Path) -> None:
    torch.save({**wide().state_dict(), "head.weight": torch.zeros(1).expand(5, 128)}, path)


def deflated(path: Path) -> None:
    torch.save({**wide().state_dict(), "x": torch.zeros(3_000_000)}, path)
    content = zipfile.ZipFile(io.BytesIO(path.read_bytes()))
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in content.namelist():
            archive.writestr(name, content.read(name) if "data/" not in name else bytes(len(content.read(name))))


def of_many_blocks(path: Path) -> None:
    torch.save({**wide().state_dict(), "blocks.20000.norm1.weight": torch.zeros(1)}, path)


@pytest.mark.parametrize(
    ("write", "word"),
    [(expanded, "fewer numbers"), (deflated, "unpack"), (of_many_blocks, "20000"), (os.mkfifo, "regular")],
)
def test_a_small_file_asks_for_no_large_memory(write: Callable[[Path], None], word: str, tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    write(path)
    with refused(CheckpointError, word):
        load_model(path)


def test_a_torchscript_program_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.zeros(1, 2)), path)
    with refused(CheckpointError, "TorchScript"):
        load_model(path)


def broken(change: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    state = dict(state)
    match change:
        case "missing":
            del state["blocks.1.attn.proj.bias"], state["norm.weight"]
        case "missing token":
            del state["cls_token"]
        case "missing positions":
            del state["pos_embed"]
        case "missing qkv":
            del state["blocks.0.attn.qkv.weight"]
        case "surplus":
            state["decoder.weight"] = torch.zeros(1)
        case "many surplus":
            state |= {f"decoder.{index}": torch.zeros(1) for index in range(10)}
        case "wrong shape":
            state["blocks.0.mlp.fc2.weight"] = torch.zeros(128, 7)
        case "wrong dimensions":
            state["patch_embed.proj.weight"] = state["patch_embed.proj.weight"].flatten(1)
        case "no thirds":
            state["blocks.1.attn.qkv.weight"] = torch.zeros(100, 128)
        case "positions":
            state["pos_embed"] = torch.zeros(1, 8, 128)
        case "NaN":
            state["blocks.1.norm2.bias"] = torch.full((128,), float("nan"))
        case "infinity":
            state["head.bias"] = torch.tensor([0, 1, float("-inf"), 2, 3])
        case "integers":
            state["head.bias"] = torch.arange(5)
    return state


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("missing", ("misses", "blocks.1.attn.proj.bias", "norm.weight")),
        ("missing token", ("cls_token",)),
        ("missing positions", ("pos_embed",)),
        ("missing qkv", ("blocks.0.attn.qkv.weight",)),
        ("surplus", ("surplus", "decoder.weight")),
        ("many surplus", ("decoder.0", "6 more")),
        ("wrong shape", ("blocks.0.mlp.fc2.weight", "128x7", "128x128")),
        ("wrong dimensions", ("patch_embed.proj.weight", "128x192")),
        ("no thirds", ("blocks.1.attn.qkv.weight", "100")),
        ("positions", ("pos_embed", "8 positions")),
        ("NaN", ("blocks.1.norm2.bias", "NaN")),
        ("infinity", ("head.bias", "infinity")),
        ("integers", ("head.bias", "int64")),
    ],
)
@pytest.mark.parametrize("folder", [False, True])
def test_broken_weights_are_refused_by_name(change: str, words: tuple[str, ...], folder: bool, tmp_path: Path) -> None:
    model = wide()
    path = saved(tmp_path / "model.pth", broken(change, model.state_dict()))
    if folder:
        save_model(model, tmp_path, shape=shape_of(model), pretrained_cfg=CFG, name="a")
        (tmp_path / "model.safetensors").unlink()
    if folder and change in ("no thirds", "positions", "wrong dimensions"):
        words = (words[0], "expected")  # the config tells the shape, so the tensor's is just wrong
    with refused(CheckpointError, *words):
        load_model(tmp_path if folder else path)


@pytest.mark.parametrize(
    ("name", "overrides", "part"),
    [
        ("deit_tiny_patch16_224", {"qk_norm": True}, "normalised queries"),
        ("vit_tiny_patch16_224", {"attn_layer": "diff"}, "differential attention"),
        ("resnet10t", {}, "a network with convolutions"),
    ],
)
def test_files_of_other_architectures(name: str, overrides: dict[str, object], part: str, tmp_path: Path) -> None:
    small = {**WIDE, "num_heads": 2} if name != "resnet10t" else {}
    path = saved(tmp_path / "w.pth", timm.create_model(name, **{**small, **overrides}).state_dict())
    with refused(UnsupportedModelError, part):
        load_model(path)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ("{", ("config.json", "JSON")),
        ("[1]", ("config.json", "list")),
        ("{}", ("config.json", "architecture")),
        ('{"architecture": "no_such"}', ("no_such",)),
        ('{"architecture": 3}', ("3",)),
        ('{"architecture": "resnet18"}', ("resnet18",)),
        (
            '{"architecture": "deit_tiny_patch16_224", "pretrained_cfg": {}, "model_args": {"wings": 2}}',
            ("config.json", "wings"),
        ),
        ('{"architecture": "deit_tiny_patch16_224", "model_args": 7}', ("config.json",)),
        ('{"upvit_shape": {"name": "x"}}', ("config.json",)),
        ('{"upvit_shape": 3}', ("config.json",)),
        ('{"model_type": "vit"}', ("config.json", "image_size")),
        ('{"architecture": "deit_tiny_patch16_224", "model_args": {"depth": 1000000}}', ("config.json", "blocks")),
        ('{"model_type": "gpt2", "n_embd": 8, "n_head": 1, "n_layer": 1000000}', ("config.json", "blocks")),
        ('{"model_type": "vit", "image_size": [], "num_attention_heads": 2}', ("config.json",)),
        ('{"model_type": "vit", "image_size": Infinity, "num_attention_heads": 2}', ("config.json",)),
    ],
)
def test_a_malformed_config_is_refused(config: str, words: tuple[str, ...], tmp_path: Path) -> None:
    save_file(wide().state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(config)
    with refused((CheckpointError, UnsupportedModelError), *words):
        load_model(tmp_path)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("upvit_shape", "embed_dim"), "wide"),
        (("upvit_shape", "embed_dim"), -1),
        (("upvit_shape", "blocks"), []),
        (("upvit_shape", "blocks"), [{"num_heads": 0, "attention": 8, "ffn": 8}]),
        (("upvit_shape", "wings"), 2),
        (("pretrained_cfg",), "none"),
        (("pretrained_cfg", "mean"), 7),
        (("pretrained_cfg", "mean"), []),
        (("pretrained_cfg", "crop_pct"), "much"),
    ],
)
def test_our_config_with_a_wrong_value_is_refused(path: tuple[str, ...], value: object, tmp_path: Path) -> None:
    model = wide()
    save_model(model, tmp_path, shape=shape_of(model), pretrained_cfg=CFG, name="a")
    config = json.loads((tmp_path / "config.json").read_text())
    *owners, last = path
    inner = config
    for owner in owners:
        inner = inner[owner]
    inner[last] = value
    (tmp_path / "config.json").write_text(json.dumps(config))
    with refused(CheckpointError):
        load_model(tmp_path)


def test_folders_without_weights_or_with_several(tmp_path: Path) -> None:
    parent, tmp_path = tmp_path, tmp_path / "inner"
    tmp_path.mkdir()
    with refused(CheckpointError, "no weights files"):
        load_model(tmp_path)
    for name in ("a.pth", "b.pth"):
        saved(tmp_path / name, wide().state_dict())
    with refused(CheckpointError, "2 weights files"):
        load_model(tmp_path)
    (tmp_path / "b.pth").unlink()
    for beside in ("optimizer.pt", "rng_state.pth"):
        saved(tmp_path / beside, {})
    assert load_model(tmp_path).name == "a"
    assert load_model(parent).name == "a", "one folder of weights in a folder without any"


def test_shapes_are_told_without_torch() -> None:
    code = "import sys, upvit_core.records.shape; assert 'torch' not in sys.modules and 'timm' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
