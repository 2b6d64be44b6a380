"""Model and plan to a new, physically thinner model of the same structure (the letter's components 1 to 3).

Slicing follows the table in `ModelShape`'s components: a residual channel leaves every tensor that carries it; an
attention channel leaves three rows of qkv and one column of proj; an FFN channel one row of fc1, one column of fc2.
timm scales q·k by head_dim ** -0.5 of the NEW head; the ratio to the source's scale is folded into the q rows, so that
the function does not change for that reason.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from upvit_core.errors import PlanError
from upvit_core.models.checkpoint import build_model
from upvit_core.models.shape import ModelShape
from upvit_core.planning.plan import BlockPlan, PruningPlan


def prune(model: nn.Module, shape: ModelShape, plan: PruningPlan) -> nn.Module:
    """A thinner copy of `model` in eval mode; the source is not touched.

    Raises PlanError where the plan was made for another shape, or keeps directions rather than channels.
    """
    if plan.basis != "channels":
        raise PlanError("This plan keeps directions, not channels; it needs images to find them (give --data).")
    check_fits(shape, plan)
    source = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    first = next(iter(source.values()))
    thin = build_model(plan.shape_after).to(device=first.device, dtype=first.dtype)
    thin.load_state_dict(thin_state_dict(source, shape, plan))
    return thin.eval()


def check_fits(shape: ModelShape, plan: PruningPlan) -> None:
    """Raises PlanError where the plan's source widths are not the model's."""
    planned = plan.shape_before
    if (planned.embed_dim, planned.blocks) != (shape.embed_dim, shape.blocks):
        raise PlanError(
            f"The plan was made for {planned.name} ({planned.embed_dim} residual channels, {planned.depth} blocks), "
            f"not for {shape.name} ({shape.embed_dim}, {shape.depth}) with its widths; make a plan for this model."
        )


def thin_state_dict(source: dict[str, Tensor], shape: ModelShape, plan: PruningPlan) -> dict[str, Tensor]:
    """Tensors of the thinner model, by timm's names."""
    kept = torch.tensor(plan.residual.keep)
    result: dict[str, Tensor] = {}
    for name, tensor in source.items():
        if name.startswith("blocks."):
            continue
        if name.startswith(("head.", "head_dist.")):
            result[name] = tensor[:, kept] if name.endswith("weight") else tensor.clone()
        elif name.startswith("patch_embed.") or name.startswith(("norm.", "fc_norm.")):
            result[name] = tensor[kept]
        else:  # tokens and positions, (1, n, D)
            result[name] = tensor[..., kept]
    for number, block in enumerate(plan.blocks):
        for name, tensor in _thin_block(source, shape, block, kept).items():
            result[f"blocks.{number}.{name}"] = tensor
    return result


def _thin_block(source: dict[str, Tensor], shape: ModelShape, block: BlockPlan, kept: Tensor) -> dict[str, Tensor]:
    before = shape.blocks[block.source]
    A = before.attention
    channels = torch.tensor(block.attention.keep)
    hidden = torch.tensor(block.ffn.keep)
    rows = torch.cat([channels, A + channels, 2 * A + channels])
    head_dim = len(channels) // block.attention.heads
    fold = (head_dim / before.head_dim) ** 0.5  # old scale / new scale
    result = {}
    for half, number in (("attn", block.source), ("mlp", block.ffn_block)):
        for name, tensor in source.items():
            prefix = f"blocks.{number}."
            leaf = name.removeprefix(prefix)
            if not name.startswith(prefix) or leaf.startswith(("norm1", "attn", "ls1")) != (half == "attn"):
                continue
            if leaf.startswith("attn.qkv"):
                thin = tensor[rows]
                thin[: len(channels)] *= fold
                result[leaf] = thin[:, kept] if thin.ndim == 2 else thin
            elif leaf == "attn.proj.weight":
                result[leaf] = tensor[kept][:, channels]
            elif leaf == "mlp.fc1.weight":
                result[leaf] = tensor[hidden][:, kept]
            elif leaf == "mlp.fc1.bias":
                result[leaf] = tensor[hidden]
            elif leaf == "mlp.fc2.weight":
                result[leaf] = tensor[kept][:, hidden]
            else:  # norms, layer scales, output biases: (D,)
                result[leaf] = tensor[kept]
    return result
