"""The best plan under a budget where blocks may go too: the best widths at every depth, and the depth that loses least.

At a depth, what is lost is predicted as the KL measured without the blocks that go, plus the scores of the channels
that go from those that stay. Both were taken on the whole model, and the sum leaves out that removals interact, as the
sums of `curves.py` do; it is a prediction to compare plans of one model by.
"""

from dataclasses import dataclass, replace
from typing import Any

from upvit_core.errors import PlanError
from upvit_core.planning.budget import BestPlan, Budget, best_plan
from upvit_core.planning.depth import digest_at, pairs_at, plan_depth, shape_at
from upvit_core.records.block_removals import BlockRemovals
from upvit_core.records.scores import ImportanceScores


@dataclass(frozen=True)
class DepthChoice:
    """The best plan of one depth: `predicted` in nats an image, of which `blocks` for the blocks that go."""

    depth: int
    best: BestPlan
    blocks: float

    @property
    def predicted(self) -> float:
        return self.best.predicted + self.blocks


def scores_at(scores: ImportanceScores, removals: BlockRemovals, depth: int) -> ImportanceScores:
    """The whole model's scores of what is left at `depth`, numbered as in the shallower model."""
    pairs = pairs_at(removals, depth)
    values = {group.key: scores.values[group.key] for group in scores.shape.groups_of("residual")}
    for b, (a, f) in enumerate(pairs):
        values |= {f"attention.{b}": scores.attention(a), f"ffn.{b}": scores.ffn(f)}
        if scores.shape.blocks[a].reduction:
            values[f"reduction.{b}"] = scores.values[f"reduction.{a}"]
    shape = shape_at(scores.shape, pairs)
    return replace(scores, values=values, stderr={}, shape=shape, model_digest=digest_at(removals, depth))


def best_over_depth(
    scores: ImportanceScores, removals: BlockRemovals, budget: Budget, **choices: Any
) -> tuple[DepthChoice, list[DepthChoice]]:
    """The choice that is predicted to lose least, and the best of every depth that can meet the budget, deepest first.

    `choices` are those of `best_plan`. Raises PlanError where the records belong to different models, and where no
    depth meets the budget.
    """
    if removals.after or removals.shape.blocks != scores.shape.blocks or scores.model_digest != removals.model_digest:
        raise PlanError(
            f"The depth scores belong to {removals.model or 'another model'}, not to {scores.model or 'this one'}; "
            "score half-blocks and channels of one model, both whole."
        )
    choices_by_depth, refused = [], None
    for depth in range(scores.shape.depth, removals.least_depth - 1, -1):
        shallow = depth < scores.shape.depth
        lost = removals.step_to(depth).kl / removals.samples if shallow else 0.0
        try:
            best = best_plan(scores_at(scores, removals, depth) if shallow else scores, budget, **choices)
        except PlanError as error:
            refused = error
            continue
        plan = plan_depth(best.plan, removals, depth) if shallow else best.plan
        choices_by_depth.append(DepthChoice(depth, replace(best, plan=plan), lost))
    if not choices_by_depth:
        assert refused is not None
        raise refused
    return min(choices_by_depth, key=lambda choice: choice.predicted), choices_by_depth
