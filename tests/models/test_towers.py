"""Vision towers without a classifier, in the names of several libraries: features equal to the library's own."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.models.vision_transformer import _convert_openai_clip
from torch import Tensor, nn

from tests.support.checkpoints import perturbed, saved
from tests.support.errors import refused
from tests.support.shrunk import SMALL as SMALL_ARGUMENTS
from tests.support.shrunk import shrunk
from tests.support.tiny import images
from upvit_core.errors import UnsupportedModelError
from upvit_core.models.checkpoint import load_model, save_model, shape_of
from upvit_core.profiling.macs import count_parameters

SMALL = {"image_size": 16, "patch_size": 8, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}


@torch.no_grad()
def assert_equal_features(source: Path, reference: Callable[[Tensor], Tensor], **options: Any) -> None:
    loaded, x = load_model(source, **options), images(4, torch.float32)
    assert loaded.shape.features
    expected = reference(x)
    assert loaded.shape.outputs == expected.shape[1]
    torch.testing.assert_close(loaded.model(x), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("kind", ["Dinov2", "Dinov2WithRegisters"])
def test_dinov2_of_transformers(kind: str, gated: bool, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    config = getattr(transformers, f"{kind}Config")(**SMALL, use_swiglu_ffn=gated)
    model = perturbed(getattr(transformers, f"{kind}Model")(config)).eval()
    model.save_pretrained(tmp_path)
    assert_equal_features(tmp_path, lambda x: model(x).pooler_output)


def test_a_gated_ffn_in_the_names_of_dinov2_and_what_only_a_config_tells(tmp_path: Path) -> None:
    model, x = shrunk("vit_giant_patch14_dinov2"), images(4, torch.float32)
    theirs = {key.replace("fc1", "w12").replace("fc2", "w3"): tensor for key, tensor in model.state_dict().items()}
    assert_equal_features(saved(tmp_path / "w.pth", theirs), lambda x: model(x), num_heads=4)
    eva = shrunk("eva02_small_patch14_224", num_classes=5)
    path = saved(tmp_path / "eva.pth", eva.state_dict())
    with refused(UnsupportedModelError, "config.json"):
        load_model(path)
    about = {"architecture": "eva02_small_patch14_224", "num_classes": 5, "model_args": SMALL_ARGUMENTS}
    about |= {"pretrained_cfg": {"input_size": [3, 16, 16]}}
    (tmp_path / "config.json").write_text(json.dumps(about))
    with torch.no_grad():
        torch.testing.assert_close(load_model(path).model(x), eva(x), rtol=1e-4, atol=1e-4)


def test_ijepa_of_transformers_gives_the_mean_over_patches(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    config = transformers.IJepaConfig(**SMALL, intermediate_size=64)
    model = perturbed(transformers.IJepaModel(config)).eval()
    model.save_pretrained(tmp_path)
    assert_equal_features(tmp_path, lambda x: model(x).last_hidden_state.mean(1))


def test_siglips_tower_of_transformers_alone_and_beside_one_of_texts(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    vision = {**SMALL, "intermediate_size": 48}
    tower = perturbed(transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**vision))).eval()
    tower.save_pretrained(tmp_path / "tower")
    assert_equal_features(tmp_path / "tower", lambda x: tower(x).pooler_output)
    text = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    both = perturbed(transformers.SiglipModel(transformers.SiglipConfig(text_config=text, vision_config=vision))).eval()
    both.save_pretrained(tmp_path / "both")
    assert_equal_features(tmp_path / "both", lambda x: both.vision_model(x).pooler_output)
    bare = load_model(saved(tmp_path / "w.pth", tower.state_dict()), num_heads=4)
    assert (bare.shape.act, bare.recognised.assumes) == ("gelu_tanh", "")
    loaded = load_model(tmp_path / "tower")
    save_model(loaded.model, tmp_path / "ours", shape=loaded.shape, pretrained_cfg=loaded.pretrained_cfg, name="ours")
    stock = timm.create_model(f"local-dir:{tmp_path / 'ours'}", pretrained=True).eval()
    assert_equal_features(tmp_path / "ours", lambda x: stock(x))


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_siglip_2_of_transformers_at_the_size_of_its_grid(kind: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    widths = {key: value for key, value in SMALL.items() if key != "image_size"} | {"intermediate_size": 48}
    config = transformers.Siglip2VisionConfig(**widths, num_patches=4)
    tower = perturbed(transformers.Siglip2VisionModel(config)).eval()
    path = tmp_path if kind == "folder" else saved(tmp_path / "w.pth", tower.state_dict())
    if kind == "folder":
        tower.save_pretrained(path)

    def features(x: Tensor) -> Tensor:
        patches = x.unfold(2, 8, 8).unfold(3, 8, 8).permute(0, 2, 3, 4, 5, 1).reshape(len(x), 4, -1)
        mask, grid = torch.ones(len(x), 4, dtype=torch.long), torch.tensor([[2, 2]] * len(x))
        return tower(pixel_values=patches, pixel_attention_mask=mask, spatial_shapes=grid).pooler_output

    assert_equal_features(path, features, num_heads=4)
    assert ("keeps their shape" in load_model(path, num_heads=4).recognised.config) is (kind == "folder")


def test_clips_tower_of_open_clip(tmp_path: Path) -> None:
    of = pytest.importorskip("open_clip.transformer", reason="open_clip is not installed")
    widths = {"image_size": 16, "patch_size": 8, "width": 32, "layers": 2, "heads": 4, "mlp_ratio": 2, "output_dim": 24}
    model = perturbed(of.VisionTransformer(**widths)).eval()
    path = saved(tmp_path / "w.pth", {f"visual.{name}": tensor for name, tensor in model.state_dict().items()})
    assert_equal_features(path, lambda x: model(x), num_heads=4)
    assert "class token" in load_model(path, num_heads=4).recognised.assumes


@pytest.mark.parametrize("num_classes", [0, 7])
def test_a_bare_siglip_of_timm_opens_and_says_what_it_takes_its_activations_for(
    num_classes: int, tmp_path: Path
) -> None:
    widths = {"img_size": 16, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 4, "num_classes": num_classes}
    model = perturbed(timm.create_model("vit_base_patch16_siglip_224", **widths)).eval()
    path, x = saved(tmp_path / "w.pth", model.state_dict()), images(4, torch.float32)
    loaded = load_model(path, num_heads=4)
    with torch.no_grad():
        torch.testing.assert_close(loaded.model(x), model(x), rtol=1e-5, atol=1e-5)
    assert loaded.shape == replace(shape_of(model, loaded.shape.name), name=loaded.shape.name)
    assert "taken to be GELU" in loaded.recognised.assumes


def test_clips_tower_of_transformers_with_and_without_projection(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    vision = transformers.CLIPVisionConfig(**SMALL, intermediate_size=64, projection_dim=24)
    tower = perturbed(transformers.CLIPVisionModel(vision)).eval()
    tower.save_pretrained(tmp_path / "tower")
    assert_equal_features(tmp_path / "tower", lambda x: tower(x).pooler_output)
    projected = perturbed(transformers.CLIPVisionModelWithProjection(vision)).eval()
    projected.save_pretrained(tmp_path / "projected")
    assert_equal_features(tmp_path / "projected", lambda x: projected(x).image_embeds)
    text = transformers.CLIPTextConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
    both = transformers.CLIPConfig(
        text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=24, torch_dtype="float32"
    )
    whole = perturbed(transformers.CLIPModel(both)).eval()
    whole.save_pretrained(tmp_path / "whole")
    assert_equal_features(tmp_path / "whole", lambda x: whole.visual_projection(whole.vision_model(x).pooler_output))
    assert load_model(tmp_path / "whole").shape.act == "quick_gelu"


@pytest.mark.parametrize("kind", ["CLIP", "Siglip"])
def test_classifiers_of_transformers_on_towers(kind: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    vision = getattr(transformers, f"{kind}VisionConfig")(**SMALL, intermediate_size=64)
    names = {0: "ant", 1: "bee", 2: "cat"}
    of = getattr(transformers, f"{kind}Config")
    config = of(vision_config=vision.to_dict(), id2label=names, label2id={v: k for k, v in names.items()})
    model: Any = perturbed(getattr(transformers, f"{kind}ForImageClassification")(config)).eval()
    model.save_pretrained(tmp_path / "theirs")
    loaded, x = load_model(tmp_path / "theirs"), images(4, torch.float32)
    with torch.no_grad():
        torch.testing.assert_close(loaded.model(x), model(x).logits, rtol=1e-5, atol=1e-5)
    assert (loaded.shape.classes, loaded.class_names) == (3, ("ant", "bee", "cat"))
    save_model(loaded.model, tmp_path / "ours", shape=loaded.shape, pretrained_cfg=loaded.pretrained_cfg, name="ours")
    stock = timm.create_model(f"local-dir:{tmp_path / 'ours'}", pretrained=True).eval()
    torch.testing.assert_close(stock(x), loaded.model(x))


def openai_names(model: nn.Module) -> dict[str, Tensor]:
    """A tower of timm in the names of OpenAI's CLIP."""
    out: dict[str, Tensor] = {}
    pairs = (
        ("norm_pre.", "ln_pre."), ("norm.", "ln_post."), ("patch_embed.proj.", "conv1."),
        ("blocks.", "transformer.resblocks."), (".norm1.", ".ln_1."), (".norm2.", ".ln_2."),
        ("attn.qkv.", "attn.in_proj_"), ("attn.proj.", "attn.out_proj."), (".fc1.", ".c_fc."), (".fc2.", ".c_proj."),
    )  # fmt: skip
    for key, tensor in model.state_dict().items():
        for ours, theirs in pairs:
            key = key.replace(ours, theirs) if ours.startswith(".") or key.startswith(ours) or "attn" in ours else key
        out[f"visual.{key}"] = tensor
    out["visual.class_embedding"] = out.pop("visual.cls_token")[0, 0]
    out["visual.positional_embedding"] = out.pop("visual.pos_embed")[0]
    out["visual.proj"] = out.pop("visual.head.weight").T
    out.pop("visual.head.bias")
    return out | {"logit_scale": torch.ones(()), "text_projection": torch.zeros(4, 4), "ln_final.weight": torch.ones(4)}


