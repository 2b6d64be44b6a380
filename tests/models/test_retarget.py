"""A backbone taken to other images: head, channels, image size; runs without a teacher; maps; export without a head."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch

from tests.support.small_run import CFG, half_plan
from tests.support.tiny import VARIANTS, images, tiny
from tests.support.verbs import call
from upvit_core.data import open_images
from upvit_core.errors import CheckpointError, ExportError, UnsupportedModelError
from upvit_core.export import export_backbone_onnx, save_backbone
from upvit_core.models.checkpoint import LoadedModel, load_model
from upvit_core.models.retarget import fit_head, retarget
from upvit_core.pruning.surgery import prune
from upvit_core.records.plan import PruningPlan
from upvit_core.training.settings import DistillSettings

NAMES = ("a", "b", "c")


def loaded(variant: str = "class token") -> LoadedModel:
    model, shape = tiny(variant, torch.float32)
    return LoadedModel(model, shape, "tiny", "tiny", "", True, "config", dict(CFG), tuple("vwxyz"))


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_new_head_and_nothing_else(variant: str) -> None:
    model = loaded(variant)
    before = {key: value.clone() for key, value in model.model.state_dict().items()}
    fitted = retarget(model, NAMES)
    x = images(dtype=torch.float32)
    assert torch.equal(fitted.model(x), torch.zeros(6, 3)), "every class is as likely"
    assert torch.equal(fitted.model.forward_features(x), model.model.forward_features(x))
    assert (fitted.class_names, fitted.shape.num_classes, fitted.pretrained_cfg["num_classes"]) == (NAMES, 3, 3)
    assert all(torch.equal(before[key], value) for key, value in model.model.state_dict().items())


def test_the_head_stays_where_the_classes_are_the_same() -> None:
    model, x = loaded(), images(dtype=torch.float32)
    assert torch.equal(retarget(model, tuple("vwxyz")).model(x), model.model(x))
    assert not retarget(model, tuple("12345")).model(x).any()
    assert torch.equal(retarget(model, tuple("12345"), head="keep").model(x), model.model(x))
    assert not retarget(model, tuple("vwxyz"), head="new").model(x).any()
    with pytest.raises(UnsupportedModelError, match="head of 5 classes and the images have 3"):
        retarget(model, NAMES, head="keep")


def test_a_trained_head_follows_the_names_of_the_classes() -> None:
    model, x = loaded(), images(dtype=torch.float32)
    logits = model.model(x)
    torch.testing.assert_close(retarget(model, ("Z", "v", "x")).model(x), logits[:, [4, 0, 2]])
    torch.testing.assert_close(retarget(model, tuple("zyxwv")).model(x), logits.flip(1))
    nameless = replace(model, class_names=None)
    assert torch.equal(retarget(nameless, tuple("12345")).model(x), logits)
    assert not retarget(nameless, NAMES).model(x).any()
    told = [fit_head(*what).told for what in ((model, ("z", "v")), (model, ("z", "other")), (nameless, tuple("12345")))]
    assert "cut to these 2 of its 5" in told[0]
    assert "new, for 2 classes: the model has 5" in told[1]
    assert "stays, for 5 classes in their order, since the model names none" in told[2]


def test_grey_images_are_seen_alike_in_colour_and_back() -> None:
    colour = loaded()
    grey = retarget(colour, tuple("vwxyz"), in_chans=1)
    again = retarget(grey, tuple("vwxyz"), in_chans=3)
    x = images(dtype=torch.float32)[:, :1]
    expected = colour.model(x.expand(-1, 3, -1, -1))
    torch.testing.assert_close(grey.model(x), expected)
    torch.testing.assert_close(again.model(x.expand(-1, 3, -1, -1)), expected)
    assert len(grey.pretrained_cfg["mean"]) == 1
    assert len(again.pretrained_cfg["mean"]) == 3


@pytest.mark.parametrize("variant", ["class token", "registers"])
def test_another_image_size_is_timms_resampling(variant: str) -> None:
    model = loaded(variant)
    fitted = retarget(model, tuple("vwxyz"), img_size=24)
    name, overrides = VARIANTS[variant]
    stock = timm.create_model(
        name, img_size=16, patch_size=8, embed_dim=16, depth=3, num_heads=4, num_classes=5, **overrides
    )
    stock.load_state_dict(model.model.state_dict())
    stock.eval().set_input_size(24)
    x = torch.randn(2, 3, 24, 24, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(fitted.model(x), stock(x))
    with pytest.raises(CheckpointError, match="20 by 20 pixels cannot be cut into patches of 8 by 8"):
        retarget(model, NAMES, img_size=20)


def halved(variant: str = "class token") -> LoadedModel:
    model = loaded(variant)
    plan = PruningPlan.from_json(json.dumps(half_plan(model.shape)))
    thin = prune(model.model, model.shape, plan)
    return LoadedModel(thin, plan.shape_after, "thin", "thin", "", True, "config", dict(CFG), model.class_names)


@pytest.mark.parametrize("variant", ["class token", "distilled", "average pool", "registers"])
def test_a_pruned_models_maps_keep_their_grid(variant: str) -> None:
    """A detector takes maps of the same places: H x W as before, the patch's own tokens in their rows and columns."""
    before, after = loaded(variant), halved(variant)
    x = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    grid = (2, 2)
    for model in (before, after):
        maps = model.model.forward_intermediates(x, intermediates_only=True)
        assert [tuple(y.shape) for y in maps] == [(2, model.shape.embed_dim, *grid)] * 3
        stream, first = model.model._pos_embed(model.model.patch_embed(x)), model.shape.num_prefix_tokens
        for y, block in zip(maps, model.model.blocks, strict=True):
            stream = block(stream)
            for row in range(2):
                for column in range(2):
                    torch.testing.assert_close(y[:, :, row, column], stream[:, first + 2 * row + column])
    assert after.shape.embed_dim == before.shape.embed_dim // 2


