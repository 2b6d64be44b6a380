"""What repair's single fits are worth, and whether similar FFN neurons had better be merged than dropped."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from tests.benchmarks.basis.setting import Setting
from upvit_core.pruning.repair.layer_fit import LayerRepair, LinearFit
from upvit_core.records.plan import Kept, PruningPlan

ALIKE_IMAGES = 200
WITHOUT: dict[str, tuple[str, ...]] = {
    "everything": (), "without refitting q and k": (".q", ".k"), "without refitting v": (".v",),
    "without refitting fc1": (".fc1",), "without refitting q, k, v and fc1": (".q", ".k", ".v", ".fc1"),
}  # fmt: skip


@contextmanager
def leaving_out(endings: Sequence[str]) -> Iterator[None]:
    """Repair that leaves layers with these endings as they are."""
    before = LinearFit.finish

    def finish(self: Any, name: str) -> Any:
        if not name.endswith(tuple(endings)):
            return before(self, name)
        return LayerRepair(name, False, 0.0, 0.0, 0.0)

    LinearFit.finish = finish  # type: ignore[method-assign]
    try:
        yield
    finally:
        LinearFit.finish = before  # type: ignore[method-assign]


def hidden(setting: Setting) -> list[Tensor]:
    """Second moments (H, H) of each block's activations after GELU, on some proxy images."""
    found = [torch.zeros(block.ffn, block.ffn, dtype=torch.float64) for block in setting.loaded.shape.blocks]
    model: Any = setting.loaded.model

    def keep(number: int) -> Any:
        def hook(_: nn.Module, __: Any, output: Tensor) -> None:
            flat = output.detach().flatten(0, -2).double()
            found[number].add_(flat.T @ flat)

        return hook

    handles = [block.mlp.act.register_forward_hook(keep(b)) for b, block in enumerate(model.blocks)]
    try:
        with torch.no_grad():
            for images, _ in setting.proxy.part(0, ALIKE_IMAGES).batches(100):
                model(images)
    finally:
        for handle in handles:
            handle.remove()
    return found


def merged(setting: Setting, plan: PruningPlan) -> nn.Module:
    """The student whose dropped neurons join the kept one that is active most alike: fc1 rows are averaged, weighted
    by energy, fc2 columns added in proportion."""
    whole = plan.model_copy(update={"blocks": tuple(
        block.model_copy(update={"ffn": Kept(keep=tuple(range(setting.loaded.shape.blocks[block.ffn_block].ffn)))})
        for block in plan.blocks
    )})  # fmt: skip
    full: Any = setting.cut(whole)
    student: Any = copy.deepcopy(setting.cut(plan))
    for number, (block, moments) in enumerate(zip(plan.blocks, hidden(setting), strict=True)):
        keep = torch.tensor(block.ffn.keep)
        energy = moments.diagonal().clamp_min(1e-12)
        alike = moments[:, keep] / (energy[:, None] * energy[keep]).sqrt()  # (H, kept)
        target = alike.argmax(1)
        target[keep] = torch.arange(len(keep))
        slope = moments[torch.arange(len(energy)), keep[target]] / energy[keep[target]]  # (H,)
        fc1, fc2 = full.blocks[number].mlp.fc1, full.blocks[number].mlp.fc2
        weight = energy * fc2.weight.detach().double().square().sum(0)  # (H,)
        total = torch.zeros(len(keep), dtype=torch.float64).index_add_(0, target, weight)
        mlp = student.blocks[number].mlp
        with torch.no_grad():
            for name in ("weight", "bias"):
                rows = getattr(fc1, name).double()
                share = (weight / total[target]).reshape(-1, *[1] * (rows.ndim - 1))
                joined = torch.zeros_like(getattr(mlp.fc1, name), dtype=torch.float64)
                getattr(mlp.fc1, name).copy_(joined.index_add_(0, target, share * rows))
            columns = torch.zeros_like(mlp.fc2.weight, dtype=torch.float64)
            mlp.fc2.weight.copy_(columns.index_add_(1, target, fc2.weight.double() * slope))
    return student  # type: ignore[no-any-return]
