"""Torch-Pruning (Fang et al., CVPR 2023; isomorphic grouping: ECCV 2024) on timm's ViT, through an adapter.

What the adapter does for the peer, so that it is compared at its best: class token and positions are pruned along
their last axis; qkv is given its heads, so that every head loses the same dimensions and none goes; the head's
outputs stay. timm's attention gets its new widths afterwards. A narrower head divides q·k by another root: the ratio
is folded into q, as our own surgery does, or the peer's attention would change for no reason. Its Hessian estimator
(1.6.1) forgets all images but the last, since it reads sums under another key than it stores them by; they are
added up here.
"""

from __future__ import annotations

import copy
import time
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from typing import cast

import torch
import torch_pruning as tp
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F
from torch_pruning.pruner.importance import Importance

from upvit_core.models.build import build_model
from upvit_core.profiling.macs import count_macs
from upvit_core.records.shape import BlockShape, ModelShape

CRITERIA = ("l1", "l2", "taylor", "hessian")


@dataclass(frozen=True)
class PeerCut:
    """The thinner model, its shape, and seconds: to score once, and for this cut."""

    model: nn.Module
    shape: ModelShape
    score_seconds: float
    cut_seconds: float


def importance(name: str) -> Importance:
    """Torch-Pruning's estimator with its own defaults."""
    return {
        "l1": lambda: tp.importance.GroupMagnitudeImportance(p=1),
        "l2": lambda: tp.importance.GroupMagnitudeImportance(p=2),
        "taylor": tp.importance.GroupTaylorImportance,
        "hessian": tp.importance.GroupHessianImportance,
    }[name]()


def cut_to(
    model: nn.Module,
    shape: ModelShape,
    criterion: str,
    images: Iterable[tuple[Tensor, Tensor]],
    *,
    ratio: float,
    isomorphic: bool = False,
    macs: float | None = None,
    tolerance: float = 0.01,
) -> PeerCut:
    """Cut by Torch-Pruning: `ratio` of every layer, or, isomorphic, whatever share has about `macs` MACs.

    `images` are the batches (x, labels) that `taylor` and `hessian` take the loss of.
    """
    began = time.perf_counter()
    scored, estimator = copy.deepcopy(model).eval().requires_grad_(True), importance(criterion)
    gradients(scored, estimator, criterion, images)
    score_seconds = time.perf_counter() - began
    if not isomorphic or macs is None:
        began = time.perf_counter()
        thin = once(scored, shape, estimator, criterion, ratio, False)
        return PeerCut(*thin, score_seconds, time.perf_counter() - began)
    low, high = 0.0, 0.98
    best: tuple[nn.Module, ModelShape] | None = None
    for _ in range(14):
        began = time.perf_counter()
        middle = (low + high) / 2 if best else ratio
        thin = once(scored, shape, estimator, criterion, middle, True)
        seconds = time.perf_counter() - began
        if best is None or abs(count_macs(thin[1]) - macs) < abs(count_macs(best[1]) - macs):
            best = thin
        if abs(count_macs(thin[1]) / macs - 1) <= tolerance:
            break
        low, high = (middle, high) if count_macs(thin[1]) > macs else (low, middle)
    assert best is not None
    return PeerCut(*best, score_seconds, seconds)


def gradients(model: nn.Module, estimator: Importance, criterion: str, images: Iterable[tuple[Tensor, Tensor]]) -> None:
    """Gradients for the estimator: of the mean loss, or of every image's own."""
    model.zero_grad()
    if criterion == "taylor":
        batches = list(images)
        total = sum(len(x) for x, _ in batches)
        for x, labels in batches:
            (F.cross_entropy(model(x), labels, reduction="sum") / total).backward()
    elif criterion == "hessian":
        estimator.zero_grad()
        for x, labels in images:
            for image, label in zip(x.split(1), labels.split(1), strict=True):
                model.zero_grad()
                F.cross_entropy(model(image), label).backward()
                for parameter in model.parameters():
                    assert parameter.grad is not None
                    squared = parameter.grad.detach() ** 2
                    if parameter in estimator._accu_grad:
                        squared += estimator._accu_grad[parameter]
                    estimator._accu_grad[parameter] = squared
                    estimator._counter[parameter] = estimator._counter.get(parameter, 0) + 1


def once(
    scored: nn.Module, shape: ModelShape, estimator: Importance, criterion: str, ratio: float, isomorphic: bool
) -> tuple[nn.Module, ModelShape]:
    """One pruning step on a copy that keeps the gradients."""
    model, estimator = copied(scored, estimator, criterion)
    vit = cast(VisionTransformer, model)
    pixels = torch.zeros(1, shape.in_chans, *shape.img_size)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pruner = tp.pruner.BasePruner(
            model,
            pixels,
            importance=estimator,
            pruning_ratio=ratio,
            global_pruning=isomorphic,
            isomorphic=isomorphic,
            ignored_layers=[vit.head],
            num_heads={b.attn.qkv: b.attn.num_heads for b in vit.blocks},
            out_channel_groups={},
            in_channel_groups={},
            prune_head_dims=True,
            prune_num_heads=False,
            unwrapped_parameters=[(vit.cls_token, 2), (vit.pos_embed, 2)],  # type: ignore[arg-type]
        )
        pruner.step()
    return rebuilt(model, shape)


def copied(scored: nn.Module, estimator: Importance, criterion: str) -> tuple[nn.Module, Importance]:
    """Deep copies lose gradients, and the Hessian estimator keeps its sums by parameter."""
    model = copy.deepcopy(scored)
    for new, old in zip(model.parameters(), scored.parameters(), strict=True):
        new.grad = None if old.grad is None else old.grad.clone()
    if criterion != "hessian":
        return model, estimator
    fresh = copy.copy(estimator)
    fresh._accu_grad = {
        new: estimator._accu_grad[old].clone()
        for new, old in zip(model.parameters(), scored.parameters(), strict=True)
        if old in estimator._accu_grad
    }
    fresh._counter = {
        new: estimator._counter[old]
        for new, old in zip(model.parameters(), scored.parameters(), strict=True)
        if old in estimator._counter
    }
    return model, fresh


def rebuilt(model: nn.Module, shape: ModelShape) -> tuple[nn.Module, ModelShape]:
    """The pruned weights in a model of our own builder: whatever does not fit raises."""
    vit = cast(VisionTransformer, model)
    blocks = tuple(
        BlockShape(own.num_heads, b.attn.proj.in_features, b.mlp.fc1.out_features)
        for b, own in zip(vit.blocks, shape.blocks, strict=True)
    )
    thin = ModelShape.from_dict(
        {
            **shape.to_dict(),
            "embed_dim": vit.head.in_features,
            "blocks": [{"num_heads": b.num_heads, "attention": b.attention, "ffn": b.ffn} for b in blocks],
        }
    )
    student = build_model(thin).eval()
    state = model.state_dict()
    for number, (new, old) in enumerate(zip(blocks, shape.blocks, strict=True)):
        factor = (new.head_dim / old.head_dim) ** 0.5
        for part in ("weight", "bias"):
            tensor = state.get(f"blocks.{number}.attn.qkv.{part}")
            if tensor is not None:
                state[f"blocks.{number}.attn.qkv.{part}"] = torch.cat(
                    [tensor[: new.attention] * factor, tensor[new.attention :]]
                )
    student.load_state_dict(state)
    return student, thin
