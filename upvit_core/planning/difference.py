"""Two plans of one model: which channels both keep, which only one of them."""

from dataclasses import dataclass

import numpy as np

from upvit_core.errors import PlanError
from upvit_core.records.plan import PruningPlan


@dataclass(frozen=True)
class Difference:
    """One group of channels, by its key: masks (channels,) over the source model."""

    key: str
    component: str
    in_a: np.ndarray
    in_b: np.ndarray

    @property
    def counts(self) -> tuple[int, int, int, int]:
        """Channels kept by both, only by a, only by b, by neither."""
        both, a, b = self.in_a & self.in_b, self.in_a & ~self.in_b, self.in_b & ~self.in_a
        return int(both.sum()), int(a.sum()), int(b.sum()), int((~self.in_a & ~self.in_b).sum())


def difference(a: PruningPlan, b: PruningPlan) -> list[Difference]:
    """The channels of two plans, one entry a group in the order of the model.

    Raises PlanError where the plans are of models of different shapes, or one counts channels, the other directions.
    """
    groups, others = a.shape_before.groups, b.shape_before.groups
    if [(g.key, g.width) for g in groups] != [(g.key, g.width) for g in others]:
        raise PlanError(
            f"These plans are of two models, {a.shape_before.name} and {b.shape_before.name}; compare plans of one."
        )
    if a.basis != b.basis:
        raise PlanError(f"One plan counts {a.basis}, the other {b.basis}: they have no channel in common to compare.")
    differences = []
    for group in groups:
        masks = []
        for plan in (a, b):
            mask = np.zeros(group.width, bool)
            mask[list(plan.kept(group.key))] = True
            masks.append(mask)
        differences.append(Difference(group.key, group.component, *masks))
    return differences
