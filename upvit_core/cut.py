"""Plan to student: the one way in which pages, runs and the command line make a thinner model."""

from __future__ import annotations

from torch import nn

from upvit_core.data import ImageSet, open_images
from upvit_core.errors import PlanError
from upvit_core.importance.criterion import Report, silent
from upvit_core.models.checkpoint import LoadedModel
from upvit_core.planning.plan import PruningPlan
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
    report: Report = silent,
) -> nn.Module:
    """The thinner model in eval mode. `data` (its training split) is read for `repair`, and for plans of directions.

    Raises PlanError where images are needed and `data` is not given.
    """
    if plan.basis == "channels" and not repair:
        return prune(loaded.model, loaded.shape, plan)
    if data is None:
        what = "Repair" if repair else "A plan that keeps directions"
        raise PlanError(f"{what} needs images; give --data.")
    if isinstance(data, str):
        data = open_images(
            data, "train", pretrained_cfg=loaded.pretrained_cfg, num_classes=loaded.shape.num_classes, root=root
        )
    raise PlanError("Repair and plans that keep directions are not built yet; use a plan of channels.")
