"""The fold: an equal model whose LayerNorms have no affine part and whose residual stream has no mean.

"Beyond the letter", step 1. LayerNorm subtracts the mean of its input anyway, so every writer to the residual (patch
embedding, tokens, positions, proj, fc2) may be made mean-free over its output channels; and the affine part of a
LayerNorm is linear, so its reader (qkv, fc1, pooling, heads) can carry it. What then stands between writers and readers
is x ↦ x / RMS(x), which any rotation that keeps the constant vector commutes with. Kin: SliceGPT (Ashkboos et al., ICLR
2024), for RMSNorm.

A qkv without bias cannot carry β: it stays in the norm, as β / γ.
"""

import torch
from torch import Tensor, nn

from upvit_core.errors import UnsupportedModelError
from upvit_core.models.build import build_model
from upvit_core.pruning.surgery import linear_features
from upvit_core.records.shape import ModelShape

State = dict[str, Tensor]
"""Tensors by timm's names."""


def fold(model: nn.Module, shape: ModelShape) -> nn.Module:
    """An equal model in eval mode, folded, with features made by a linear layer; the source is not touched.

    Raises UnsupportedModelError where the residual cannot be rotated, the model has no final norm, or a norm weight
    of 0 hides a bias.
    """
    if not shape.has_directions:
        raise UnsupportedModelError(
            f"The residual of {shape.name} cannot be rotated: {shape.unrotated}; take basis=channels."
        )
    state, linear = linear_features(state_of(model), shape)
    return load(folded_state(state, linear), linear, like=next(model.parameters()))


def state_of(model: nn.Module) -> State:
    """The model's tensors in float64, detached."""
    return {name: tensor.detach().double() for name, tensor in model.state_dict().items()}


def load(state: State, shape: ModelShape, *, like: Tensor) -> nn.Module:
    """A model of `shape` in eval mode with these tensors, on the device and in the dtype of `like`."""
    model = build_model(shape).to(device=like.device, dtype=like.dtype)
    model.load_state_dict(state)
    return model.eval()


def final_norm(shape: ModelShape) -> str:
    """Name of the norm that the heads read."""
    return "fc_norm" if shape.fc_norm else "norm"


def output_heads(shape: ModelShape) -> tuple[str, ...]:
    """Names of the linear layers that make the outputs."""
    if not shape.num_classes:
        return ()
    return ("head", "head_dist") if shape.distilled else ("head",)


def last_readers(shape: ModelShape) -> tuple[str, ...]:
    """Names of the linear layers that read the final norm: attention pooling, else the heads."""
    return ("attn_pool.kv",) if shape.structure.pool else output_heads(shape)


def reading_layers(shape: ModelShape) -> list[tuple[str, tuple[str, ...]]]:
    """Every norm on the residual with the linear layers that read it, in the order of the forward pass."""
    sites: list[tuple[str, tuple[str, ...]]] = []
    for b in range(shape.depth):
        sites += [(f"blocks.{b}.norm1", (f"blocks.{b}.attn.qkv",)), (f"blocks.{b}.norm2", (f"blocks.{b}.mlp.fc1",))]
    return [*sites, (final_norm(shape), last_readers(shape))]


def writing_layers(shape: ModelShape) -> list[str]:
    """Layers that write to the residual: their output channels are its channels."""
    inside = [f"blocks.{b}.{leaf}" for b in range(shape.depth) for leaf in ("attn.proj", "mlp.fc2")]
    return ["patch_embed.proj", *inside]


def token_params(state: State) -> list[str]:
    """Names of tokens and positions, (1, n, D), which are written to the residual as they are."""
    return [name for name in ("cls_token", "dist_token", "reg_token", "pos_embed") if name in state]


def folded_state(state: State, shape: ModelShape) -> State:
    """Tensors of the folded model."""
    if not shape.final_norm:
        raise UnsupportedModelError(
            f"{shape.name} has no final norm, so its head reads the residual's mean, which the fold removes; "
            "prune it with basis=channels."
        )
    folded = dict(state)
    if shape.layer_scale:
        _fold_layer_scale(folded, shape)
    for norm, linears in reading_layers(shape):
        _fold_affine(folded, norm, linears)
    for name in writing_layers(shape):
        for leaf in ("weight", "bias"):
            tensor = folded[f"{name}.{leaf}"]
            folded[f"{name}.{leaf}"] = tensor - tensor.mean(0, keepdim=True)
    for name in token_params(folded):
        folded[name] = folded[name] - folded[name].mean(-1, keepdim=True)
    return folded


def _fold_layer_scale(state: State, shape: ModelShape) -> None:
    for b in range(shape.depth):
        for scale, writer in (("ls1", "attn.proj"), ("ls2", "mlp.fc2")):
            gamma = state[f"blocks.{b}.{scale}.gamma"]
            stem = f"blocks.{b}.{writer}"
            state[f"{stem}.weight"] = gamma[:, None] * state[f"{stem}.weight"]
            state[f"{stem}.bias"] = gamma * state[f"{stem}.bias"]
            state[f"blocks.{b}.{scale}.gamma"] = torch.ones_like(gamma)


def _fold_affine(state: State, norm: str, linears: tuple[str, ...]) -> None:
    gamma, beta = state[f"{norm}.weight"], state[f"{norm}.bias"]
    left = torch.zeros_like(beta)
    for linear in linears:
        weight = state[f"{linear}.weight"]
        if f"{linear}.bias" in state:
            state[f"{linear}.bias"] = state[f"{linear}.bias"] + weight @ beta
        else:
            hidden = (gamma == 0) & (beta != 0)
            if hidden.any():
                raise UnsupportedModelError(
                    f"{norm}.weight[{int(hidden.nonzero()[0])}] is 0 with a bias beside it, and {linear} has no bias "
                    "to carry it; prune this model with basis=channels."
                )
            left = torch.where(beta == 0, beta, beta / gamma)
        state[f"{linear}.weight"] = weight * gamma
    state[f"{norm}.weight"], state[f"{norm}.bias"] = torch.ones_like(gamma), left
