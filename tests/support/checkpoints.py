"""Models whose every parameter counts, files of them, and what an error must look like."""

from pathlib import Path

import timm
import torch
from torch import Tensor, nn

from tests.support.tiny import images
from upvit_core.records.shape import BlockShape, ModelShape

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


def saved(path: Path, content: object) -> Path:
    torch.save(content, path)
    return path


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
