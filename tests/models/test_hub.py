"""Models by name, with and without a network."""

from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from torch import nn

from tests.support.errors import refused
from upvit_core.errors import CheckpointError, UnsupportedModelError, UPViTError
from upvit_core.models import checkpoint, hub
from upvit_core.models.checkpoint import build_model, load_model
from upvit_core.records.known_shapes import deit_shape


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
        ("vit_small_patch14_dinov2", CheckpointError, ("hf-hub:timm/", "without weights")),
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
    with refused(kind, *words):
        load_model(source)


@pytest.mark.parametrize("source", ["deit_tiny_patch16_224", "hf-hub:facebook/deit-tiny-patch16-224"])
def test_no_network_is_said_at_once(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "_is_reachable", lambda: False)
    with refused(CheckpointError, "no network"):
        load_model(source)


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
