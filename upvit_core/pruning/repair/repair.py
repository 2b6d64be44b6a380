"""Closed-form repair after surgery: every linear layer refitted by least squares, in order through the network.

"Beyond the letter", step 5. There is no gradient step and no label. The thinner model runs beside the original on the
proxy images; each layer is fitted on the inputs that it really gets, after all layers before it have been repaired:
q, k, v and fc1 to the original's own q, k, v and pre-activations (those that are kept), proj and fc2 so that the
stream after them meets the original's stream in the thinner basis, the heads to the original's centred logits.
The ridge is chosen on held-out images, and a layer is changed only where its held-out error falls. Kin: CORP and other
retraining-free pruning, which repair FFN and attention but not the residual.

Not all tokens matter alike: with statistics, a token's squared error counts by the root of how strongly the answer
reacts to what is written at its position (in late blocks the class token, above all).

Keys need no constant: softmax ignores what all keys of an image share, so k is fitted on deviations from the image's
mean.
"""

from __future__ import annotations

import copy
import time
from typing import Any

import torch
from torch import Tensor, nn

from upvit_core.errors import PlanError
from upvit_core.importance.criterion import Clock, Proxy, Report, frozen, silent
from upvit_core.models.build import shape_of
from upvit_core.pruning.basis.fold import load, output_heads
from upvit_core.pruning.basis.slice import Basis, basis_for, channel_basis
from upvit_core.pruning.basis.statistics import ProxyStatistics
from upvit_core.pruning.basis.stream import Stream
from upvit_core.pruning.repair.layer_fit import LayerRepair, LinearFit, RepairReport, check_enough
from upvit_core.records.plan import PruningPlan


