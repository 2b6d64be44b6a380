"""Torch-Pruning (VainF, version in tests/requirements.txt) at the same shape, by its own surgery.

Its pruner removes the same share of every group: the residual, the width inside each head (heads stay), and the FFN. As
its own example for timm does, the pruner is told the heads of every qkv, the head's outputs are left alone, and tokens
and positions are named as parameters. Gradient criteria see the labels of the same proxy images, as documented there.

timm's attention scales by the NEW head width, which changes every attention map for no reason. `fair` folds the ratio
of the two scales into q, as our surgery does for the letter's channels; the better of both counts for the peer.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
import torch_pruning as tp
from torch import nn
from torch.nn import functional as F

from upvit_core.importance.criterion import Proxy
from upvit_core.models.shape import ModelShape

CRITERIA: dict[str, Callable[[], Any]] = {
    "L1": lambda: tp.importance.GroupMagnitudeImportance(p=1),
    "L2": lambda: tp.importance.GroupMagnitudeImportance(p=2),
    "LAMP": lambda: tp.importance.LAMPImportance(),
    "FPGM": lambda: tp.importance.FPGMImportance(),
    "Activation": lambda: tp.importance.ActivationImportance(),
    "Taylor": lambda: tp.importance.GroupTaylorImportance(),
    "Hessian": lambda: tp.importance.GroupHessianImportance(),
    "random": lambda: tp.importance.RandomImportance(),
}
SAMPLES_OF_HESSIAN = 200  # it needs a backward pass for every image


def cut(model: nn.Module, shape: ModelShape, ratio: float, criterion: str, proxy: Proxy) -> nn.Module:
    """`model` without `ratio` of everything, by Torch-Pruning; a copy in eval mode, with timm's scale."""
    torch.manual_seed(0)
    student: Any = copy.deepcopy(model).eval()
    for block in student.blocks:  # tracing runs timm's forward pass, which must not depend on widths
        block.attn.attn_dim = -1
    student.original_head_dim = student.blocks[0].attn.head_dim
    importance = CRITERIA[criterion]()
    example = torch.zeros(1, shape.in_chans, *shape.img_size)
    with torch.enable_grad():
        _gradients(student, importance, criterion, proxy)
    pruner = tp.pruner.BasePruner(
        student, example, importance=importance, global_pruning=False, pruning_ratio=ratio,
        ignored_layers=[module for name in ("head", "head_dist") if (module := getattr(student, name, None))],
        num_heads={block.attn.qkv: block.attn.num_heads for block in student.blocks},
        prune_num_heads=False, prune_head_dims=True,
        unwrapped_parameters=[
            (parameter, 2) for name in ("cls_token", "dist_token", "pos_embed")
            if (parameter := getattr(student, name, None)) is not None
        ],
    )  # fmt: skip
    pruner.step()
    for block in student.blocks:
        attn = block.attn
        width = attn.qkv.out_features // 3
        attn.head_dim, attn.attn_dim = width // attn.num_heads, width
        attn.fused_attn = False  # timm's plain path, which reads `scale`
    scaled(student, False)
    student.embed_dim = student.num_features = student.patch_embed.proj.out_channels
    return student


def scaled(student: Any, fair: bool) -> Any:
    """The student, in place, with the softmax scale of the original heads (`fair`) or that of its own, as timm has."""
    for block in student.blocks:
        own = block.attn.head_dim
        block.attn.scale = (student.original_head_dim if fair else own) ** -0.5
    return student


def _gradients(student: nn.Module, importance: Any, criterion: str, proxy: Proxy) -> None:
    """Leave in the model what the criterion reads: gradients of the cross-entropy, or mean activations."""
    student.zero_grad()
    if criterion == "Activation":
        batch = torch.cat([images for images, _ in proxy.batches(100)])
        with torch.no_grad(), importance.compute_importance(student):
            student(batch)
    elif criterion == "Taylor":
        for images, labels in proxy.batches(100):
            F.cross_entropy(student(images), labels).backward()
    elif criterion == "Hessian":
        importance.zero_grad()
        seen = 0
        for images, labels in proxy.batches(50):
            losses = F.cross_entropy(student(images), labels, reduction="none")
            for i, loss in enumerate(losses):
                student.zero_grad()
                loss.backward(retain_graph=i + 1 < len(losses))
                importance.accumulate_grad(student)
            seen += len(images)
            if seen >= SAMPLES_OF_HESSIAN:
                return


def widths(student: Any) -> tuple[int, int, int, int]:
    """Embedding, heads, attention and FFN width of the first block, to check that shapes are the same."""
    block = student.blocks[0]
    return (
        block.mlp.fc2.out_features, block.attn.num_heads, block.attn.qkv.out_features // 3, block.mlp.fc1.out_features
    )  # fmt: skip
