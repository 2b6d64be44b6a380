"""Corrections by images of a size solved for from moments: kept for steps of a ladder, interpolated in between.

Moments of the full-width model cannot tell what goes wrong inside a thinner one. In a repair with images, layers that
write to the stream (proj, fc2) make up for it, and the head does so once more; what is added to their weights changes
smoothly with the share removed.
"""

from collections.abc import Mapping
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn

from upvit_core.importance.criterion import Proxy, Report, silent
from upvit_core.models.layout import layout
from upvit_core.pruning.basis.fold import State, output_heads
from upvit_core.pruning.elastic.prefix import prefix_plan, size_of
from upvit_core.pruning.repair.families import ViTRepair
from upvit_core.pruning.repair.repair import repair
from upvit_core.records.ratios import Ratios
from upvit_core.records.shape import ModelShape


class WriterRepair(ViTRepair):
    """Repair of the layers that write to the stream, and of the heads; those that read it stay."""

    def repairs(self, layer: str) -> bool:
        return layer in written_layers(self.plan.shape_after)


def written_layers(shape: ModelShape) -> tuple[str, ...]:
    inside = (f"blocks.{b}.{leaf}" for b in range(shape.depth) for leaf in ("attn.proj", "mlp.fc2"))
    return (*inside, *output_heads(shape))


def corrections_of(
    solved: nn.Module, full: nn.Module, shape: ModelShape, after: ModelShape, proxy: Proxy, report: Report = silent
) -> dict[str, np.ndarray]:
    """By layer what repair on images adds to the [weight, bias] of the size `after`, solved for from moments."""
    repaired, _ = repair(solved, full, prefix_plan(shape, after), proxy, sweep=WriterRepair, report=report)
    before, now = solved.state_dict(), repaired.state_dict()
    changes = {
        name: torch.cat([now[f"{name}.weight"] - before[f"{name}.weight"],
                         (now[f"{name}.bias"] - before[f"{name}.bias"])[:, None]], 1)
        for name in written_layers(after)
    }  # fmt: skip
    return {name: change.cpu().float().numpy() for name, change in changes.items()}


def correct(
    state: State, shape: ModelShape, after: ModelShape, ladder: tuple[float, ...], corrections: Mapping[str, Tensor]
) -> None:
    """Add the corrections of the two nearest sizes on the ladder, interpolated, to the tensors of a solved size.

    The neighbours are those in the mean share removed of residual, attention and FFN; channels that a neighbour has not
    are left as they are.
    """
    position = mean_removed(shape, after)
    steps = sorted({0.0, *ladder})
    if not corrections or position <= 0:
        return
    shares = [steps[-1]] * (position >= steps[-1]) or next([a, b] for a, b in pairwise(steps) if a <= position < b)
    for share in shares:
        weight = 1.0 if len(shares) == 1 else 1 - abs(position - share) / (shares[1] - shares[0])
        neighbour = size_of(shape, Ratios.equal(share))
        for name in written_layers(after) if share and weight else ():
            change = corrections[f"{share:g}/{name}"] * weight
            for leaf, part in ((f"{name}.weight", change[:, :-1]), (f"{name}.bias", change[:, -1])):
                state[leaf] = state[leaf] + _fitted(part, neighbour, after, leaf).to(state[leaf].dtype)


def mean_removed(shape: ModelShape, after: ModelShape) -> float:
    """The mean of the shares removed of residual, attention and FFN."""
    kept = [after.embed_dim / shape.embed_dim]
    for kind in ("attention", "ffn"):
        widths = [sum(getattr(block, kind) for block in own.blocks) for own in (after, shape)]
        kept.append(widths[0] / widths[1])
    return 1 - sum(kept) / 3


def _fitted(tensor: Tensor, before: ModelShape, after: ModelShape, name: str) -> Tensor:
    """A tensor of one size as another has it: cut where that is narrower, with zeros where it is wider."""
    axes = layout(before)[name].axes
    for number, (old, new) in enumerate(zip(axes, layout(after)[name].axes, strict=True)):
        component, _, block = (old.key or "").partition(".")
        heads = before.blocks[int(block)].num_heads if component == "attention" else 1
        tensor = tensor.unflatten(number, (heads, -1))
        width, wanted = old.size // heads, new.size // heads
        tensor = tensor.narrow(number + 1, 0, min(width, wanted))
        if wanted > width:
            missing = list(tensor.shape)
            missing[number + 1] = wanted - width
            tensor = torch.cat([tensor, tensor.new_zeros(missing)], number + 1)
        tensor = tensor.flatten(number, number + 1)
    return tensor
