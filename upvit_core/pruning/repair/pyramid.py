"""Closed-form repair of a PVTv2 after surgery, in the basis of its channels: the same least squares as for a ViT.

In order through the stages, each layer on the inputs that it really gets, after all before it have been repaired: the
convolution that opens a later stage to the original's own output (its kept channels, before the norm); q to the
original's queries, the spatial reduction to the original's reduced map and kv to its keys and values; proj and fc2 so
that the stream after them meets the kept channels of the original's stream; fc1 to the pre-activations before the
depthwise convolution, which stays as it was cut; last the head to the original's centred logits. The first stage's
convolution reads the image, of which nothing was cut, so it stays. A layer is changed only where its error on held-out
images falls.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from upvit_core.importance.criterion import Clock, Proxy, Report, frozen, silent
from upvit_core.models.pvt import PVTAdapter
from upvit_core.pruning.repair.layer_fit import LayerRepair, LinearFit, RepairReport, check_enough
from upvit_core.records.plan import PruningPlan

LARGEST = 6000  # features of one problem; beyond, solving it takes minutes

Rows = Callable[[int], Tensor]


def repair_pyramid(
    student: nn.Module,
    teacher: nn.Module,
    plan: PruningPlan,
    proxy: Proxy,
    *,
    stats: None = None,
    held_out: int = 5,
    batch_size: int = 50,
    report: Report = silent,
) -> tuple[nn.Module, RepairReport]:
    """A repaired copy of `student` (`teacher` cut by `plan`) in eval mode, and what was done; neither is touched.

    held_out: every so-manieth image chooses ridges. Memory holds both streams of all images. Raises PlanError where
    there are fewer images than that.
    """
    check_enough(proxy, held_out, "images")
    start = time.perf_counter()
    mended = copy.deepcopy(student).eval()
    with frozen(teacher), torch.no_grad():
        sweep = _Sweep(mended, teacher, plan, proxy, held_out, batch_size, report)
        sweep.run()
    seconds = time.perf_counter() - start
    return mended, RepairReport(tuple(sweep.layers), len(proxy), len(proxy) // held_out, seconds)


class _Sweep:
    """Both models side by side, half a block at a time: maps between stages (B, D, H, W), inside them (B, N, D)."""

    def __init__(
        self, student: nn.Module, teacher: nn.Module, plan: PruningPlan, proxy: Proxy, held_out: int, batch_size: int,
        report: Report,
    ):  # fmt: skip
        self.plan = plan
        self.thin, self.full = PVTAdapter(student, plan.shape_after), PVTAdapter(teacher, plan.shape_before)
        self.layers: list[LayerRepair] = []
        self.like = next(student.parameters())
        self.clock = Clock(6 * plan.shape_after.depth + len(plan.shape_after.stages), "layers", report)
        self.ours, self.theirs, self.held = [], [], []  # type: tuple[list[Tensor], list[Tensor], list[Tensor]]
        seen = 0
        for images, _ in proxy.batches(batch_size, self.like.device):
            self.ours.append(images.to(self.like.dtype))
            self.theirs.append(images.to(self.like.dtype))
            self.held.append((seen + torch.arange(len(images), device=self.like.device)) % held_out == 0)
            seen += len(images)

    def run(self) -> None:
        after, reached = self.plan.shape_after, -1  # the last half-block that the original's streams have been through
        for number, block in enumerate(self.plan.blocks):
            stage = after.stage_of(number)
            if number == after.first_block(stage):
                if stage:
                    reached = self._advance(2 * self.plan.shape_before.first_block(stage) - 1, reached)
                self._enter(stage)
            reached = self._advance(2 * block.source - 1, reached)
            reached = self._attention(number, block.source)
            reached = self._advance(2 * block.ffn_block, reached)
            reached = self._feed_forward(number, block.ffn_block)
        self._advance(2 * self.plan.shape_before.depth - 1, reached)
        self._head()

    def _kept(self, key: str) -> Tensor:
        return torch.tensor(self.plan.kept(key), device=self.like.device)

    def _residual(self, number: int) -> Tensor:
        return self._kept(f"residual.{self.plan.shape_after.stage_of(number)}")

    def _advance(self, half: int, reached: int) -> int:
        """Take the original's streams, inside their stage, through all half-blocks up to this one."""
        for unit in range(reached + 1, half + 1):
            self.theirs = [self.full.inside(unit, y) for y in self.theirs]
        return max(reached, half)

    def _enter(self, stage: int) -> None:
        """From the last stage's streams into this one's: its convolution, fitted where another stage is before it."""
        if stage:
            self.ours = [self.thin.leave(stage - 1, x) for x in self.ours]
            self.theirs = [self.full.leave(stage - 1, y) for y in self.theirs]
            ours, theirs = self.thin.opening(stage).proj, self.full.opening(stage).proj
            kept = self._kept(f"residual.{stage}")
            self._fit(
                f"stages.{stage}.downsample.proj", ours, lambda i: _patches(self.ours[i], ours),
                lambda i: _rows(theirs(self.theirs[i]))[..., kept],
            )  # fmt: skip
        self.ours = [self.thin.enter(stage, x) for x in self.ours]
        self.theirs = [self.full.enter(stage, y) for y in self.theirs]

    def _attention(self, number: int, source: int) -> int:
        ours, theirs = self.thin.block(number), self.full.block(source)
        own, name = self.plan.blocks[number], f"blocks.{number}.attn"
        kept = torch.tensor(own.attention.keep, device=self.like.device)
        scale = (ours.attn.head_dim / theirs.attn.head_dim) ** 0.5  # as surgery folds it
        self._fit(
            f"{name}.q", ours.attn.q, lambda i: ours.norm1(self.ours[i]),
            lambda i: theirs.attn.q(theirs.norm1(self.theirs[i]))[..., kept] * scale,
        )  # fmt: skip
        if own.reduction is not None:
            left = torch.tensor(own.reduction.keep, device=self.like.device)
            self._fit(
                f"{name}.sr", ours.attn.sr,
                lambda i: _patches(self.thin.grid(number, ours.norm1(self.ours[i])), ours.attn.sr),
                lambda i: _rows(theirs.attn.sr(self.full.grid(source, theirs.norm1(self.theirs[i]))))[..., left],
            )  # fmt: skip
        width = self.plan.shape_before.blocks[source].attention
        both = torch.cat([kept, kept + width])
        self._fit(
            f"{name}.kv", ours.attn.kv, lambda i: self.thin.key_source(number, self.ours[i]),
            lambda i: theirs.attn.kv(self.full.key_source(source, self.theirs[i]))[..., both],
        )  # fmt: skip
        self.theirs = [self.full.inside(2 * source, y) for y in self.theirs]
        residual = self._residual(number)
        self._fit(
            f"{name}.proj", ours.attn.proj, lambda i: self.thin.mixed(number, self.ours[i]),
            lambda i: self.theirs[i][..., residual] - self.ours[i],
        )  # fmt: skip
        self.ours = [self.thin.inside(2 * number, x) for x in self.ours]
        return 2 * source

    def _feed_forward(self, number: int, source: int) -> int:
        ours, theirs = self.thin.block(number), self.full.block(source)
        kept = torch.tensor(self.plan.blocks[number].ffn.keep, device=self.like.device)
        self._fit(
            f"blocks.{number}.mlp.fc1", ours.mlp.fc1, lambda i: ours.norm2(self.ours[i]),
            lambda i: theirs.mlp.fc1(theirs.norm2(self.theirs[i]))[..., kept],
        )  # fmt: skip
        self.theirs = [self.full.inside(2 * source + 1, y) for y in self.theirs]
        residual = self._residual(number)
        self._fit(
            f"blocks.{number}.mlp.fc2", ours.mlp.fc2, lambda i: self.thin.hidden(number, self.ours[i]),
            lambda i: self.theirs[i][..., residual] - self.ours[i],
        )  # fmt: skip
        self.ours = [self.thin.inside(2 * number + 1, x) for x in self.ours]
        return 2 * source + 1

    def _head(self) -> None:
        """Softmax ignores what all classes share, so logits are compared after their mean is taken off."""
        last = len(self.plan.shape_after.stages) - 1
        ours, theirs = self.thin.head, self.full.head
        ours.weight -= ours.weight.mean(0)
        ours.bias -= ours.bias.mean()

        def target(i: int) -> Tensor:
            logits = theirs(self.full.leave(last, self.theirs[i]).mean((-1, -2)))
            return logits - logits.mean(-1, keepdim=True)

        self._fit("head", ours, lambda i: self.thin.leave(last, self.ours[i]).mean((-1, -2)), target)

    def _fit(self, name: str, layer: Any, features: Rows, target: Rows) -> None:
        """Fit weight and bias of a linear layer, or of a convolution as rows of its patches, to what is missing."""
        weight = layer.weight.data.flatten(1)  # (outputs, inputs), a view
        if weight.shape[1] <= LARGEST:
            fitting = LinearFit(weight, None if layer.bias is None else layer.bias.data)
            for i, held in enumerate(self.held):
                fitting.add(features(i), target(i), held)
            self.layers.append(fitting.finish(name))
        self.clock.advance(1, name)


def _rows(maps: Tensor) -> Tensor:
    """(B, C, H, W) to (B, N, C)."""
    return maps.flatten(2).transpose(1, 2)


def _patches(maps: Tensor, convolution: Any) -> Tensor:
    """What a convolution reads at each place, (B, N, C · k · k), in the order of its flattened weight."""
    found = F.unfold(maps, convolution.kernel_size, padding=convolution.padding, stride=convolution.stride)
    return found.transpose(1, 2)
