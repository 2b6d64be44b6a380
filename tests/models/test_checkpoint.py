"""Every form in which a model may come, read back with equal logits; every way in which it may be broken, refused."""

import argparse
import json
import os
import pickle
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from tests.support import ROOT
from tests.support.tiny import VARIANTS, images, tiny
from upvit_core.errors import CheckpointError, UnsupportedModelError, UPViTError
from upvit_core.models import checkpoint, hub
from upvit_core.models.build import expected_tensors
from upvit_core.models.checkpoint import build_model, load_model, load_state_dict_file, save_model, shape_of
from upvit_core.models.config import timm_config
from upvit_core.records.shape import BlockShape, ModelShape, deit_shape

CFG = {"mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6), "crop_pct": 1.0, "interpolation": "bilinear"}
WIDE = {"img_size": 16, "patch_size": 8, "embed_dim": 128, "depth": 2, "mlp_ratio": 1.0, "num_classes": 5}
UNEVEN = ModelShape(
    name="uneven",
    embed_dim=14,
    blocks=(BlockShape(2, 10, 9), BlockShape(3, 21, 30), BlockShape(1, 5, 1)),
    img_size=(16, 24),
    patch_size=(8, 4),
    in_chans=2,
    num_classes=3,
)


def perturbed(model: nn.Module, seed: int = 3) -> nn.Module:
    """The same model with every parameter moved, so that no norm or bias is at its neutral value."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


def wide(distilled: bool = False, **overrides: object) -> nn.Module:
    """A model with heads 64 wide, so that its head count can be guessed from its tensors."""
    name = "deit_tiny_distilled_patch16_224" if distilled else "deit_tiny_patch16_224"
    with torch.random.fork_rng():
        torch.manual_seed(5)
        return perturbed(timm.create_model(name, **{**WIDE, "num_heads": 2, **overrides}))


@torch.no_grad()
def logits(model: nn.Module) -> Tensor:
    return model(images(4, torch.float32))


def assert_one_sentence(error: pytest.ExceptionInfo[UPViTError], *words: str) -> None:
    text = str(error.value)
    assert "\n" not in text
    assert text.endswith((".", "?"))
    assert not re.search(r"[.!?] [A-Z]", text.removesuffix(".")), text
    for word in words:
        assert word in text


def saved(path: Path, content: object) -> Path:
    torch.save(content, path)
    return path


# Shapes and live models


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_built_model_computes_what_timms_does(variant: str) -> None:
    model, shape = tiny(variant, torch.float32)
    built = build_model(shape)
    built.load_state_dict(model.state_dict())
    assert torch.equal(logits(built.eval()), logits(model))
    assert shape_of(built, shape.name) == shape


@pytest.mark.parametrize("variant", VARIANTS)
def test_expected_tensors_are_those_of_the_model(variant: str) -> None:
    model, shape = tiny(variant, torch.float32)
    assert expected_tensors(shape) == {key: tuple(value.shape) for key, value in model.state_dict().items()}


def test_uneven_widths_are_built_and_read_back() -> None:
    model = build_model(UNEVEN)
    assert shape_of(model, "uneven") == UNEVEN
    assert model(torch.zeros(1, 2, 16, 24)).shape == (1, 3)


def test_building_draws_by_seed_and_leaves_the_global_generator_alone() -> None:
    before = torch.random.get_rng_state()
    first, same, other = (build_model(UNEVEN, seed=seed).head.weight for seed in (1, 1, 2))
    assert torch.equal(first, same)
    assert not torch.equal(first, other)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_hidden_width_that_no_ratio_gives_exactly_is_met() -> None:
    for width, hidden in ((49, 7 * 49 // 3), (96, 113), (110, 57), (187, 373)):
        shape = replace(UNEVEN, embed_dim=width, blocks=(BlockShape(1, width, hidden),))
        assert build_model(shape, device="meta").blocks[0].mlp.fc1.out_features == hidden


@pytest.mark.parametrize(
    ("name", "overrides", "part"),
    [
        ("deit_tiny_patch16_224", {"qk_norm": True}, "attn.q_norm"),
        ("deit_tiny_patch16_224", {"scale_attn_norm": True}, "attn.norm"),
        ("deit_tiny_patch16_224", {"scale_mlp_norm": True}, "mlp.norm"),
        ("deit_tiny_patch16_224", {"pre_norm": True}, "norm_pre"),
        ("deit_tiny_patch16_224", {"act_layer": "relu"}, "mlp.act"),
        ("deit_tiny_patch16_224", {"act_layer": "gelu_tanh"}, "mlp.act"),
        ("deit_tiny_patch16_224", {"norm_layer": "rmsnorm"}, "norm1"),
        ("deit_tiny_patch16_224", {"attn_layer": "diff"}, "blocks.0.attn"),
        ("deit_tiny_patch16_224", {"proj_bias": False}, "attn.proj.bias"),
        ("deit_tiny_patch16_224", {"num_classes": 0}, "head"),
        ("vit_tiny_patch16_224", {"global_pool": "map"}, "attn_pool"),
        ("vit_tiny_patch16_224", {"global_pool": "max"}, "global_pool"),
        ("vit_tiny_patch16_224", {"global_pool": "avg", "pool_include_prefix": True}, "pool_include_prefix"),
        ("vit_small_patch16_18x2_224", {}, "ParallelThingsBlock"),
        ("vit_medium_patch16_rope_reg1_gap_256", {}, "Eva"),
        ("resnet10t", {}, "ResNet"),
    ],
)
def test_parts_that_are_not_understood_are_named(name: str, overrides: dict[str, object], part: str) -> None:
    small = {"img_size": 16, "patch_size": 8, "embed_dim": 24, "depth": 1, "num_heads": 3}
    model = timm.create_model(name, device="meta", **({**small, **overrides} if "deit" in name or overrides else {}))
    with pytest.raises(UnsupportedModelError) as error:
        shape_of(model, "it")
    assert_one_sentence(error, part)


def test_one_odd_block_is_found() -> None:
    model = build_model(deit_shape("tiny"), device="meta")
    model.blocks[7].mlp.act = nn.ReLU()
    with pytest.raises(UnsupportedModelError, match=r"blocks\.7\.mlp\.act is ReLU"):
        shape_of(model)


# Folders


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
    assert loaded.head_count_source == "config"
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
    assert loaded.head_count_source == "config"


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
    with pytest.raises(CheckpointError) as error:
        load_model("demo")
    assert_one_sentence(error, "demo model is missing")
    model, shape = tiny(dtype=torch.float32)
    save_model(model, tmp_path, shape=shape, pretrained_cfg=CFG, name="demo")
    assert load_model("demo").name == "demo"


# Digest, device, head count


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


def test_head_count_from_config_from_width_or_given(tmp_path: Path) -> None:
    model = wide(num_heads=4)
    alone = saved(tmp_path / "alone.pth", model.state_dict())
    assumed = load_model(alone)
    assert (assumed.shape.num_heads, assumed.head_count_source) == (2, "assumed head width 64")
    given = load_model(alone, num_heads=4)
    assert (given.shape.num_heads, given.head_count_source) == (4, "given")
    assert torch.equal(logits(given.model), logits(model))
    folder = tmp_path / "folder"
    save_model(model, folder, shape=shape_of(model), pretrained_cfg=CFG, name="a")
    beside = load_model(folder / "model.safetensors")
    assert (beside.shape.num_heads, beside.head_count_source) == (4, "config")
    corrected = load_model(folder, num_heads=8)
    assert (corrected.shape.num_heads, corrected.head_count_source) == (8, "given")
    assert corrected.model.blocks[0].attn.num_heads == 8


def test_a_config_about_another_model_does_not_count_for_a_file_beside_it(tmp_path: Path) -> None:
    model, shape = tiny(dtype=torch.float32)
    save_model(model, tmp_path, shape=shape, pretrained_cfg=CFG, name="a")
    other = load_model(saved(tmp_path / "other.pth", wide().state_dict()))
    assert other.head_count_source == "assumed head width 64"


@pytest.mark.parametrize(("heads", "words"), [(None, ("16", "64", "num_heads")), (3, ("16", "3 heads")), (0, ("0",))])
def test_a_head_count_that_cannot_be_is_refused(heads: int | None, words: tuple[str, ...], tmp_path: Path) -> None:
    path = saved(tmp_path / "w.pth", tiny(dtype=torch.float32)[0].state_dict())
    with pytest.raises(CheckpointError) as error:
        load_model(path, num_heads=heads)
    assert_one_sentence(error, *words)


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


# Files


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
    assert list(load_state_dict_file(path)) == ["a"]


@pytest.mark.parametrize(
    "overrides",
    [
        {"reg_tokens": 2},
        {"reg_tokens": 4, "no_embed_class": True},
        {"class_token": False, "global_pool": "avg"},
        {"class_token": False, "global_pool": "avg", "reg_tokens": 3, "no_embed_class": True},
        {"global_pool": "avg"},
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


# Hugging Face's names


def transformers_names(model: nn.Module, heads: dict[str, str], prefix: str, generation: int) -> dict[str, Tensor]:
    """timm's tensors as `transformers` names them, query, key and value apart; written from its class definitions."""
    old = generation == 4
    fixed = {
        "cls_token": "embeddings.cls_token",
        "dist_token": "embeddings.distillation_token",
        "reg_token": "embeddings.distillation_token",
        "pos_embed": "embeddings.position_embeddings",
        "patch_embed.proj.weight": "embeddings.patch_embeddings.projection.weight",
        "patch_embed.proj.bias": "embeddings.patch_embeddings.projection.bias",
        "norm.weight": "layernorm.weight",
        "norm.bias": "layernorm.bias",
    }
    inside = {
        "norm1": "layernorm_before",
        "norm2": "layernorm_after",
        "attn.proj": "attention.output.dense" if old else "attention.o_proj",
        "mlp.fc1": "intermediate.dense" if old else "mlp.fc1",
        "mlp.fc2": "output.dense" if old else "mlp.fc2",
    }
    qkv = ("query", "key", "value") if old else ("q_proj", "k_proj", "v_proj")
    out: dict[str, Tensor] = {}
    for key, tensor in model.state_dict().items():
        owner, _, leaf = key.rpartition(".")
        if key in fixed:
            out[prefix + fixed[key]] = tensor
        elif owner in heads:
            out[f"{heads[owner]}.{leaf}"] = tensor
        else:
            _, index, part = owner.split(".", 2)
            stem = f"{prefix}encoder.layer.{index}." if old else f"{prefix}layers.{index}."
            if part == "attn.qkv":
                for name, third in zip(qkv, tensor.chunk(3), strict=True):
                    out[f"{stem}attention.{'attention.' if old else ''}{name}.{leaf}"] = third.clone()
            else:
                out[f"{stem}{inside[part]}.{leaf}"] = tensor
    return out


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
    with pytest.raises(CheckpointError) as error:
        load_model(saved(tmp_path / "w.bin", {**state, key: state[key][:64]}))
    assert_one_sentence(error, "(64, 128)", "blocks.1.attn.qkv.weight")
    del state[key]
    with pytest.raises(CheckpointError) as error:
        load_model(saved(tmp_path / "w.bin", state))
    assert_one_sentence(error, "key", "blocks.1.attn.qkv.weight")


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
    assert loaded.head_count_source == "config"
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
    with pytest.raises((UnsupportedModelError, CheckpointError)) as error:
        load_model(tmp_path)
    assert_one_sentence(error, word)


# timm and hub names


def test_a_timm_name_without_weights_is_drawn_by_seed() -> None:
    before = torch.random.get_rng_state()
    loaded = load_model("deit_tiny_patch16_224", pretrained=False, seed=1)
    same, other = (load_model("deit_tiny_patch16_224", pretrained=False, seed=seed) for seed in (1, 2))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert (loaded.name, loaded.digest, loaded.has_weights) == ("DeiT-T", "", False)
    assert loaded.shape == replace(deit_shape("tiny"), name="DeiT-T")
    assert torch.equal(loaded.model.head.weight, same.model.head.weight)
    assert not torch.equal(loaded.model.head.weight, other.model.head.weight)


@pytest.mark.parametrize(
    ("source", "kind", "words"),
    [
        ("resnet18", UnsupportedModelError, ("resnet18", "resnet")),
        ("vit_small_patch14_dinov2", UnsupportedModelError, ("head",)),
        ("deit_smal_patch16_224", CheckpointError, ("deit_small_patch16_224",)),
        ("xyzzy", CheckpointError, ("xyzzy",)),
        ("deit_tiny_patch16_224.nonsense", CheckpointError, ("nonsense",)),
        ("vit_wee_patch16_reg1_gap_256", CheckpointError, ("hf-hub:timm/", "costs")),
        ("vit_tiny_patch16_384.in1k", CheckpointError, ("in1k",)),
        ("", CheckpointError, ("demo",)),
        ("some/where.pth", CheckpointError, ("does not exist",)),
        ("facebook/deit-tiny", CheckpointError, ("hf-hub:facebook/deit-tiny",)),
        ("local-dir:nowhere", CheckpointError, ("nowhere does not exist",)),
    ],
)
def test_names_that_cannot_be_opened(source: str, kind: type[UPViTError], words: tuple[str, ...]) -> None:
    with pytest.raises(kind) as error:
        load_model(source)
    assert_one_sentence(error, *words)


@pytest.mark.parametrize("source", ["deit_tiny_patch16_224", "hf-hub:facebook/deit-tiny-patch16-224"])
def test_no_network_is_said_at_once(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "_is_reachable", lambda: False)
    with pytest.raises(CheckpointError) as error:
        load_model(source)
    assert_one_sentence(error, "no network")


def test_a_hub_that_cannot_be_reached_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(hub, "getproxies", dict)
    assert not hub._is_reachable()


def test_what_the_hub_gives_is_opened_as_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build_model(deit_shape("tiny"))
    timm.models.save_for_hf(_named(model), tmp_path, safe_serialization=True)
    asked = []
    monkeypatch.setattr(checkpoint, "fetch", lambda repo: asked.append(repo) or tmp_path)
    for source in ("deit_tiny_patch16_224", "hf-hub:timm/deit_tiny_patch16_224.fb_in1k@main"):
        loaded = load_model(source)
        assert loaded.name == "DeiT-T"
        assert loaded.has_weights
        assert torch.equal(loaded.model.head.weight, model.head.weight)
    assert asked == ["timm/deit_tiny_patch16_224.fb_in1k", "timm/deit_tiny_patch16_224.fb_in1k@main"]


def _named(model: nn.Module) -> nn.Module:
    """With the attributes that timm's factory leaves, which its export reads."""
    stock = timm.create_model("deit_tiny_patch16_224", device="meta")
    model.pretrained_cfg, model._model_args = stock.pretrained_cfg, {}
    return model


# Broken files


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
    with pytest.raises(CheckpointError) as error:
        load_model(path)
    assert_one_sentence(error, "system" if form != "pickle" else "pickle", "nothing in a file is ever run")
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
        with pytest.raises(CheckpointError) as error:
            load_state_dict_file(path)
        assert_one_sentence(error, str(path))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", ("empty",)),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", ("Git LFS",)),
        (b"<!DOCTYPE html><html>404</html>", ("DOCTYPE",)),
        (b"PK\x03\x04 not really", ("damaged",)),
    ],
)
def test_files_that_hold_no_weights(content: bytes, words: tuple[str, ...], tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    path.write_bytes(content)
    with pytest.raises(CheckpointError) as error:
        load_model(path)
    assert_one_sentence(error, *words)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([torch.zeros(2)], ("list",)),
        ({"epoch": 3, "optimizer": {}}, ("epoch", "optimizer")),
        ({"head.weight": torch.zeros(2), "epoch": 3}, ("epoch",)),
        ({}, ("none",)),
    ],
)
def test_pickles_that_hold_no_state_dict(content: object, words: tuple[str, ...], tmp_path: Path) -> None:
    with pytest.raises(CheckpointError) as error:
        load_model(saved(tmp_path / "w.pth", content))
    assert_one_sentence(error, *words)


