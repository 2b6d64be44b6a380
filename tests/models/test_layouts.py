"""Checkpoints in the names of other libraries: logits equal to those of a model that the library itself made."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

from tests.support.checkpoints import perturbed, saved, wide
from tests.support.errors import refused
from tests.support.tiny import TensorProxy, images
from upvit_core.errors import UnsupportedModelError
from upvit_core.importance.fisher import Fisher
from upvit_core.models.build import adapt
from upvit_core.models.checkpoint import load_model, save_model
from upvit_core.planning.ratios import Ratios, plan_uniform
from upvit_core.pruning.surgery import prune

IMAGE = {"image_size": 16, "patch_size": 8}


@torch.no_grad()
def assert_equal_logits(path: Path, reference: Callable[[Tensor], Tensor], **options: object) -> None:
    loaded = load_model(path, **options)  # type: ignore[arg-type]
    x = images(4, torch.float32)
    assert loaded.model(x) == pytest.approx(reference(x), abs=1e-5)


@pytest.mark.parametrize("prefix", ["", "model.", "module.net."])
def test_torchvision(prefix: str, tmp_path: Path) -> None:
    model = torchvision.models.VisionTransformer(
        **IMAGE, num_layers=2, num_heads=4, hidden_dim=128, mlp_dim=96, num_classes=5
    )
    perturbed(model)
    state = {prefix + key: tensor for key, tensor in model.state_dict().items()}
    assert_equal_logits(saved(tmp_path / "w.pth", state), model, num_heads=4)


@pytest.mark.parametrize("kind", ["ViTMSN", "IJepa"])
def test_other_vits_of_transformers(kind: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    config = getattr(transformers, f"{kind}Config")(
        **IMAGE, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48, num_labels=3
    )
    model = perturbed(getattr(transformers, f"{kind}ForImageClassification")(config))
    model.save_pretrained(tmp_path / "folder", max_shard_size="20KB")
    assert len(list((tmp_path / "folder").glob("*.safetensors"))) > 1
    assert_equal_logits(tmp_path / "folder", lambda x: model(x).logits)


class Encoder(nn.Module):
    """A ViT as people write it around `nn.TransformerEncoder`, its tokens first or its batch first."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(128, 2, 96, 0.0, "gelu", batch_first=True, norm_first=True)
        self.patchify = nn.Conv2d(3, 128, 8, 8)
        self.cls = nn.Parameter(torch.zeros(1, 1, 128))
        self.pos_embedding = nn.Parameter(torch.zeros(1, 5, 128))
        self.encoder = nn.TransformerEncoder(layer, 2, norm=nn.LayerNorm(128), enable_nested_tensor=False)
        self.classifier = nn.Linear(128, 5)

    def forward(self, x: Tensor) -> Tensor:
        patches = self.patchify(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.cls.expand(len(x), -1, -1), patches], 1) + self.pos_embedding
        return self.classifier(self.encoder(tokens)[:, 0])


@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"state_dict": {f"model.{k}": v for k, v in s.items()}}])
def test_blocks_around_multihead_attention(wrap: Callable[[object], object], tmp_path: Path) -> None:
    model = perturbed(Encoder())
    path = saved(tmp_path / "w.pth", wrap(model.state_dict()))
    assert_equal_logits(path, model)
    assert any("pre-norm" in sentence for sentence in load_model(path).recognised.assumptions)


def vit_pytorch_names(state: Mapping[str, Tensor], old: bool) -> dict[str, Tensor]:
    """timm's tensors as two generations of vit-pytorch name them; written from its class definitions."""
    inside = {
        "norm1": "0.norm", "attn.qkv": "0.fn.to_qkv", "attn.proj": "0.fn.to_out.0",
        "norm2": "1.norm", "mlp.fc1": "1.fn.net.0", "mlp.fc2": "1.fn.net.3",
    } if old else {
        "norm1": "0.norm", "attn.qkv": "0.to_qkv", "attn.proj": "0.to_out.0",
        "norm2": "1.net.0", "mlp.fc1": "1.net.1", "mlp.fc2": "1.net.4",
    }  # fmt: skip
    ends = {"norm": "mlp_head.0" if old else "transformer.norm", "head": "mlp_head.1" if old else "mlp_head"}
    out = {"cls_token": state["cls_token"], "pos_embedding": state["pos_embed"]}
    weight = state["patch_embed.proj.weight"]
    out["to_patch_embedding.1.weight"] = weight.permute(0, 2, 3, 1).flatten(1)  # pixels of (p1 p2 c)
    out["to_patch_embedding.1.bias"] = state["patch_embed.proj.bias"]
    for key, tensor in state.items():
        owner, _, leaf = key.rpartition(".")
        if owner in ends:
            out[f"{ends[owner]}.{leaf}"] = tensor
        elif match := re.match(r"blocks\.(\d+)\.(.*)", owner):
            out[f"transformer.layers.{match[1]}.{inside[match[2]]}.{leaf}"] = tensor
    return out