def repair(
    student: nn.Module,
    teacher: nn.Module,
    plan: PruningPlan,
    proxy: Proxy,
    *,
    stats: ProxyStatistics | None = None,
    basis: Basis | None = None,
    held_out: int = 5,
    batch_size: int = 50,
    report: Report = silent,
) -> tuple[nn.Module, RepairReport]:
    """A repaired copy of `student` in eval mode, and what was done; neither model is touched.

    student: `teacher` cut by `plan`. stats: those that the student was cut with, for plans of directions. basis: the
    one it was cut with, where that is not the plan's own. held_out: every so-manieth image chooses ridges. Memory holds
    both streams of all images, n·tokens·(D + k) numbers.

    Raises PlanError where `stats` is missing or the student does not have the plan's shape.
    """
    shape = plan.shape_after
    found = shape_of(student, "the student")
    if (found.embed_dim, found.blocks) != (shape.embed_dim, shape.blocks):
        raise PlanError(
            f"The student has {found.embed_dim} residual channels in {found.depth} blocks, the plan {shape.embed_dim} "
            f"in {shape.depth}, or other widths; repair the model that this plan made."
        )
    check_enough(proxy, held_out, "images")
    like = next(student.parameters())
    if plan.basis == "directions":
        if stats is None:
            raise PlanError("Repairing a plan of directions needs the statistics that it was cut with; give stats.")
        basis, original = basis or basis_for(plan, stats), load(stats.state, stats.shape, like=like)
    else:
        basis, original = basis or channel_basis(plan), copy.deepcopy(teacher)
    start = time.perf_counter()
    with frozen(original), torch.no_grad():
        weights = token_weights(stats) if stats is not None else {}
        sweep = _Sweep(
            copy.deepcopy(student).eval(), original, plan, basis, weights, proxy, held_out, batch_size, report
        )
        sweep.run()
    seconds = time.perf_counter() - start
    return sweep.student.model, RepairReport(tuple(sweep.layers), len(proxy), len(proxy) // held_out, seconds)


class _Sweep:
    """One pass through both models, half a block at a time."""

    def __init__(
        self,
        student: nn.Module,
        original: nn.Module,
        plan: PruningPlan,
        basis: Basis,
        weights: dict[str, Tensor],
        proxy: Proxy,
        held_out: int,
        batch_size: int,
        report: Report,
    ):
        self.plan = plan
        self.student = Stream(student, plan.shape_after)
        self.original = Stream(original, plan.shape_before)
        parameter = next(student.parameters())
        self.basis = basis.to(parameter)
        self.weights = {name: weight.to(parameter) for name, weight in weights.items()}
        self.layers: list[LayerRepair] = []
        self.ours: list[Tensor] = []
        self.theirs: list[Tensor] = []
        self.held: list[Tensor] = []
        seen = 0
        for images, _ in proxy.batches(batch_size, parameter.device):
            images = images.to(parameter.dtype)
            self.ours.append(self.student.embed(images))
            self.theirs.append(self.original.embed(images))
            self.held.append(torch.arange(seen, seen + len(images), device=parameter.device) % held_out == held_out - 1)
            seen += len(images)
        self.clock = Clock(4 * plan.shape_after.depth + 1, "passes", report)

    def run(self) -> None:
        _absorb_layer_scale(self.student)
        reached = 0  # half-blocks of the original that have been run
        for number, block in enumerate(self.plan.blocks):
            reached = self._skip_to(2 * block.source, reached)
            self._attention(number, block.source)
            reached = self._skip_to(2 * block.ffn_block + 1, reached + 1)
            self._feed_forward(number, block.ffn_block)
            reached += 1
        self._skip_to(2 * self.original.shape.depth, reached)
        self._heads()

    def _skip_to(self, unit: int, reached: int) -> int:
        """Run half-blocks of the original that the student does not have."""
        for skipped in range(reached, unit):
            run = self.original.feed_forward if skipped % 2 else self.original.attention
            self.theirs = [run(skipped // 2, x).stream for x in self.theirs]
        return unit

    def _attention(self, number: int, source: int) -> None:
        module: Any = self.student.model.blocks[number]
        maps, qkv, name = self.basis.heads[number], module.attn.qkv, f"blocks.{number}.attn"
        A = qkv.out_features // 3
        fits = [
            LinearFit.of(qkv, slice(i * A, (i + 1) * A), bias=i != 1, weights=self.weights.get(f"{part}.{source}"))
            for i, part in enumerate("qkv")
        ]
        for i, (ours, theirs) in enumerate(zip(self.ours, self.theirs, strict=True)):
            trace = self.original.attention(source, theirs)
            normed = module.norm1(ours)
            queries = self.student.rows(number, normed)
            fits[0].add(queries, self.student.rows(number, trace.q) @ maps.query.T, self.held[i])
            fits[1].add(_centred(normed), _centred(trace.k @ maps.key.T), self.held[i])
            fits[2].add(normed, trace.v @ maps.value.T, self.held[i])
            self.theirs[i] = trace.stream
        for fitting, part in zip(fits, "qkv", strict=True):
            self.layers.append(fitting.finish(f"{name}.{part}"))
        self.clock.advance(1, name)

        fitting = LinearFit.of(module.attn.proj, weights=self.weights.get(f"proj.{source}"))
        for i, (ours, theirs) in enumerate(zip(self.ours, self.theirs, strict=True)):
            trace = self.student.attention(number, ours)
            target = self.student.rows(number, theirs) @ self.basis.embedding
            fitting.add(trace.mixed, target - self.student.rows(number, ours), self.held[i])
        self.layers.append(fitting.finish(f"{name}.proj"))
        self.clock.advance(1, name)
        self.ours = [self.student.attention(number, ours).stream for ours in self.ours]

    def _feed_forward(self, number: int, source: int) -> None:
        module: Any = self.student.model.blocks[number]
        kept = torch.tensor(self.plan.blocks[number].ffn.keep, device=self.ours[0].device)
        name = f"blocks.{number}.mlp"
        fitting = LinearFit.of(module.mlp.fc1, weights=self.weights.get(f"fc1.{source}"))
        for i, (ours, theirs) in enumerate(zip(self.ours, self.theirs, strict=True)):
            trace = self.original.feed_forward(source, theirs)
            fitting.add(module.norm2(ours), self.student.rows(number, trace.before)[..., kept], self.held[i])
            self.theirs[i] = trace.stream
        self.layers.append(fitting.finish(f"{name}.fc1"))
        self.clock.advance(1, name)

        fitting = LinearFit.of(module.mlp.fc2, weights=self.weights.get(f"fc2.{source}"))
        for i, (ours, theirs) in enumerate(zip(self.ours, self.theirs, strict=True)):
            target = self.student.rows(number, theirs) @ self.basis.embedding
            fitting.add(self.student.feed_forward(number, ours).hidden, target - ours, self.held[i])
        self.layers.append(fitting.finish(f"{name}.fc2"))
        self.clock.advance(1, name)
        self.ours = [self.student.feed_forward(number, ours).stream for ours in self.ours]

    def _heads(self) -> None:
        """Softmax ignores what all classes share, so logits are compared after their mean is taken off."""
        fits = []
        for token, name in enumerate(output_heads(self.student.shape)):
            ours, theirs = (getattr(stream.model, name) for stream in (self.student, self.original))
            ours.weight -= ours.weight.mean(0)
            ours.bias -= ours.bias.mean()
            fitting = LinearFit.of(ours)
            for i in range(len(self.ours)):
                target = theirs(self.original.features(self.theirs[i])[:, token])
                features = self.student.features(self.ours[i])[:, token]
                fitting.add(features, target - target.mean(-1, keepdim=True), self.held[i])
            fits.append(fitting.finish(name))
        self.layers += fits
        self.clock.advance(1, "heads")


def token_weights(stats: ProxyStatistics) -> dict[str, Tensor]:
    """By layer the weight of each token (T,), with mean 1: the root of its mean squared gradient, and never nothing."""
    found = {}
    for name, squares in stats.token_gradients.items():
        weight = (squares / squares.mean().clamp_min(1e-300)).clamp_min(0.01).sqrt()
        found[name] = weight / weight.mean()
    return found


def _centred(x: Tensor) -> Tensor:
    return x - x.mean(1, keepdim=True)


def _absorb_layer_scale(stream: Stream) -> None:
    """Move layer scale into proj and fc2, so that what they write is what is fitted; timm's module stays, at 1."""
    if not stream.shape.layer_scale:
        return
    for block in stream.model.blocks:
        for scale, linear in ((block.ls1, block.attn.proj), (block.ls2, block.mlp.fc2)):
            linear.weight *= scale.gamma[:, None]
            linear.bias *= scale.gamma
            scale.gamma.fill_(1)
