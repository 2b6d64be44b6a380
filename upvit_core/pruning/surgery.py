"""Model and plan to a new, physically thinner model of the same structure (the letter's components 1 to 3).

Slicing follows the table of `models/layout.py`: a channel leaves every axis that holds its group, so a residual channel
leaves every tensor that carries it; an attention channel three rows of qkv and one column of proj; an FFN channel one
row of fc1, one column of fc2. The libraries scale q·k by head_dim ** -0.5 of the NEW head; the ratio to the source's
scale is folded into the q rows, so that the function does not change for that reason.
Whole heads keep their scale.
"""

import torch
from torch import Tensor, nn

from upvit_core.errors import PlanError
from upvit_core.models.checkpoint import build_model
from upvit_core.models.layout import block_stem, layout
from upvit_core.records.basis import Basis
from upvit_core.records.plan import PruningPlan
from upvit_core.records.shape import ModelShape


def prune(model: nn.Module, shape: ModelShape, plan: PruningPlan) -> nn.Module:
    """A thinner copy of `model` in eval mode; the source is not touched.

    Raises PlanError where the plan was made for another shape, or keeps directions rather than channels.
    """
    if plan.basis != Basis.CHANNELS:
        raise PlanError("This plan keeps directions, not channels; it needs images to find them (give --data).")
    check_fits(shape, plan)
    source = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    first = next(iter(source.values()))
    thin = build_model(plan.at_size(shape.img_size).shape_after).to(device=first.device, dtype=first.dtype)
    thin.load_state_dict(thin_state_dict(source, shape, plan))
    return thin.eval()


def check_fits(shape: ModelShape, plan: PruningPlan) -> None:
    """Raises PlanError where the plan's source has other widths, parts or outputs than the model."""
    planned = plan.shape_before
    ours, theirs = (
        (s.embed_dims, s.depths, s.blocks, s.outputs, layout(s.with_linear_features()).keys()) for s in (shape, planned)
    )
    if ours != theirs:
        raise PlanError(
            f"The plan was made for {planned.name} ({planned.embed_dim} residual channels, {planned.depth} blocks, "
            f"{planned.outputs} outputs), not for {shape.name} ({shape.embed_dim}, {shape.depth}, {shape.outputs}) "
            "with its widths and parts; make a plan for this model."
        )


def linear_features(source: dict[str, Tensor], shape: ModelShape) -> tuple[dict[str, Tensor], ModelShape]:
    """Tensors and shape of an equal model whose features are the output of a linear layer, the identity at first.

    A model with one, or with a classifier, stays as it is.
    """
    if shape.num_classes:
        return source, shape
    like, width = source["patch_embed.proj.weight"], shape.outputs
    head = {"head.weight": torch.eye(width).to(like), "head.bias": torch.zeros(width).to(like)}
    return source | head, shape.with_linear_features()


def thin_state_dict(source: dict[str, Tensor], shape: ModelShape, plan: PruningPlan) -> dict[str, Tensor]:
    """Tensors of the thinner model, by the library's names."""
    if plan.shape_after.num_classes != shape.num_classes:  # a thinner residual makes all features with a linear layer
        source, shape = linear_features(source, shape)
    before, result = layout(shape), {}
    for name, part in layout(plan.shape_after).items():
        origin = name
        if part.half is not None:
            own = plan.blocks[part.half // 2]
            origin = f"{block_stem(shape, own.ffn_block if part.half % 2 else own.source)}.{part.leaf}"
        tensor = source[origin]
        for number, axis in enumerate(before[origin].axes):
            if axis.key is not None:
                width = axis.size // axis.repeat
                kept = torch.tensor(plan.kept(axis.key), device=tensor.device)
                kept = (kept[:, None] * axis.unit + torch.arange(axis.unit, device=tensor.device)).flatten()
                rows = torch.cat([kept + copy * width for copy in range(axis.repeat)])
                tensor = tensor.index_select(number, rows)
        if part.queries and part.half is not None and not shape.structure.head_dim:
            own = plan.blocks[part.half // 2]
            count = len(own.attention.keep)
            head_dim = count // own.attention.heads
            along = next(n for n, axis in enumerate(part.axes) if axis.key == f"attention.{part.half // 2}")
            tensor = tensor.clone()
            tensor.narrow(along, 0, count).mul_((head_dim / shape.blocks[own.source].head_dim) ** 0.5)  # scales
        result[name] = tensor.clone() if tensor is source[origin] else tensor
    return result