@pytest.mark.parametrize("old", [True, False])
def test_vit_pytorch(old: bool, tmp_path: Path) -> None:
    model = wide(qkv_bias=False)
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = 1e-5  # torch's, which that library leaves as it is
    path = saved(tmp_path / "w.pth", vit_pytorch_names(model.state_dict(), old))
    assert_equal_logits(path, model)


@pytest.mark.parametrize("kinds", [{}, {"pool": "mean"}, {"channels": 1}])
def test_vit_pytorch_with_norms_around_its_patches(kinds: dict[str, Any], tmp_path: Path) -> None:
    library = pytest.importorskip("vit_pytorch", reason="vit-pytorch is not installed")
    model = library.ViT(**IMAGE, num_classes=5, dim=128, depth=2, heads=2, mlp_dim=96, **kinds)
    path = saved(tmp_path / "w.pth", perturbed(model).state_dict())
    x = images(4, torch.float32)[:, : kinds.get("channels", 3)]
    loaded = load_model(path, num_heads=2)
    with torch.no_grad():  # in float64, since the norms of single patches magnify rounding
        exact = model.double()(x.double())
        assert loaded.model.double()(x.double()) == pytest.approx(exact, abs=1e-5)
    loaded.model.float()
    scores = Fisher().attribute(adapt(loaded.model, loaded.shape), TensorProxy(x))
    thin = plan_uniform(scores, Ratios.equal(0.5))
    expected = prune(loaded.model, loaded.shape, thin)
    save_model(expected, tmp_path / "thin", shape=thin.shape_after, pretrained_cfg={}, name="thin")
    with torch.no_grad():
        torch.testing.assert_close(load_model(tmp_path / "thin").model(x), expected(x))


def test_a_simple_vit_of_vit_pytorch_is_named(tmp_path: Path) -> None:
    library = pytest.importorskip("vit_pytorch", reason="vit-pytorch is not installed")
    model = library.SimpleViT(**IMAGE, num_classes=5, dim=128, depth=2, heads=2, mlp_dim=96)
    with refused(UnsupportedModelError, "SimpleViT"):
        load_model(saved(tmp_path / "w.pth", model.state_dict()))