def test_openais_clip_as_timm_reads_it(tmp_path: Path) -> None:
    arguments = {"img_size": 16, "patch_size": 8, "embed_dim": 128, "depth": 2, "num_heads": 2, "num_classes": 24}
    model: Any = perturbed(timm.create_model("vit_base_patch16_clip_224", **arguments)).eval()
    nn.init.zeros_(model.head.bias)
    state = openai_names(model)
    again = _convert_openai_clip(state, model)
    assert all(torch.equal(again[key], tensor) for key, tensor in model.state_dict().items())
    path = saved(tmp_path / "w.pth", state)
    assert_equal_features(path, model)
    assert any("QuickGELU" in told for told in load_model(path).recognised.assumptions)


@pytest.mark.parametrize(
    ("name", "features", "outputs"),
    [
        ("vit_base_patch16_clip_quickgelu_224.openai", True, 512), ("vit_base_patch16_clip_224.laion2b", True, 512),
        ("vit_base_patch16_clip_224.laion2b_ft_in12k_in1k", False, 1000), ("vit_small_patch14_dinov2", True, 384),
        ("vit_small_patch14_reg4_dinov2", True, 384), ("vit_small_patch16_224.dino", True, 384),
    ],
)  # fmt: skip
def test_towers_by_their_names_in_timm(name: str, features: bool, outputs: int) -> None:
    model = timm.create_model(name, device="meta")
    shape = shape_of(model, name)
    assert (shape.features, shape.outputs) == (features, outputs)
    assert count_parameters(shape) == sum(p.numel() for p in model.parameters())
