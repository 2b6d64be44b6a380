"""A size of an elastic model: the first channels of every group, as views of the full-width weights.

Residual and FFN keep their first channels, every head its first factors. Weights of a LayerNorm are multiplied by the
scale of their width; queries by (r / head_dim)^½, since the libraries scale q·k by the width of the new head.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from upvit_core.errors import PlanError
from upvit_core.models.layout import layout
from upvit_core.planning.ratios import uniform_widths
from upvit_core.records.elastic import LADDER
from upvit_core.records.plan import BlockPlan, Kept, KeptAttention, PruningPlan
from upvit_core.records.ratios import Ratios
from upvit_core.records.shape import BlockShape, ModelShape


def prefix_state(
    state: Mapping[str, Tensor], shape: ModelShape, after: ModelShape, scales: Tensor
) -> dict[str, Tensor]:
    """Tensors of the size `after` of a full-width model of `shape`; gradients flow back to `state`.

    scales: (sites, D), by which LayerNorm's weights are multiplied at each width.
    """
    check_size(shape, after)
    result = {}
    for name, part in layout(after).items():
        tensor = state[name]
        for number, axis in enumerate(part.axes):
            component, _, block = (axis.key or "").partition(".")
            if component == "attention":
                full, own = shape.blocks[int(block)], after.blocks[int(block)]
                heads = tensor.unflatten(number, (axis.repeat * full.num_heads, full.head_dim))
                tensor = heads.narrow(number + 1, 0, own.head_dim).flatten(number, number + 1)
            elif component:
                copies = tensor.unflatten(number, (axis.repeat, -1))
                tensor = copies.narrow(number + 1, 0, axis.size // axis.repeat).flatten(number, number + 1)
        result[name] = tensor
    for site, norm in enumerate(norms(shape)):
        weight = result[f"{norm}.weight"]
        result[f"{norm}.weight"] = weight * scales[site, after.embed_dim - 1].to(weight)
    for b, (full, own) in enumerate(zip(shape.blocks, after.blocks, strict=True)):
        for leaf in ("weight", "bias"):
            name = f"blocks.{b}.attn.qkv.{leaf}"
            result[name] = scaled_queries(result[name], full, own)
    return result


def scaled_queries(qkv: Tensor, full: BlockShape, own: BlockShape) -> Tensor:
    """Rows (3A', …) of queries, keys and values, with the queries scaled for the head width of `own`."""
    scale = qkv.new_ones(3, *[1] * qkv.ndim)
    scale[0] = (own.head_dim / full.head_dim) ** 0.5
    return (qkv.unflatten(0, (3, -1)) * scale).flatten(0, 1)


def norms(shape: ModelShape) -> list[str]:
    """Names of the LayerNorms, in the order of the rows of their scales."""
    inside = [f"blocks.{b}.{norm}" for b in range(shape.depth) for norm in ("norm1", "norm2")]
    return [*inside, "fc_norm" if shape.fc_norm else "norm"]


def head_channels(full: BlockShape, own: BlockShape) -> Tensor:
    """Attention channels (A',) of the full width that a size keeps: the first of every head."""
    first = torch.arange(full.num_heads)[:, None] * full.head_dim
    return (first + torch.arange(own.head_dim)).flatten()


def check_size(shape: ModelShape, after: ModelShape) -> None:
    """Raises PlanError where `after` is no size of an elastic model of `shape`."""
    if not 2 <= after.embed_dim <= shape.embed_dim:
        raise PlanError(
            f"A size of {shape.name} keeps 2 to {shape.embed_dim} residual channels, not {after.embed_dim}."
        )
    for number, (full, own) in enumerate(zip(shape.blocks, after.blocks, strict=True)):
        if own.num_heads != full.num_heads:
            raise PlanError(
                f"An elastic model keeps the {full.num_heads} heads of block {number}, not {own.num_heads}."
            )
        if not (own.num_heads <= own.attention <= full.attention and 1 <= own.ffn <= full.ffn):
            raise PlanError(
                f"Block {number} has up to {full.attention} attention and {full.ffn} FFN channels, not {own.attention} "
                f"and {own.ffn}."
            )


def size_of(shape: ModelShape, ratios: Ratios) -> ModelShape:
    """The size without these shares of every block, at the nearest widths that the heads divide."""
    return shape.with_widths(uniform_widths(shape, ratios, snap=True)[0])


def ladder_sizes(shape: ModelShape, ladder: tuple[float, ...] = LADDER) -> list[ModelShape]:
    """The sizes that an elastic model is measured at: the same share of everything removed."""
    return [size_of(shape, Ratios.equal(share)) for share in ladder]


def prefix_plan(shape: ModelShape, after: ModelShape, *, model: str = "", model_digest: str = "") -> PruningPlan:
    """The plan, in channels of the elastic model, that keeps what the size `after` has."""
    return PruningPlan(
        source_shape=shape.to_dict(),
        residual=Kept(keep=tuple(range(after.embed_dim))),
        blocks=tuple(
            BlockPlan(
                source=b,
                attention=KeptAttention(heads=own.num_heads, keep=tuple(head_channels(full, own).tolist())),
                ffn=Kept(keep=tuple(range(own.ffn))),
            )
            for b, (full, own) in enumerate(zip(shape.blocks, after.blocks, strict=True))
        ),
        model=model,
        model_digest=model_digest,
    )


def keeps_prefixes(plan: PruningPlan) -> bool:
    """True where a plan of channels keeps a size of an elastic model: every block and head, the first channels."""
    before, after = plan.shape_before, plan.shape_after
    if [(block.source, block.ffn_block) for block in plan.blocks] != [(b, b) for b in range(before.depth)]:
        return False
    if after.embed_dim < 2 or any(a.num_heads != b.num_heads for a, b in zip(before.blocks, after.blocks, strict=True)):
        return False
    prefix = prefix_plan(before, after)
    return (plan.residual, plan.blocks) == (prefix.residual, prefix.blocks)