def google_arrays(state: Mapping[str, Tensor], heads: int) -> dict[str, np.ndarray]:
    """A timm model as Google's npz: kernels with inputs first, heads apart."""
    names = {
        "norm1": "LayerNorm_0",
        "norm2": "LayerNorm_2",
        "mlp.fc1": "MlpBlock_3/Dense_0",
        "mlp.fc2": "MlpBlock_3/Dense_1",
    }
    out = {"cls": state["cls_token"], "Transformer/posembed_input/pos_embedding": state["pos_embed"]}
    out |= {
        "embedding/kernel": state["patch_embed.proj.weight"].permute(2, 3, 1, 0),
        "embedding/bias": state["patch_embed.proj.bias"],
    }
    out |= {"head/kernel": state["head.weight"].T, "head/bias": state["head.bias"]}
    out |= {"Transformer/encoder_norm/scale": state["norm.weight"], "Transformer/encoder_norm/bias": state["norm.bias"]}
    for key, tensor in state.items():
        if not (match := re.match(r"blocks\.(\d+)\.(.*)\.(\w+)$", key)):
            continue
        stem, part, leaf = f"Transformer/encoderblock_{match[1]}/", match[2], match[3]
        attention = f"{stem}MultiHeadDotProductAttention_1/"
        if part == "attn.qkv":
            for name, third in zip(("query", "key", "value"), tensor.chunk(3), strict=True):
                apart = (
                    third.T.reshape(-1, heads, len(third) // heads) if leaf == "weight" else third.reshape(heads, -1)
                )
                out[f"{attention}{name}/{'kernel' if leaf == 'weight' else 'bias'}"] = apart
        elif part == "attn.proj":
            width = tensor.shape[0]
            out[f"{attention}out/{'kernel' if leaf == 'weight' else 'bias'}"] = (
                tensor.T.reshape(heads, -1, width) if leaf == "weight" else tensor
            )
        else:
            norm = part.startswith("norm")
            out[
                stem
                + names[part]
                + ("/scale" if norm and leaf == "weight" else "/kernel" if leaf == "weight" else "/bias")
            ] = tensor if norm or leaf == "bias" else tensor.T
    return {key: tensor.numpy() for key, tensor in out.items()}


def stacked(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The arrays as big_vision writes them: those of all blocks in one."""
    first = {key: array for key, array in arrays.items() if "/encoderblock_0/" in key}
    out = {key.split("input/")[-1]: array for key, array in arrays.items() if "/encoderblock_" not in key}
    for key in first:
        pair = [arrays[key.replace("encoderblock_0", f"encoderblock_{b}")] for b in range(2)]
        name = key.replace("encoderblock_0", "encoderblock").replace("LayerNorm_2", "LayerNorm_1")
        out[name.replace("MlpBlock_3", "MlpBlock_0").replace("Attention_1", "Attention_0")] = np.stack(pair)
    return out


@pytest.mark.parametrize(("stem", "whole"), [("", dict), ("opt/target/", dict), ("params/", stacked)])
def test_googles_npz_as_timm_reads_it(stem: str, whole: Callable[..., dict[str, np.ndarray]], tmp_path: Path) -> None:
    arrays = whole(google_arrays(wide(num_heads=4).state_dict(), 4))
    np.savez(tmp_path / "ViT.npz", **{stem + key: array for key, array in arrays.items()})  # type: ignore[arg-type]
    reference = wide(num_heads=4, num_classes=5)
    for parameter in reference.parameters():
        nn.init.zeros_(parameter)
    reference.load_pretrained(str(tmp_path / "ViT.npz"))  # type: ignore[operator]
    assert_equal_logits(tmp_path / "ViT.npz", reference)
    loaded = load_model(tmp_path / "ViT.npz")
    assert loaded.recognised.heads == "as its arrays show"
    assert loaded.pretrained_cfg["mean"] == (0.5,) * 3


def test_dinov2_with_registers_in_chunks(tmp_path: Path) -> None:
    """Meta's names: blocks in chunks, positions with the class token's, registers put in after they are added."""
    model = wide(reg_tokens=2, no_embed_class=True, init_values=0.1)
    state = model.state_dict()
    state["register_tokens"] = state.pop("reg_token")
    first = torch.full((1, 1, 128), 0.25)
    state["pos_embed"] = torch.cat([first, state["pos_embed"]], 1)
    state["cls_token"] = state["cls_token"] - first
    state["mask_token"] = torch.zeros(1, 128)
    chunked = {re.sub(r"^blocks\.(\d+)\.", r"blocks.0.\1.", key): tensor for key, tensor in state.items()}
    assert_equal_logits(saved(tmp_path / "w.pth", {"teacher": {f"backbone.{k}": v for k, v in chunked.items()}}), model)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("cait_xxs24_224", "CaiT"), ("xcit_nano_12_p16_224", "XCiT"), ("levit_128s", "LeViT"),
        ("hiera_tiny_224", "Hiera"),
        ("swin_tiny_patch4_window7_224", "Swin"), ("beit_base_patch16_224", "BEiT"), ("convit_tiny", "ConViT"),
        ("maxvit_tiny_rw_224", "windowed"), ("resnet18", "convolutions"), ("mixer_s16_224", "MLP-Mixer"),
        ("samvit_base_patch16", "SAM"),
        ("eva02_tiny_patch14_224", "EVA"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("prefix", ["", "backbone."])
def test_what_is_not_supported_is_named(name: str, kind: str, prefix: str, tmp_path: Path) -> None:
    state = timm.create_model(name, device="meta").state_dict()
    small = {prefix + key: torch.zeros([min(size, 2) for size in tensor.shape]) for key, tensor in state.items()}
    with refused(UnsupportedModelError, kind):
        load_model(saved(tmp_path / "w.pth", small))


@pytest.mark.parametrize(
    ("kind", "word"),
    [
        ("DetrForObjectDetection", "object detector"), ("LlamaForCausalLM", "language model"),
        ("ViTMAEForPreTraining", "masked autoencoder"),
        ("SegformerForSemanticSegmentation", "segmentation"), ("PoolFormerModel", "PoolFormer"),
        ("FocalNetModel", "FocalNet"), ("HieraModel", "Hiera"), ("Aimv2VisionModel", "AIMv2"),
        ("VJEPA2Model", "V-JEPA"), ("PvtForImageClassification", "PVT"),
        ("PvtV2ForImageClassification", "PVTv2 in transformers' names"),
    ],
)  # fmt: skip
def test_models_of_transformers_that_are_not_supported_are_named(kind: str, word: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    made = getattr(transformers, kind)
    with torch.device("meta"):
        state = made(made.config_class()).state_dict()
    small = {f"net.{key}": torch.zeros([min(size, 2) for size in tensor.shape]) for key, tensor in state.items()}
    with refused(UnsupportedModelError, word):
        load_model(saved(tmp_path / "w.pth", small))


def test_a_quantised_module_is_named(tmp_path: Path) -> None:
    linear = torch.ao.nn.quantized.dynamic.Linear(2, 2)
    with refused(UnsupportedModelError, "quantised"):
        load_model(saved(tmp_path / "w.pth", nn.ModuleDict({"patch_embed": nn.Conv2d(3, 2, 2), "fc": linear})))
