"""A plan in the basis of directions, made into weights: a physically thinner model of the same structure."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from upvit_core.errors import PlanError
from upvit_core.pruning.basis.fold import State, last_readers, load, output_heads, token_params
from upvit_core.pruning.basis.heads import HeadFactors, head_factors
from upvit_core.pruning.basis.residual import best_directions, embedding
from upvit_core.pruning.basis.statistics import ProxyStatistics
from upvit_core.pruning.surgery import check_fits
from upvit_core.records.basis import Basis
from upvit_core.records.plan import PruningPlan
from upvit_core.records.shape import ModelShape


@dataclass(frozen=True)
class CutBasis:
    """Maps from a source's quantities to the thinner model's: stream' = Eᵀ·stream, E (D, k), and by block its heads.

    For a plan of directions the source is the folded model; for one of channels E and the maps merely select.
    """

    embedding: Tensor
    heads: tuple[HeadFactors, ...]

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        parts = ((h.query, h.key, h.value, h.output) for h in self.heads)
        return (self.embedding, *(tensor for part in parts for tensor in part))

    def to(self, like: Tensor) -> CutBasis:
        """A copy on the device and in the dtype of `like`."""
        return CutBasis(self.embedding.to(like), tuple(h.to(like) for h in self.heads))


def basis_for(plan: PruningPlan, stats: ProxyStatistics) -> CutBasis:
    """The basis that a plan of directions keeps.

    Where it keeps the leading directions by `reading`, which are nested, the best ones for just that width are sought
    from them.

    Raises PlanError where it does not keep the constant (entry 0 of the residual), which LayerNorm needs.
    """
    constant, *others = plan.residual.keep
    if constant != 0 or not others:
        raise PlanError(
            f"A plan of directions keeps entry 0 of the residual, the constant, and at least one more; this one keeps "
            f"{list(plan.residual.keep[:4])}…; score and plan with basis=directions."
        )
    directions = stats.directions[:, torch.tensor(others) - 1]
    if stats.metric == "reading" and len(others) == others[-1] < stats.shape.embed_dim - 1:
        directions = best_directions(*stats.readers(), directions)
    factors = (head_factors(stats, block.source, block.attention) for block in plan.blocks)
    return CutBasis(embedding(directions), tuple(factors))


def channel_basis(plan: PruningPlan) -> CutBasis:
    """The basis of the letter's channels, as surgery cuts them."""
    shape = plan.shape_before
    select = torch.eye(shape.embed_dim, dtype=torch.float64)[:, list(plan.residual.keep)]
    blocks = []
    for block in plan.blocks:
        own = shape.blocks[block.source]
        rows = torch.eye(own.attention, dtype=torch.float64)[list(block.attention.keep)]  # (A', A)
        scale = (len(block.attention.keep) / block.attention.heads / own.head_dim) ** 0.5
        if shape.structure.head_dim:
            rows, scale = torch.kron(rows, torch.eye(shape.structure.head_dim, dtype=torch.float64)), 1.0
        blocks.append(HeadFactors(rows * scale, rows, rows, rows.T))
    return CutBasis(select, tuple(blocks))


def prune_directions(
    model: nn.Module, shape: ModelShape, plan: PruningPlan, stats: ProxyStatistics, basis: CutBasis | None = None
) -> nn.Module:
    """A thinner model in eval mode, of the structure of `model`, which is not touched; `stats` are of the same model.

    Raises PlanError where the plan keeps channels, or was made for another shape.
    """
    if plan.basis != Basis.DIRECTIONS:
        raise PlanError("This plan keeps channels, not directions; prune it with `surgery.prune`.")
    check_fits(shape, plan)
    state = sliced_state(stats, plan, basis or basis_for(plan, stats))
    return load(state, plan.shape_after, like=next(model.parameters()))


def sliced_state(stats: ProxyStatistics, plan: PruningPlan, basis: CutBasis) -> State:
    """Tensors of the thinner model: writers EᵀW, readers W·E, attention through its factors, FFN channels chosen."""
    source, shape, E = stats.state, plan.shape_after, basis.embedding
    k = E.shape[1]
    result: State = {name: source[name] @ E for name in token_params(source)}
    result["patch_embed.proj.weight"] = torch.einsum("dk,dchw->kchw", E, source["patch_embed.proj.weight"])
    result["patch_embed.proj.bias"] = E.T @ source["patch_embed.proj.bias"]
    for number, (block, factors) in enumerate(zip(plan.blocks, basis.heads, strict=True)):
        a, f, to = f"blocks.{block.source}", f"blocks.{block.ffn_block}", f"blocks.{number}"
        three = torch.block_diag(factors.query, factors.key, factors.value)  # (3A', 3A)
        result[f"{to}.attn.qkv.weight"] = three @ source[f"{a}.attn.qkv.weight"] @ E
        if shape.qkv_bias:
            result[f"{to}.attn.qkv.bias"] = three @ source[f"{a}.attn.qkv.bias"]
        result[f"{to}.attn.proj.weight"] = E.T @ source[f"{a}.attn.proj.weight"] @ factors.output
        result[f"{to}.attn.proj.bias"] = E.T @ source[f"{a}.attn.proj.bias"]
        hidden = torch.tensor(block.ffn.keep)
        for leaf in ("weight", "bias"):
            copies = source[f"{f}.mlp.fc1.{leaf}"].unflatten(0, (shape.structure.first_layers, -1))
            result[f"{to}.mlp.fc1.{leaf}"] = copies[:, hidden].flatten(0, 1)
        result[f"{to}.mlp.fc1.weight"] = result[f"{to}.mlp.fc1.weight"] @ E
        result[f"{to}.mlp.fc2.weight"] = E.T @ source[f"{f}.mlp.fc2.weight"][:, hidden]
        result[f"{to}.mlp.fc2.bias"] = E.T @ source[f"{f}.mlp.fc2.bias"]
        for norm, site, origin in (("norm1", 2 * block.source, a), ("norm2", 2 * block.ffn_block + 1, f)):
            result[f"{to}.{norm}.weight"] = _norm_weight(stats, E, site)
            result[f"{to}.{norm}.bias"] = E.T @ source[f"{origin}.{norm}.bias"]
        for scale in ("ls1", "ls2") if shape.layer_scale else ():
            result[f"{to}.{scale}.gamma"] = E.new_ones(k)
    norm = "fc_norm" if shape.fc_norm else "norm"
    result[f"{norm}.weight"] = _norm_weight(stats, E, 2 * stats.shape.depth)
    result[f"{norm}.bias"] = E.T @ source[f"{norm}.bias"]
    ends = {name: tensor for name, tensor in source.items() if name.startswith(("attn_pool.", *output_heads(shape)))}
    result |= ends | {f"{last}.weight": ends[f"{last}.weight"] @ E for last in last_readers(shape)}
    return result


def _norm_weight(stats: ProxyStatistics, E: Tensor, site: int) -> Tensor:
    """RMS of the stream that is kept, in its k channels, over the RMS of all of it, in D channels: (k,)."""
    C = stats.grams[f"reader.{site}"]
    D, k = E.shape
    kept = (E * (C @ E)).sum() / k
    return ((kept / (C.trace() / D)).sqrt()).expand(k).clone()