def test_a_patch_moves_its_own_place_of_the_first_map_only() -> None:
    """Before attention has mixed places, a change in one patch shows at its place of the map and nowhere else."""
    thin = halved().model
    with torch.no_grad():
        for block in thin.blocks:
            block.attn.proj.weight.zero_()
    x = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    other = x.clone()
    other[..., 8:, :8] += 1
    a, b = (thin.forward_intermediates(y, intermediates_only=True)[-1] for y in (x, other))
    moved = (a - b).abs().amax(dim=(0, 1)) > 1e-6
    assert moved.tolist() == [[False, False], [True, False]]


@pytest.mark.parametrize("variant", ["class token", "distilled"])
def test_a_backbone_for_timm_has_no_head_and_the_same_features(variant: str, tmp_path: Path) -> None:
    thin = halved(variant)
    told = save_backbone(thin, tmp_path)
    assert told["max_abs_difference"] < 1e-5
    stock = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    x = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(stock.forward_features(x), thin.model.forward_features(x))
    assert stock.num_classes == 0
    assert not [name for name in stock.state_dict() if name.startswith("head")]
    maps = timm.create_model(f"local-dir:{tmp_path}", pretrained=True, features_only=True, out_indices=(0, 2))
    assert [tuple(y.shape) for y in maps.eval()(x)] == [(3, thin.shape.embed_dim, 2, 2)] * 2


def test_a_backbone_in_onnx_gives_features_and_map(tmp_path: Path) -> None:
    import onnxruntime

    thin = halved()
    told = export_backbone_onnx(thin.model, thin.shape, tmp_path / "b.onnx")
    assert told["outputs"] == {"features": [8], "map": [8, 2, 2]}
    session = onnxruntime.InferenceSession(str(tmp_path / "b.onnx"))
    x = torch.randn(5, 3, 16, 16, generator=torch.Generator().manual_seed(3))
    features, last = session.run(["features", "map"], {"images": x.numpy()})
    with torch.no_grad():
        tokens = thin.model.forward_features(x)
    np.testing.assert_allclose(features, tokens[:, 0].numpy(), atol=1e-4)
    np.testing.assert_allclose(last.transpose(0, 2, 3, 1).reshape(5, 4, 8), tokens[:, 1:].numpy(), atol=1e-4)


def test_uneven_blocks_have_no_timm_backbone(tmp_path: Path) -> None:
    thin = halved()
    blocks = (*thin.shape.blocks[:-1], replace(thin.shape.blocks[-1], ffn=3))
    uneven = replace(thin, shape=replace(thin.shape, blocks=blocks))
    with pytest.raises(ExportError, match="widths that no class of stock timm builds"):
        save_backbone(uneven, tmp_path)


def test_layer_decay_is_timms_rule(home: Path) -> None:
    from upvit_core.training.batches import TrainingBatches, batch_source
    from upvit_core.training.distillation import Distillation, make_accelerator

    fitted = retarget(loaded(), tuple("vwxyz"))
    data = open_images(str(home / "images"), "train", pretrained_cfg=CFG)
    batches = TrainingBatches(batch_source(data, CFG, seed=0), batch_size=8, seed=0)
    job = Distillation(
        fitted.model, None, batches, DistillSettings(batch_size=8, layer_decay=0.5, warmup_epochs=0), epochs=1,
        num_classes=5, accelerator=make_accelerator("cpu", "no"),
    )  # fmt: skip
    rate = {id(p): group["lr"] for group in job.optimizer.param_groups for p in group["params"]}
    of = {name: rate[id(p)] for name, p in fitted.model.named_parameters()}
    top = job.settings.lr
    assert of["head.weight"] == pytest.approx(top)
    assert of["blocks.2.mlp.fc1.weight"] == pytest.approx(top / 2)
    assert of["blocks.0.mlp.fc1.weight"] == pytest.approx(top / 8)
    assert of["patch_embed.proj.weight"] == pytest.approx(top / 16)


def test_the_verb(home: Path, tmp_path: Path) -> None:
    done = call(
        "finetune", "demo", "--data", home / "images", "--epochs", 1, "--preset", "demo", "--batch-size", 8,
        "--device", "cpu", "--out", tmp_path / "runs",
    )  # fmt: skip
    assert done["state"] == "done"
    model = Path(done["run"]) / "model"
    shape = load_model(model).shape
    assert (shape.num_classes, shape.in_chans, shape.img_size) == (5, 1, (28, 28)), "the demo's own images, in grey"
    again = call("evaluate", model, "--data", home / "images")
    assert again["top1"] == pytest.approx(done["top1"])
    told = call("export", model, "--backbone", "--format", "timm", "--out", tmp_path / "backbone")
    assert told["features"] == 96
    assert timm.create_model(f"local-dir:{tmp_path / 'backbone'}", pretrained=True).num_features == 96
