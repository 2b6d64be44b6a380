"""Plan to student: the one way in which pages, runs and the command line make a thinner model."""

from __future__ import annotations

from torch import nn

from upvit_core.basis import ProxyStatistics, gather, prune_directions
from upvit_core.data import ImageSet, draw_proxy, open_images
from upvit_core.errors import PlanError
from upvit_core.importance.criterion import Report, silent
from upvit_core.models.adapt import adapt
from upvit_core.models.checkpoint import LoadedModel
from upvit_core.planning.plan import PruningPlan
from upvit_core.repair.repair import repair as mend
from upvit_core.surgery import prune


def cut(
    loaded: LoadedModel,
    plan: PruningPlan,
    *,
    repair: bool = False,
    data: str | ImageSet | None = None,
    root: str | None = None,
    images: int = 2000,
    seed: int = 0,
    stats: ProxyStatistics | None = None,
    report: Report = silent,
) -> nn.Module:
    """The thinner model in eval mode. `data` (its training split) is read for `repair`, and for plans of directions.

    `stats`: what `gather` found on the same proxy images, where that is known already.
    Raises PlanError where images are needed and `data` is not given.
    """
    if repair and loaded.shape.family != "vit":
        raise PlanError(f"Repair is defined for plain ViTs; cut {loaded.name} without it, and distil.")
    plan = plan.at_size(loaded.shape.img_size)
    if plan.basis == "channels" and not repair:
        return prune(loaded.model, loaded.shape, plan)
    if data is None:
        what = "Repair" if repair else "A plan that keeps directions"
        raise PlanError(f"{what} needs images; give --data.")
    if isinstance(data, str):
        data = open_images(
            data, "train", pretrained_cfg=loaded.pretrained_cfg, num_classes=loaded.shape.num_classes, root=root
        )
    proxy = draw_proxy(data, min(images, len(data)), seed)
    adapter = adapt(loaded.model, loaded.shape)
    if plan.basis == "directions" and stats is None:
        stats = gather(adapter, proxy, report=report)
    if plan.basis == "channels" or stats is None:
        student = prune(loaded.model, loaded.shape, plan)
    else:
        student = prune_directions(loaded.model, loaded.shape, plan, stats)
    if repair:
        student, _ = mend(student, loaded.model, plan, proxy, stats=stats, report=report)
    return student
