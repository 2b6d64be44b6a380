"""The size of an elastic model that shares, widths or a budget ask for."""

from dataclasses import replace

from upvit_core.errors import PlanError
from upvit_core.planning.budget import Budget, Family, LatencyParts, best_plan
from upvit_core.planning.curves import Widths
from upvit_core.planning.widths import parse_widths
from upvit_core.pruning.elastic.folder import ElasticModel
from upvit_core.pruning.elastic.prefix import size_of
from upvit_core.records.ratios import Ratios
from upvit_core.records.shape import BlockShape, ModelShape


def choose_size(
    model: ElasticModel,
    ratios: Ratios,
    *,
    widths: str | None = None,
    budget: Budget | None = None,
    family: Family = "stock",
    latency: LatencyParts | None = None,
) -> ModelShape:
    """The size with shares removed, with widths as `planning.widths` writes them, or the best one within a budget.

    `family` is for a budget. Raises PlanError if more than one of them is given, or the model has no such size.
    """
    if sum((any(ratios.named.values()), widths is not None, budget is not None)) > 1:
        raise PlanError("Give the size by shares, by widths or by a budget: one of the three.")
    if budget is None and family != "stock":
        raise PlanError(f"Allocation {family} is for a budget; give one, or leave the allocation out.")
    if ratios.reduction is not None:
        raise PlanError(f"{model.name} has no spatial reduction to cut; leave its ratio out.")
    if budget is not None:
        after = best_plan(model.scores, budget, family=family, latency=latency).plan.shape_after
        return replace(after, name=model.shape.name)
    if widths is not None:
        return _with(model.shape, parse_widths(widths, model.shape))
    return size_of(model.shape, ratios)


def _with(shape: ModelShape, widths: Widths) -> ModelShape:
    return replace(shape, embed_dim=widths.embed_dim, blocks=tuple(BlockShape(*block) for block in widths.blocks))
