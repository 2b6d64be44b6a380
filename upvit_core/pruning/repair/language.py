"""Closed-form repair of a GPT-2 after surgery: the same least squares as for a ViT, in order through the blocks.

Each layer is fitted on the inputs that it really gets, after all before it have been repaired: `c_attn` and `c_fc` to
the original's own queries, keys, values and pre-activations (those that are kept), both `c_proj` so that the stream
after them meets the kept channels of the original's stream. Every token of the proxy blocks is a row. The output layer
is the token embedding, which is not fitted. A layer is changed only where its error on held-out blocks falls.
"""

from __future__ import annotations

import copy
import time
from typing import Any

import torch
from torch import Tensor, nn

from upvit_core.importance.criterion import Clock, Proxy, Report, frozen, silent
from upvit_core.models.gpt2 import GPT2Adapter
from upvit_core.pruning.repair.layer_fit import LayerRepair, LinearFit, RepairReport, check_enough
from upvit_core.records.plan import PruningPlan


def repair_language(
    student: nn.Module,
    teacher: nn.Module,
    plan: PruningPlan,
    proxy: Proxy,
    *,
    stats: None = None,
    held_out: int = 5,
    batch_size: int = 32,
    report: Report = silent,
) -> tuple[nn.Module, RepairReport]:
    """A repaired copy of `student` (`teacher` cut by `plan`) in eval mode, and what was done; neither is touched.

    held_out: every so-manieth block chooses ridges. Raises PlanError where there are fewer blocks than that.
    """
    check_enough(proxy, held_out, "blocks")
    start = time.perf_counter()
    mended = copy.deepcopy(student).eval()
    with frozen(teacher), torch.no_grad():
        sweep = _Sweep(mended, teacher, plan, proxy, held_out, batch_size, report)
        for number in range(plan.shape_after.depth):
            sweep.block(number)
    seconds = time.perf_counter() - start
    return mended, RepairReport(tuple(sweep.layers), len(proxy), len(proxy) // held_out, seconds)


class _Sweep:
    """Both models side by side, half a block at a time; streams of all blocks are kept, n·T·(D + k) numbers."""

    def __init__(
        self, student: nn.Module, teacher: nn.Module, plan: PruningPlan, proxy: Proxy, held_out: int, batch_size: int,
        report: Report,
    ):  # fmt: skip
        self.plan = plan
        self.thin, self.full = GPT2Adapter(student, plan.shape_after), GPT2Adapter(teacher, plan.shape_before)
        self.model: Any = student
        self.original: Any = teacher
        self.keep = torch.tensor(plan.residual.keep)
        self.layers: list[LayerRepair] = []
        self.clock = Clock(4 * plan.shape_after.depth, "layers", report)
        self.passed = -1  # the last half-block that the original's streams have been through
        self.ours, self.theirs, self.held = [], [], []  # type: tuple[list[Tensor], list[Tensor], list[Tensor]]
        seen = 0
        for ids, _ in proxy.batches(batch_size, next(student.parameters()).device):
            self.ours.append(self.thin.embed(ids))
            self.theirs.append(self.full.embed(ids))
            self.held.append((seen + torch.arange(len(ids))) % held_out == 0)
            seen += len(ids)

    def block(self, number: int) -> None:
        own, ours = self.plan.blocks[number], self.model.transformer.h[number]
        theirs = self.original.transformer.h[own.source]
        self._advance(2 * own.source - 1)
        kept = torch.tensor(own.attention.keep)
        width = self.plan.shape_before.blocks[own.source].attention
        columns = torch.cat([kept + copy * width for copy in range(3)])
        scale = torch.ones(len(columns), dtype=self.ours[0].dtype)
        scale[: len(kept)] = (ours.attn.head_dim / theirs.attn.head_dim) ** 0.5  # as surgery folds it
        self._fit(
            f"{number}.attn.c_attn", ours.attn.c_attn,
            lambda x: ours.ln_1(x), lambda x, y: theirs.attn.c_attn(theirs.ln_1(y))[..., columns] * scale,
        )  # fmt: skip
        self._advance(2 * own.source)
        self._fit(
            f"{number}.attn.c_proj", ours.attn.c_proj, lambda x: self._mixed(number, x),
            lambda x, y: y[..., self.keep] - x,
        )  # fmt: skip
        self.ours = [self.thin.run_half_block(2 * number, x) for x in self.ours]

        theirs = self.original.transformer.h[own.ffn_block]
        self._advance(2 * own.ffn_block)
        hidden = torch.tensor(own.ffn.keep)
        self._fit(
            f"{number}.mlp.c_fc", ours.mlp.c_fc,
            lambda x: ours.ln_2(x), lambda x, y: theirs.mlp.c_fc(theirs.ln_2(y))[..., hidden],
        )  # fmt: skip
        self._advance(2 * own.ffn_block + 1)
        self._fit(
            f"{number}.mlp.c_proj", ours.mlp.c_proj, lambda x: ours.mlp.act(ours.mlp.c_fc(ours.ln_2(x))),
            lambda x, y: y[..., self.keep] - x,
        )  # fmt: skip
        self.ours = [self.thin.run_half_block(2 * number + 1, x) for x in self.ours]

    def _advance(self, half: int) -> None:
        """Take the original's streams through all half-blocks up to this one."""
        while self.passed < half:
            self.passed += 1
            self.theirs = [self.full.run_half_block(self.passed, y) for y in self.theirs]

    def _mixed(self, number: int, x: Tensor) -> Tensor:
        """What attention hands to `c_proj`, (B, T, A)."""
        trace = self.thin.trace(number, x)
        return (trace.weights @ trace.v).transpose(1, 2).flatten(2)

    def _fit(self, name: str, layer: Any, features: Any, target: Any) -> None:
        """Fit one `Conv1D`, weight (inputs, outputs) and bias, to what its output still misses of the target."""
        fitting = LinearFit(layer.weight.data.T, layer.bias.data)
        for x, y, held in zip(self.ours, self.theirs, self.held, strict=True):
            fitting.add(features(x), target(x, y), held)
        self.layers.append(fitting.finish(name))
        self.clock.advance(1, name)
