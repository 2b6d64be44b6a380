"""Depth and width together: score the half-blocks of a loaded model, and plans in a chosen order of the two.

`together` scores both on the original model; `depth first` scores the channels of the model already cut to its depth;
`width first` scores the half-blocks of the model already cut in width. Block removals are in every order measured
against the ORIGINAL model's output.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from upvit_core.data import ImageSet, draw_proxy
from upvit_core.errors import PlanError
from upvit_core.importance.blocks import remove_blocks
from upvit_core.importance.criterion import Report, silent
from upvit_core.models.build import adapt
from upvit_core.models.checkpoint import LoadedModel
from upvit_core.planning.depth import digest_at, pairs_at, plan_depth_only, shape_at
from upvit_core.pruning.surgery import prune
from upvit_core.records.block_removals import BlockRemovals
from upvit_core.records.plan import PruningPlan

DEFAULT_IMAGES = 2000


def score_blocks(
    loaded: LoadedModel,
    images: ImageSet,
    depth: int | Sequence[int],
    *,
    n: int | None = None,
    seed: int = 0,
    balanced: bool = False,
    after: PruningPlan | None = None,
    journal: Path | None = None,
    report: Report = silent,
    on_step: Callable[[BlockRemovals], None] | None = None,
) -> BlockRemovals:
    """Progressive block pruning to `depth` on `n` images drawn by `seed` (None: 2,000, or all where there are fewer).

    A staged model may be given the depth of each stage.
    `after`: a width plan that is cut first, so that the half-blocks of the thinner model are scored (width first).
    """
    proxy = draw_proxy(images, min(DEFAULT_IMAGES, len(images)) if n is None else n, seed, balanced=balanced)
    whole = adapt(loaded.model, loaded.shape)
    thin = whole if after is None else adapt(prune(loaded.model, loaded.shape, after), after.shape_after)

    def named(record: BlockRemovals) -> BlockRemovals:
        names = {"model": loaded.name, "model_digest": loaded.digest, "after": "" if after is None else after.digest}
        return record.model_copy(update=names)

    teacher = None if after is None else whole
    with_names = None if on_step is None else lambda record: on_step(named(record))
    record = remove_blocks(thin, proxy, depth, teacher=teacher, journal=journal, report=report, on_step=with_names)
    return named(record)


def at_depth(loaded: LoadedModel, removals: BlockRemovals, depth: int) -> LoadedModel:
    """The model cut to `depth`, to score its channels (depth first).

    Its digest stands for model and depth, so that its scores are not taken for the whole model's. Raises PlanError
    where the removals belong to another model.
    """
    if removals.model_digest != loaded.digest or removals.shape.blocks != loaded.shape.blocks:
        raise PlanError(f"The depth scores belong to {removals.model or 'another model'}, not to {loaded.name}.")
    model = prune(loaded.model, loaded.shape, plan_depth_only(removals, depth))
    shape = shape_at(loaded.shape, pairs_at(removals, depth))
    return replace(
        loaded, model=model, shape=shape, name=f"{loaded.name}, {depth} blocks", digest=digest_at(removals, depth)
    )