def test_a_torchscript_program_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.zeros(1, 2)), path)
    with pytest.raises(CheckpointError) as error:
        load_model(path)
    assert_one_sentence(error, "TorchScript")


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
        case "no classifier":
            del state["head.weight"], state["head.bias"]
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
        ("no classifier", ("head.weight", "classifier")),
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
    with pytest.raises(CheckpointError) as error:
        load_model(tmp_path if folder else path)
    if folder and change in ("no thirds", "positions", "wrong dimensions"):
        words = (words[0], "expected")  # the config tells the shape, so the tensor's is just wrong
    assert_one_sentence(error, *words)


@pytest.mark.parametrize(
    ("name", "overrides", "part"),
    [
        ("deit_tiny_patch16_224", {"qk_norm": True}, "normalised queries"),
        ("deit_tiny_patch16_224", {"pre_norm": True}, "norm before the blocks"),
        ("vit_tiny_patch16_224", {"global_pool": "map"}, "attention pooling"),
        ("resnet10t", {}, "not a Vision Transformer"),
    ],
)
def test_files_of_other_architectures(name: str, overrides: dict[str, object], part: str, tmp_path: Path) -> None:
    small = {**WIDE, "num_heads": 2} if name != "resnet10t" else {}
    path = saved(tmp_path / "w.pth", timm.create_model(name, **{**small, **overrides}).state_dict())
    with pytest.raises(UnsupportedModelError) as error:
        load_model(path)
    assert_one_sentence(error, part)


# Broken folders


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
    ],
)
def test_a_malformed_config_is_refused(config: str, words: tuple[str, ...], tmp_path: Path) -> None:
    save_file(wide().state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(config)
    with pytest.raises((CheckpointError, UnsupportedModelError)) as error:
        load_model(tmp_path)
    assert_one_sentence(error, *words)


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
    with pytest.raises(CheckpointError) as error:
        load_model(tmp_path)
    assert_one_sentence(error)


def test_folders_without_weights_or_with_several(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError) as error:
        load_model(tmp_path)
    assert_one_sentence(error, "no weights files")
    for name in ("a.pth", "b.pth"):
        saved(tmp_path / name, wide().state_dict())
    with pytest.raises(CheckpointError) as error:
        load_model(tmp_path)
    assert_one_sentence(error, "2 weights files")
    (tmp_path / "b.pth").unlink()
    assert load_model(tmp_path).name == "a"


def test_shapes_are_told_without_torch() -> None:
    code = "import sys, upvit_core.records.shape; assert 'torch' not in sys.modules and 'timm' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
