"""The criteria by name: facts for menus and help, and the address of each. Imports no torch.

To add one, write a file in `importance/` with a class that follows `criterion.Criterion` and a function that makes it
from a `criterion.Request`, and give it a line in `CriterionName`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal


class Precision(StrEnum):
    """Number type of the forward passes of `kl` and `fisher`; a KL itself is always computed in float32 or float64."""

    FLOAT32 = "float32"
    BF16 = "bf16"
    FP16 = "fp16"


@dataclass(frozen=True)
class CriterionEntry:
    """Facts about one criterion.

    make: module and name in `importance/` of a function that makes it from a `criterion.Request`. menu: a few words for
    menus and help. title: the name of its scores. kl: how the scores are KL divergences of Eq. 1: exact, estimated, or
    exact near a cut ("refined"); empty for scores of another kind. needs_images: False where the weights are enough.
    by_label: True where the true classes of the images enter the score.
    """

    make: str
    menu: str
    title: str
    kl: Literal["exact", "estimated", "refined", ""] = ""
    needs_images: bool = True
    by_label: bool = False


class CriterionName(StrEnum):
    """The criteria that `score` and the Importance page offer, each with its `entry`."""

    _value_: str
    entry: CriterionEntry

    def __new__(cls, name: str, entry: CriterionEntry) -> CriterionName:
        member = str.__new__(cls, name)
        member._value_, member.entry = name, entry
        return member

    FISHER = (
        "fisher",
        CriterionEntry("fisher:make_fisher", "fast, all channels from a few passes", "fast scores", "estimated"),
    )
    KL = "kl", CriterionEntry("kl:make_kl", "exact, channel by channel", "exact scores", "exact")
    REFINE = "refine", CriterionEntry("refine:make_refine", "fast, then exact near the cut", "refine scores", "refined")
    L1 = "l1", CriterionEntry("magnitude:make_l1", "size of the weights", "L1 magnitude", needs_images=False)
    L2 = "l2", CriterionEntry("magnitude:make_l2", "size of the weights, squared", "L2 magnitude", needs_images=False)
    TAYLOR = "taylor", CriterionEntry("activation:make_taylor", "first order", "taylor scores", by_label=True)
    VARIANCE = "variance", CriterionEntry("activation:make_variance", "of the activations", "variance scores")
    RANDOM = "random", CriterionEntry("magnitude:make_random", "for comparison", "random scores", needs_images=False)


CRITERIA = {name.value: name.entry for name in CriterionName}
WITHOUT_IMAGES = tuple(name for name, entry in CRITERIA.items() if not entry.needs_images)
BY_LABEL = frozenset(name for name, entry in CRITERIA.items() if entry.by_label)
OF_DIRECTIONS = tuple(name for name, entry in CRITERIA.items() if entry.kl in ("exact", "estimated"))


def kl_of(criterion: str) -> str:
    """The kind of KL divergence that a criterion's scores are (`CriterionEntry.kl`), of published scores too."""
    known = CRITERIA.get(criterion.partition(" ")[0])
    return known.kl if known else ""


def criteria_help() -> str:
    """All criteria in one line."""
    return "; ".join(f"{name}: {entry.menu}" for name, entry in CRITERIA.items())
